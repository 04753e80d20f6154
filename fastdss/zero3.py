"""Parameters that DeepSpeed ZeRO-3 has split, whole for a while where no engine of their own sees to it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


@contextmanager
def layers_gathered(model: nn.Module) -> Iterator[None]:
    """Within it each layer's own parameters are whole while the layer runs, as DeepSpeed's engine would have them.

    A model made under ``deepspeed.zero.Init`` (a Trainer's arguments with ZeRO-3 see to that) has only empty parameters
    until an engine wraps it. Does nothing for other models, and where the engine is there. All ranks have to take part.
    """
    split = [m for m in model.modules() if any(hasattr(p, "ds_id") for p in m.parameters(recurse=False))]
    if not split or hasattr(model, "ds_id"):  # the engine numbers modules too
        yield
        return

    def gather(layer: nn.Module, _: Any) -> None:
        layer.__dict__["_dss_gathered"] = whole = gathered(*layer.parameters(recurse=False))
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
    """Within it those of the tensors that are split parameters are whole. All ranks have to take part."""
    split = [tensor for tensor in tensors if hasattr(tensor, "ds_id") and not tensor.numel()]
    if not split:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(split):
        yield
