"""Names of bitsandbytes that its documentation does not promise; it need not be installed."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def is_layer(module: Any) -> bool:
    """Whether the module's class is defined in bitsandbytes; asked so, the package need not be imported."""
    return type(module).__module__.startswith("bitsandbytes.")


def is_quantised(weight: Tensor) -> bool:
    """Whether the weight is kept in 4 or 8 bits."""
    return type(weight).__name__ in ("Params4bit", "Int8Params")


def is_matrix(weight: Tensor) -> bool:
    """Whether a weight represents a matrix: in 4 bits it is a column of bytes, with a ``quant_state`` to unpack it."""
    return weight.ndim == 2 or hasattr(weight, "quant_state")


def dequantised(layer: Any) -> Tensor:
    """The matrix that the layer multiplies by. A private function of PEFT knows every kind; no public one exists.

    The layer keeps its weight: on a CPU PEFT puts a copy in its place, and where that is of 8 bits the layer's next own
    forward would find no scales.
    """
    from peft.utils.integrations import dequantize_module_weight

    weight = getattr(layer, "weight", None)
    found: Tensor = dequantize_module_weight(layer)
    if weight is not None:
        layer.weight = weight
    return found.detach().to(getattr(layer, "compute_dtype", None) or found.dtype)
