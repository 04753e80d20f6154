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
    from .guard import Guard as Guard
    from .guard import GuardSpec as GuardSpec
    from .losses import DSSLoss as DSSLoss
    from .losses import dss_loss as dss_loss
    from .losses import token_logprobs as token_logprobs
    from .losses import weighted_ce as weighted_ce
    from .scoring import StarScores as StarScores
    from .scoring import star_scores as star_scores


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'fastdss' has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
