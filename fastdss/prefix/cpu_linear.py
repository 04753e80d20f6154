"""Chooses the faster fp32 GEMM for a model's linear layers on a CPU: the default one, or oneDNN with prepacked weights.

Both compute in fp32, but add in another order, which changes scores by 2e-6. So the choice must not depend on
anything that differs between two runs of the same call, such as a measured time. ``auto`` goes by the make of the
processor and the size of the call: it takes oneDNN on AMD's processors, where it is 1.1 to 1.3 times as fast end to end
as the default, MKL (Zen 3 and 4). Prepacked weights are a second copy of the weights. A ``PackedWeights`` keeps them
from call to call, because packing SmolLM2-135M takes as long as computing 400 of its tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from fastdss.errors import UserError
from fastdss.upstream.torch import prepacked, prepacked_linear, version

GEMMS = ("auto", "default", "onednn")
WORTH_PACKING = 2000  # with fewer tokens in a call, prepacking the weights takes longer than it saves
_PACKED_FOR = 256  # number of rows that oneDNN packs the weights for; a choice: micro-batches have 400 to 800


class PackedWeights:
    """Prepacked weights of linear layers, kept until the layer or this object is gone; ``clear`` frees them sooner.

    Packed weights are used again only if the weight has not changed since. Two things tell: its version counter, and
    its product with a fixed random vector. Version counters miss writes through ``.data``; products miss changes that
    are too small to change a row's output. The check reads the weights once, as a forward over a single token does.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self._kept: WeakKeyDictionary[nn.Linear, tuple[int | None, Tensor, Tensor]] = WeakKeyDictionary()
        self._numbers: dict[int, Tensor] = {}

    def of(self, layer: nn.Linear) -> Tensor:
        """``layer``'s weight as it is now, prepacked."""
        number, products = version(layer.weight), self._products(layer.weight)
        kept = self._kept.get(layer)
        if kept is None or kept[0] != number or not torch.equal(kept[1], products):
            kept = self._kept[layer] = number, products, prepacked(layer.weight, _PACKED_FOR)
        return kept[2]

    def _products(self, weight: Tensor) -> Tensor:
        size = weight.shape[1]
        if size not in self._numbers:
            numbers = torch.randn(size, generator=torch.Generator().manual_seed(size), dtype=torch.float32)
            self._numbers[size] = numbers
        with torch.no_grad():
            return weight @ self._numbers[size]

    def __reduce__(self) -> tuple[Any, ...]:
        return PackedWeights, ()  # copies and pickles start empty


@contextmanager
def cpu_gemm(model: nn.Module, backend: str, packed: PackedWeights | None = None, tokens: int = 0) -> Iterator[str]:
    """Within the context, run the model's plain fp32 CPU ``nn.Linear`` layers on ``backend``; yields the one in use.

    ``packed`` keeps the prepacked weights for the next call. ``"onednn"`` raises ``ValueError`` where it cannot run.
    ``"auto"`` takes the default there, and in calls of fewer than ``WORTH_PACKING`` tokens.
    """
    packed = packed or PackedWeights()
    if backend not in GEMMS:
        raise UserError(f"gemm: expected one of {', '.join(GEMMS)}, got {backend!r}")
    if backend == "auto":
        backend = preferred_gemm(model) if tokens >= WORTH_PACKING else "default"
    layers = [] if backend == "default" else eligible_layers(model)
    if backend == "onednn" and not layers:
        raise UserError("gemm='onednn' needs oneDNN and a model with fp32 linear layers on the CPU")
    if not layers:
        yield "default"
        return
    try:
        for layer in layers:
            layer.forward = partial(prepacked_linear, weight=packed.of(layer), bias=layer.bias)  # type: ignore[method-assign]
        yield "onednn"
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)


def preferred_gemm(*models: nn.Module) -> str:
    """The GEMM that ``"auto"`` takes for a long call; it depends only on the processor and the models' layers."""
    return "onednn" if _by_amd() and any(eligible_layers(model) for model in models) else "default"


@cache
def _by_amd() -> bool:
    """Whether the processor is one of AMD's, as Linux tells. On other systems it is not known: False."""
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False


def eligible_layers(model: nn.Module) -> list[nn.Linear]:
    """The fp32 CPU layers that run ``nn.Linear.forward`` itself: no replaced forward, no adapters, no quantisation."""
    if not torch.backends.mkldnn.is_available():
        return []
    return [
        module
        for module in model.modules()
        if type(module) is nn.Linear
        and "forward" not in vars(module)
        and module.weight.device.type == "cpu"
        and module.weight.dtype == torch.float32
        and type(module.weight) is nn.Parameter  # quantised weights are of other classes, whose dtype says fp32 too
    ]
