"""Short forwards that find out what a model does, and change nothing: modes, gradients and quantised weights stay."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fastdss.errors import UserTypeError
from fastdss.upstream import bitsandbytes


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients for the while; afterwards each module is in the mode it had.

    bitsandbytes' layers stay in training mode, which changes nothing in them but one thing: on a CPU their first
    forward in evaluation mode repacks the 4-bit weights for inference, after which no gradient passes them.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    for module, _ in modes:
        if bitsandbytes.is_layer(module):
            module.training = True
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The dtype of products in a forward that is begun here on this device, None where that is the tensors' own."""
    on = torch.is_autocast_enabled(device.type)
    return torch.get_autocast_dtype(device.type) if on else None


@contextmanager
def failing_as(what: Callable[[str], UserTypeError]) -> Iterator[None]:
    """Within the context a forward that fails raises ``what(the failure)``; one that ran out of memory may be tried
    again, and stays as it is."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (TypeError, ValueError, AttributeError, LookupError, RuntimeError) as error:
        raise what(f"{type(error).__name__}: {str(error)[:200]}") from error


def some_tokens(device: torch.device) -> Tensor:
    """``[1, 3]`` ids to compare logits on. There are several, because one could be the padding, whose embedding may be
    zero: its logits would then be zero too, and the same for every scale."""
    return torch.arange(3, device=device)[None]


def distance(first: Tensor, second: Tensor) -> float:
    """The relative Frobenius distance of two tensors; infinite where one of them is not finite."""
    first, second = first.double(), second.to(first.device).double()
    value = ((first - second).norm() / second.norm().clamp(min=1e-30)).item()
    return value if value == value else float("inf")


def other_ending(ids: Tensor) -> Tensor:
    """The ids with another last token; before it, a causal LM computes the same for both."""
    return torch.cat([ids[:, :-1], ids[:, -1:] + 1], 1)
