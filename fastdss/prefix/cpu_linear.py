"""The faster fp32 GEMM of this CPU for a model's linear layers: the default one, or oneDNN with prepacked weights.

Same fp32 arithmetic, another order of summation. Which one wins depends on the chip, so ``auto`` times both on the
model's own widest layer. Prepacked weights are a second copy of them, which a ``PackedWeights`` keeps from call to
call: packing SmolLM2-135M costs as much as 400 of its tokens.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

GEMMS = ("auto", "default", "onednn")
WORTH_PACKING = 2000  # tokens below which prepacking the weights costs more than it saves
_PROBE_ROWS = 256


class PackedWeights:
    """Prepacked weights of linear layers, kept until the layer or this object is gone; ``clear`` frees them sooner.

    A kept copy serves while the weight's version and its products with fixed random numbers are the same as when it
    was packed: versions miss writes through ``.data``, products miss what is too small to move a row's output. The
    check reads the weights once, as a forward over a single token does.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.tokens = 0  # how much work came by
        self.faster: bool | None = None  # what the probe said
        self._kept: WeakKeyDictionary[nn.Linear, tuple[int | None, Tensor, Tensor]] = WeakKeyDictionary()
        self._numbers: dict[int, Tensor] = {}

    def of(self, layer: nn.Linear) -> Tensor:
        """``layer``'s weight as it is now, prepacked."""
        number, products = version(layer.weight), self._products(layer.weight)
        kept = self._kept.get(layer)
        if kept is None or kept[0] != number or not torch.equal(kept[1], products):
            kept = self._kept[layer] = number, products, _packed(layer.weight)
        return kept[2]

    def _products(self, weight: Tensor) -> Tensor:
        size = weight.shape[1]
        if size not in self._numbers:
            self._numbers[size] = torch.randn(size, generator=torch.Generator().manual_seed(size))
        with torch.no_grad():
            return weight @ self._numbers[size]

    def __reduce__(self) -> tuple:
        return PackedWeights, ()  # copies and pickles start empty


@contextmanager
def cpu_gemm(model: nn.Module, backend: str, packed: PackedWeights | None = None, tokens: int = 0) -> Iterator[str]:
    """Run ``model``'s plain fp32 CPU ``nn.Linear`` layers on ``backend`` for a while; gives the one in use.

    ``packed`` keeps the prepacked weights for the next time. ``"onednn"`` raises ``ValueError`` where it cannot run;
    ``"auto"`` then stays with the default, as it does until ``WORTH_PACKING`` tokens came by.
    """
    packed = packed or PackedWeights()
    packed.tokens += tokens
    if backend not in GEMMS:
        raise ValueError(f"gemm: expected one of {GEMMS}, got {backend!r}")
    layers = [] if backend == "default" else eligible_layers(model)
    if backend == "onednn" and not layers:
        raise ValueError("gemm='onednn' needs oneDNN and a model with fp32 linear layers on the CPU")
    if not layers or (backend == "auto" and not _worth_it(packed, layers)):
        yield "default"
        return
    try:
        for layer in layers:
            layer.forward = partial(_linear, packed.of(layer), layer.bias)  # type: ignore[method-assign]
        yield "onednn"
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)


def _worth_it(packed: PackedWeights, layers: list[nn.Linear]) -> bool:
    if packed.tokens < WORTH_PACKING:
        return False
    if packed.faster is None:
        packed.faster = onednn_is_faster(layers)
    return packed.faster


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


def version(tensor: Tensor) -> int | None:
    """How often ``tensor`` was written to; None for tensors made in inference mode, which do not count."""
    return None if tensor.is_inference() else tensor._version


def _packed(weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach(), _PROBE_ROWS)


def _linear(packed: Tensor, bias: Tensor | None, rows: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(rows, packed, bias, "none", [], "")
