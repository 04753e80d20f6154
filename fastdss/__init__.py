"""fastdss: dynamic safety shaping (STAR-DSS, arXiv 2505.17196) made cheap.

Public names load on first use, so that ``import fastdss`` imports neither triton nor transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .version import __version__

_HOME = {
    "DSSLoss": "loss.functional",
    "dss_loss": "loss.functional",
    "live_rows": "loss.functional",
    "token_logprobs": "loss.functional",
    "weighted_ce": "loss.functional",
    "StarScores": "star.scores",
    "star_scores": "star.scoring",
    "AnswerField": "guards.spec",
    "Guard": "star.guard",
    "GuardSpec": "guards.spec",
    "StarStream": "star.stream",
    "disable_dss": "train.enable",
    "enable_dss": "train.enable",
    "reference_logprobs": "train.reference",
    "DSSCollator": "train.collator",
    "prepare_dss_dataset": "train.prepare",
    "DSSTrainer": "train.trainer",
    "DSSSFTTrainer": "train.sft_trainer",
    "StarScorer": "corpus.scorer",
    "score_dataset": "corpus.run",
}
__all__ = ["__version__", *_HOME]

if TYPE_CHECKING:
    from .corpus.run import score_dataset as score_dataset
    from .corpus.scorer import StarScorer as StarScorer
    from .guards.spec import AnswerField as AnswerField
    from .guards.spec import GuardSpec as GuardSpec
    from .loss.functional import DSSLoss as DSSLoss
    from .loss.functional import dss_loss as dss_loss
    from .loss.functional import live_rows as live_rows
    from .loss.functional import token_logprobs as token_logprobs
    from .loss.functional import weighted_ce as weighted_ce
    from .star.guard import Guard as Guard
    from .star.scores import StarScores as StarScores
    from .star.scoring import star_scores as star_scores
    from .star.stream import StarStream as StarStream
    from .train.collator import DSSCollator as DSSCollator
    from .train.enable import disable_dss as disable_dss
    from .train.enable import enable_dss as enable_dss
    from .train.prepare import prepare_dss_dataset as prepare_dss_dataset
    from .train.reference import reference_logprobs as reference_logprobs
    from .train.sft_trainer import DSSSFTTrainer as DSSSFTTrainer
    from .train.trainer import DSSTrainer as DSSTrainer


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'fastdss' has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
