"""The faster fp32 GEMM of this CPU for a model's linear layers: the default one, or oneDNN with prepacked weights.

Same fp32 arithmetic, another order of summation, so the choice moves scores by 2e-6 and must not depend on anything
that differs between two runs of one call, a stopwatch least of all. ``auto`` decides by the kind of processor and the
size of the call: oneDNN on AMD's, where MKL falls behind (1.1 to 1.3 times end to end, Zen 3 and 4). Prepacked weights
are a second copy of them, which a ``PackedWeights`` keeps from call to call: packing SmolLM2-135M costs as much as 400
of its tokens.
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
WORTH_PACKING = 2000  # tokens of a call below which prepacking the weights costs more than it saves
_PACKED_FOR = 256  # rows that oneDNN is told to expect; a micro-batch has 400 to 800


class PackedWeights:
    """Prepacked weights of linear layers, kept until the layer or this object is gone; ``clear`` frees them sooner.

    A kept copy serves while the weight's version and its products with fixed random numbers are the same as when it
    was packed: versions miss writes through ``.data``, products miss what is too small to move a row's output. The
    check reads the weights once, as a forward over a single token does.
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
            self._numbers[size] = torch.randn(size, generator=torch.Generator().manual_seed(size))
        with torch.no_grad():
            return weight @ self._numbers[size]

    def __reduce__(self) -> tuple[Any, ...]:
        return PackedWeights, ()  # copies and pickles start empty


@contextmanager
def cpu_gemm(model: nn.Module, backend: str, packed: PackedWeights | None = None, tokens: int = 0) -> Iterator[str]:
    """Run ``model``'s plain fp32 CPU ``nn.Linear`` layers on ``backend`` for a while; gives the one in use.

    ``packed`` keeps the prepacked weights for the next time. ``"onednn"`` raises ``ValueError`` where it cannot run;
    ``"auto"`` then stays with the default, and where the call has fewer than ``WORTH_PACKING`` tokens.
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
    """What ``"auto"`` takes for a long call, by the kind of processor and of layers alone."""
    return "onednn" if _by_amd() and any(eligible_layers(model) for model in models) else "default"


@cache
def _by_amd() -> bool:
    """Elsewhere than on Linux it is not known, and the default stays."""
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False


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
        and type(module.weight) is nn.Parameter  # quantised ones are of classes of their own, and say fp32 too
    ]
