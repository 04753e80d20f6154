"""A forward through a model whose parameters DeepSpeed ZeRO-3 already split while it was being built."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


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
    import deepspeed

    def gather(layer: nn.Module, _: Any) -> None:
        layer.__dict__["_dss_gathered"] = whole = deepspeed.zero.GatheredParameters(
            list(layer.parameters(recurse=False))
        )
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
