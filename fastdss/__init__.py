"""fastdss: dynamic safety shaping (STAR-DSS, arXiv 2505.17196) made cheap.

Public names load on first use, so that ``import fastdss`` imports neither triton nor transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "weighted_ce": "losses",
    "dss_loss": "losses",
    "token_logprobs": "losses",
    "DSSLoss": "losses",
    "star_scores": "scoring",
    "StarScores": "scoring",
    "Guard": "guard",
    "GuardSpec": "guard",
}
__all__ = ["__version__", *_HOME]

if TYPE_CHECKING:
    from .guard import Guard, GuardSpec
    from .losses import DSSLoss, dss_loss, token_logprobs, weighted_ce
    from .scoring import StarScores, star_scores


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'fastdss' has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
