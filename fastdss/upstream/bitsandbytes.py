"""Names of bitsandbytes that its documentation does not promise; it need not be installed."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def is_layer(module: Any) -> bool:
    """Whether the module is one of bitsandbytes' own, by where its class stands."""
    return type(module).__module__.startswith("bitsandbytes.")


def is_quantised(weight: Tensor) -> bool:
    """Whether the weight is kept in 4 or 8 bits."""
    return type(weight).__name__ in ("Params4bit", "Int8Params")


def is_matrix(weight: Tensor) -> bool:
    """Whether a weight stands for a matrix: in 4 bits it is a column of bytes, which has a state for unpacking."""
    return weight.ndim == 2 or hasattr(weight, "quant_state")


def dequantised(layer: Any) -> Tensor:
    """The layer's weight as it multiplies by it. PEFT's function knows all kinds; neither library has a public one."""
    from peft.utils.integrations import dequantize_module_weight

    found: Tensor = dequantize_module_weight(layer)
    return found.detach().to(getattr(layer, "compute_dtype", None) or found.dtype)
