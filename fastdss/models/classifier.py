"""Models of transformers that classify a whole text: what fastdss must know of their heads.

``score`` and the rule of the last token that is no padding are those of transformers' classifiers on causal backbones
(``GenericForSequenceClassification``); tests hold them against the classes themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from .causal_lm import LMHead, backbone


def class_head(model: Any) -> LMHead | None:
    """The head of a sequence classifier on a causal backbone; None for any other model."""
    score = getattr(model, "score", None)
    if not isinstance(score, nn.Linear) or is_bidirectional(model):
        return None
    # The config's scale and softcap belong to the language model's head.
    return LMHead(score.weight, score.bias, 1.0, None)


def is_bidirectional(model: Any) -> bool:
    """Whether the model's tokens see those after them, so that no two prefixes of a text share anything."""
    causal = [module.is_causal for module in backbone(model).modules() if hasattr(module, "is_causal")]
    return not any(causal)


def separator(model: Any, tokenizer: Any) -> int | None:
    """The token that divides two texts, where the model tells the first from the second by ``token_type_ids``."""
    found: int | None = getattr(tokenizer, "sep_token_id", None)
    return found if (getattr(model.config, "type_vocab_size", None) or 0) > 1 else None


def token_types(ids: Tensor, separator: int | None) -> dict[str, Tensor]:
    """``token_type_ids`` of ``ids`` ``[B, T]`` as BERT's tokenizers give them for two texts: 1 behind the first
    separator. Nothing without one."""
    if separator is None:
        return {}
    divides = ids == separator
    return {"token_type_ids": (divides.cumsum(-1) - divides.long()).clamp(max=1)}


def without_padding(model: Any, ids: Sequence[int]) -> list[int]:
    """``ids`` up to the last token that is not the padding's id, at which the model's head is read."""
    pad = model.config.get_text_config().pad_token_id
    end = next((k for k in range(len(ids), 0, -1) if ids[k - 1] != pad), len(ids))
    return list(ids[:end])
