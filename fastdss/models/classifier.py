"""Models of transformers that classify a whole text: what fastdss must know of their heads.

``score`` and the rule of the last token that is no padding are those of transformers' classifiers on causal backbones
(``GenericForSequenceClassification``); tests hold them against the classes themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from .causal_lm import LMHead, backbone


def class_head(model: Any) -> LMHead | None:
    """The head of a sequence classifier on a causal backbone; None for any other model."""
    score = getattr(model, "score", None)
    if not isinstance(score, nn.Linear) or is_bidirectional(model):
        return None
    return LMHead(score.weight, score.bias, 1.0, None)  # scales and softcaps of the config are the language model's


def is_bidirectional(model: Any) -> bool:
    """Whether the model's tokens see those after them, so that no two prefixes of a text share anything."""
    causal = [module.is_causal for module in backbone(model).modules() if hasattr(module, "is_causal")]
    return not any(causal)


def without_padding(model: Any, ids: Sequence[int]) -> list[int]:
    """``ids`` up to the last token that is not the padding's id, at which the model's head is read."""
    pad = model.config.get_text_config().pad_token_id
    end = next((k for k in range(len(ids), 0, -1) if ids[k - 1] != pad), len(ids))
    return list(ids[:end])
