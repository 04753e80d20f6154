"""fastdss: dynamic safety shaping (STAR-DSS, arXiv 2505.17196) made cheap.

Public names load on first use, so that ``import fastdss`` imports neither triton nor transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "DSSLoss": "losses",
    "dss_loss": "losses",
    "live_rows": "losses",
    "token_logprobs": "losses",
    "weighted_ce": "losses",
    "StarScores": "scoring",
    "star_scores": "scoring",
    "AnswerField": "guard",
    "Guard": "guard",
    "GuardSpec": "guard",
    "StarStream": "stream",
    "disable_dss": "enable",
    "enable_dss": "enable",
    "reference_logprobs": "reference",
    "DSSCollator": "collator",
    "prepare_dss_dataset": "collator",
    "DSSTrainer": "trainer",
    "DSSSFTTrainer": "sft_trainer",
    "StarScorer": "corpus.scorer",
    "score_dataset": "corpus.run",
}
__all__ = ["__version__", *_HOME]

if TYPE_CHECKING:
    from .collator import DSSCollator as DSSCollator
    from .collator import prepare_dss_dataset as prepare_dss_dataset
    from .corpus.run import score_dataset as score_dataset
    from .corpus.scorer import StarScorer as StarScorer
    from .enable import disable_dss as disable_dss
    from .enable import enable_dss as enable_dss
    from .guard import AnswerField as AnswerField
    from .guard import Guard as Guard
    from .guard import GuardSpec as GuardSpec
    from .losses import DSSLoss as DSSLoss
    from .losses import dss_loss as dss_loss
    from .losses import live_rows as live_rows
    from .losses import token_logprobs as token_logprobs
    from .losses import weighted_ce as weighted_ce
    from .reference import reference_logprobs as reference_logprobs
    from .scoring import StarScores as StarScores
    from .scoring import star_scores as star_scores
    from .sft_trainer import DSSSFTTrainer as DSSSFTTrainer
    from .stream import StarStream as StarStream
    from .trainer import DSSTrainer as DSSTrainer


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'fastdss' has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
