"""The faster fp32 GEMM of this CPU for a model's linear layers: the default one, or oneDNN with prepacked weights.

Same fp32 arithmetic, another order of summation. Which one wins depends on the chip, so ``auto`` times both on the
model's own widest layer. Prepacking keeps a second copy of the weights for as long as the context lasts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

BACKENDS = ("auto", "default", "onednn")
_PROBE_ROWS = 256


@contextmanager
def cpu_gemm(model: nn.Module, backend: str) -> Iterator[str]:
    """Run ``model``'s plain fp32 CPU ``nn.Linear`` layers on ``backend`` for a while; gives the one in use.

    ``"onednn"`` raises ``ValueError`` where it cannot run; ``"auto"`` then stays with the default.
    """
    if backend not in BACKENDS:
        raise ValueError(f"gemm: expected one of {BACKENDS}, got {backend!r}")
    layers = [] if backend == "default" else eligible_layers(model)
    if backend == "onednn" and not layers:
        raise ValueError("gemm='onednn' needs oneDNN and a model with fp32 linear layers on the CPU")
    if not layers or (backend == "auto" and not onednn_is_faster(layers)):
        yield "default"
        return
    try:
        for layer in layers:
            layer.forward = partial(_linear, _packed(layer.weight), layer.bias)  # type: ignore[method-assign]
        yield "onednn"
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)


def eligible_layers(model: nn.Module) -> list[nn.Linear]:
    """Layers whose forward is that of ``nn.Linear`` and nothing else: no hooks, adapters or quantisation."""
    if not torch.backends.mkldnn.is_available():
        return []
    return [
        module
        for module in model.modules()
        if type(module) is nn.Linear
        and "forward" not in vars(module)
        and module.weight.device.type == "cpu"
        and module.weight.dtype == torch.float32
    ]


@torch.inference_mode()
def onednn_is_faster(layers: list[nn.Linear]) -> bool:
    """Whether prepacked oneDNN beats the default on the widest of ``layers``, by at least a twentieth."""
    layer = max(layers, key=lambda layer: layer.weight.numel())
    rows = torch.randn(1, _PROBE_ROWS, layer.in_features)
    packed = _packed(layer.weight)
    ways: list[Callable[[], Tensor]] = [
        lambda: nn.functional.linear(rows, layer.weight, layer.bias),
        lambda: _linear(packed, layer.bias, rows),
    ]
    best = [float("inf")] * 2
    for _ in range(5):
        for i, way in enumerate(ways):
            begun = time.perf_counter()
            way()
            best[i] = min(best[i], time.perf_counter() - begun)
    return best[1] < 0.95 * best[0]


def _packed(weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach(), _PROBE_ROWS)


def _linear(packed: Tensor, bias: Tensor | None, rows: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(rows, packed, bias, "none", [], "")
