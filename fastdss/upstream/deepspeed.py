"""Names of DeepSpeed that its documentation does not promise: how ZeRO-3 marks the parameters that it split."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def is_split(tensor: Any) -> bool:
    """Whether ZeRO-3 manages the parameter; no public name says so. DeepSpeed need not be installed to ask."""
    return hasattr(tensor, "ds_id")


def is_empty_share(tensor: Tensor) -> bool:
    """Whether the parameter is the empty placeholder that ZeRO-3 leaves while the values are split over ranks."""
    return is_split(tensor) and not tensor.numel()


def is_engines(model: nn.Module) -> bool:
    """Whether a DeepSpeed engine wraps the model already. Then the engine gathers parameters itself, module by module;
    the number that it gives each module shows it."""
    return hasattr(model, "ds_id")


def is_engine(model: Any) -> bool:
    """Whether this is the engine itself, told by the name of its class: importing DeepSpeed takes seconds."""
    return any(cls.__name__ == "DeepSpeedEngine" for cls in type(model).__mro__)


def local_share(tensor: Tensor) -> Tensor | None:
    """This rank's share of a parameter that ``is_empty_share``; None where it is swapped out to CPU memory or disk.

    DeepSpeed's public functions give the whole parameter only.
    """
    share: Tensor = tensor.ds_tensor  # type: ignore[attr-defined]
    swapped = getattr(getattr(share, "status", None), "name", "") == "NOT_AVAILABLE"
    return None if swapped else share
