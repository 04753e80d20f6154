"""Gathering parameters that DeepSpeed ZeRO-3 or FSDP2 has split, where their own engines would not do it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fastdss.upstream import deepspeed, peft
from fastdss.upstream.torch import has_fsdp1


@contextmanager
def layers_gathered(model: nn.Module) -> Iterator[None]:
    """Within it each layer's own parameters are whole while the layer runs, as DeepSpeed's engine would have them.

    A model made under ``deepspeed.zero.Init`` (a Trainer's arguments with ZeRO-3 see to that) has only empty parameters
    until an engine wraps it. Does nothing for other models, and where the engine is there. All ranks have to take part.
    """

    def read_by(layer: nn.Module) -> list[nn.Parameter]:  # an adapter's parts may be read without a call
        return list(layer.parameters(recurse=peft.has_base(layer)))

    split = [layer for layer in model.modules() if any(map(deepspeed.is_split, read_by(layer)))]
    if not split or deepspeed.is_engines(model):
        yield
        return

    def gather(layer: nn.Module, _: Any) -> None:
        layer.__dict__["_dss_gathered"] = whole = gathered(*read_by(layer))
        whole.__enter__()

    def release(layer: nn.Module, *_: Any) -> None:
        layer.__dict__.pop("_dss_gathered").__exit__(None, None, None)

    hooks = [layer.register_forward_pre_hook(gather) for layer in split]
    hooks += [layer.register_forward_hook(release, always_call=True) for layer in split]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def gathered(*tensors: Tensor | None) -> Iterator[None]:
    """Within the context those of the tensors that are split parameters are whole. All ranks must take part."""
    empty = [tensor for tensor in tensors if tensor is not None and deepspeed.is_empty_share(tensor)]
    if not empty:
        yield
        return
    import deepspeed as package  # its documented ``deepspeed.zero`` is an attribute, not a module to import from

    with package.zero.GatheredParameters(empty):
        yield


def is_split(model: nn.Module) -> bool:
    """Whether ZeRO-3 or FSDP has split a parameter of the model: then all ranks must take part in every call."""
    marked = (deepspeed.is_split(parameter) or hasattr(parameter, "full_tensor") for parameter in model.parameters())
    return any(marked) or has_fsdp1(model)


def whole(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor, or a copy of all of it where it is a split parameter; of FSDP2's in ``dtype``, as its forward reads.

    All ranks have to take part.
    """
    if hasattr(tensor, "full_tensor"):
        found: Tensor = tensor.full_tensor().to(dtype)
        return found
    with gathered(tensor):
        return tensor.clone() if deepspeed.is_split(tensor) else tensor


def gather_as_one(layer: nn.Module) -> None:
    """The engine makes all parameters within ``layer`` whole when that is called, in backward too.

    It otherwise waits for the calls of the layers within, which do not come where their weights are only read. Before
    there is an engine, ``layers_gathered`` sees to it: a layer marked so early gets its gradients reduced in its own
    backward hook, and the head's results bypass that.
    """
    if deepspeed.is_engines(layer) and any(map(deepspeed.is_split, layer.parameters())):
        from deepspeed.utils import set_z3_leaf_modules

        set_z3_leaf_modules(layer, [type(layer)])
