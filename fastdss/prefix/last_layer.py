"""The last layer where verdicts are read, and nowhere else: from there on no other token's result is needed.

All tokens must attend in that layer, for their keys and values. What follows (output projection, MLP or experts: 88 %
of the products in a layer of Llama 3 8B) is needed in the verdicts' rows. The layer's own code is not rewritten for
that. It runs twice: on all tokens, until attention is done and leaves by ``Attended``; then on the verdicts' rows,
where attention gives what it found. So this serves every layer that mixes tokens in its attention only, whatever else
it does.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from .attention import Attended, PrefixPlan

_whole: WeakSet[nn.Module] = WeakSet()  # of which the log has said so


def find_last_layer(body: nn.Module, count: int) -> nn.Module | None:
    """The last of a backbone's ``count`` decoder layers; None, and a line in the log, where it cannot be left early.

    That is: it stands in no list of ``count`` modules, or what hangs on it must see all of its run.
    """
    for module in body.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count and _attends_as(module[-1], count - 1):
            layer = module[-1]
            swapped = "forward" in vars(layer) or layer._compiled_call_impl is not None
            if not (swapped or layer._forward_hooks or layer._forward_pre_hooks):
                return layer
    _say_whole(body)
    return None


def _say_whole(module: nn.Module) -> None:
    if module not in _whole:
        _whole.add(module)
        logging.getLogger(__name__).info("%s: the last layer is computed for all tokens", type(module).__name__)


def _attends_as(layer: nn.Module, index: int) -> bool:
    return any(getattr(module, "layer_idx", None) == index for module in layer.modules())


@contextmanager
def at_rows(layer: nn.Module | None, plan: PrefixPlan, rows: list[int], tokens: int) -> Iterator[None]:
    """Let ``layer`` finish only ``rows`` of its ``tokens`` for a while; the others come out as zeros.

    Where a tensor that it is given has not the shape ``[1, tokens, …]``, it finishes all, and the log says so.
    """
    if layer is None or len(rows) == tokens:
        yield
        return
    layer.forward = partial(_forward, layer, layer.forward, plan, torch.tensor(rows, dtype=torch.long), tokens)
    try:
        yield
    finally:
        del layer.forward


def _forward(
    layer: nn.Module, whole: Callable, plan: PrefixPlan, rows: Tensor, tokens: int, *args: Any, **kwargs: Any
) -> Any:
    given = *args, *kwargs.values()
    if not any(value is plan for value in given) or not all(_has_rows(value, tokens) for value in given):
        _say_whole(layer)
        return whole(*args, **kwargs)
    plan.rows = rows
    with suppress(Attended):
        whole(*args, **kwargs)
    kept = whole(*(_at(value, rows) for value in args), **{name: _at(value, rows) for name, value in kwargs.items()})
    return _spread(kept, rows, tokens)


def _has_rows(value: Any, tokens: int) -> bool:
    if isinstance(value, tuple):
        return all(_has_rows(part, tokens) for part in value)
    if isinstance(value, Tensor):
        return value.ndim > 1 and value.shape[:2] == (1, tokens)
    return not isinstance(value, dict | list)


def _at(value: Any, rows: Tensor) -> Any:
    if isinstance(value, tuple):
        return tuple(_at(part, rows) for part in value)
    return value[:, rows.to(value.device)] if isinstance(value, Tensor) else value


def _spread(value: Any, rows: Tensor, tokens: int) -> Any:
    """The opposite of ``_at``: some backbones give their result the shape of their input."""
    if isinstance(value, tuple):
        return tuple(_spread(part, rows, tokens) for part in value)
    if not isinstance(value, Tensor):
        return value
    return value.new_zeros(1, tokens, *value.shape[2:]).index_copy_(1, rows.to(value.device), value)
