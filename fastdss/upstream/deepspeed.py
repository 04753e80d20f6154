"""Names of DeepSpeed that its documentation does not promise: how its ZeRO-3 marks what it split."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def is_split(tensor: Any) -> bool:
    """Whether ZeRO-3 took the parameter over; no public name tells, and DeepSpeed need not be installed to ask."""
    return hasattr(tensor, "ds_id")


def is_empty_share(tensor: Tensor) -> bool:
    """Whether the parameter is ZeRO-3's empty placeholder."""
    return is_split(tensor) and not tensor.numel()


def is_engines(model: nn.Module) -> bool:
    """Whether an engine wraps the model already: it numbers modules too, and gathers their parameters itself."""
    return hasattr(model, "ds_id")


def is_engine(model: Any) -> bool:
    """Whether this is the engine itself; by the name of its class, since importing DeepSpeed takes seconds."""
    return any(cls.__name__ == "DeepSpeedEngine" for cls in type(model).__mro__)


def local_share(tensor: Tensor) -> Tensor | None:
    """This rank's part of an ``is_empty_share``; None where it is swapped out. Public names give the whole only."""
    share: Tensor = tensor.ds_tensor  # type: ignore[attr-defined]
    swapped = getattr(getattr(share, "status", None), "name", "") == "NOT_AVAILABLE"
    return None if swapped else share
