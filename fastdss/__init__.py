"""fastdss: dynamic safety shaping (STAR-DSS, arXiv 2505.17196) made cheap.

The names listed here are the public interface; the modules that define them may move. A name is imported on its first
use, so that ``import fastdss`` imports neither triton nor transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .optional import Unavailable
from .version import __version__

_HOME = {  # public name -> the module that defines it
    "KL": "loss.objective",
    "DSSLossOutput": "loss.functional",
    "ForwardReference": "loss.functional",
    "dss_loss": "loss.functional",
    "forward_reference": "loss.functional",
    "live_rows": "loss.functional",
    "token_logprobs": "loss.functional",
    "weighted_ce": "loss.functional",
    "weighted_ce_stats": "loss.functional",
    "WeightedCEOutput": "loss.functional",
    "AnswerField": "guards.spec",
    "GuardSpec": "guards.spec",
    "Flag": "star.scored",
    "Guard": "star.guard",
    "ScoredResponse": "star.scored",
    "ScoringOptions": "star.options",
    "Promise": "star.promise",
    "TrunkProbe": "star.probe",
    "StarScores": "star.scores",
    "StarStream": "star.stream",
    "StarStreams": "star.stream",
    "star_scores": "star.scoring",
    "StarScorer": "corpus.scorer",
    "score_dataset": "corpus.run",
    "DSSConfig": "train.config",
    "disable_dss": "train.enable",
    "enable_dss": "train.enable",
    "add_reference_logprobs": "train.reference",
    "reference_columns": "train.reference",
    "reference_logprobs": "train.reference",
    "DSSCollator": "train.collator",
    "pack": "train.pack",
    "prepare_dss_dataset": "train.prepare",
    "DSSTrainer": "train.trainer",
    "DSSSFTTrainer": "train.sft_trainer",
    "backbone": "models.causal_lm",
    "lm_head": "models.causal_lm",
    "load_model": "models.sources",
    "RowError": "errors",
    "UserError": "errors",
}
_WINGS = ("guards",)  # subpackages that users reach as attributes, such as fastdss.guards.wildguard
__all__ = ["__version__", *_HOME, *_WINGS]

if TYPE_CHECKING:
    from . import guards as guards
    from .corpus.run import score_dataset as score_dataset
    from .corpus.scorer import StarScorer as StarScorer
    from .errors import RowError as RowError
    from .errors import UserError as UserError
    from .guards.spec import AnswerField as AnswerField
    from .guards.spec import GuardSpec as GuardSpec
    from .loss.functional import DSSLossOutput as DSSLossOutput
    from .loss.functional import ForwardReference as ForwardReference
    from .loss.functional import WeightedCEOutput as WeightedCEOutput
    from .loss.functional import dss_loss as dss_loss
    from .loss.functional import forward_reference as forward_reference
    from .loss.functional import live_rows as live_rows
    from .loss.functional import token_logprobs as token_logprobs
    from .loss.functional import weighted_ce as weighted_ce
    from .loss.functional import weighted_ce_stats as weighted_ce_stats
    from .loss.objective import KL as KL
    from .models.causal_lm import backbone as backbone
    from .models.causal_lm import lm_head as lm_head
    from .models.sources import load_model as load_model
    from .star.guard import Guard as Guard
    from .star.options import ScoringOptions as ScoringOptions
    from .star.probe import TrunkProbe as TrunkProbe
    from .star.promise import Promise as Promise
    from .star.scored import Flag as Flag
    from .star.scored import ScoredResponse as ScoredResponse
    from .star.scores import StarScores as StarScores
    from .star.scoring import star_scores as star_scores
    from .star.stream import StarStream as StarStream
    from .star.stream import StarStreams as StarStreams
    from .train.collator import DSSCollator as DSSCollator
    from .train.config import DSSConfig as DSSConfig
    from .train.enable import disable_dss as disable_dss
    from .train.enable import enable_dss as enable_dss
    from .train.pack import pack as pack
    from .train.prepare import prepare_dss_dataset as prepare_dss_dataset
    from .train.reference import add_reference_logprobs as add_reference_logprobs
    from .train.reference import reference_columns as reference_columns
    from .train.reference import reference_logprobs as reference_logprobs
    from .train.sft_trainer import DSSSFTTrainer as DSSSFTTrainer
    from .train.trainer import DSSTrainer as DSSTrainer


def __getattr__(name: str) -> Any:
    if name in _WINGS:
        return importlib.import_module(f".{name}", __name__)
    if name not in _HOME:
        raise AttributeError(f"module 'fastdss' has no attribute {name!r}")
    try:
        value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    except ImportError as error:
        value = Unavailable(name, error)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
