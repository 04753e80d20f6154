"""Runs texts through a model whose tokens also see later tokens, such as an encoder.

Prefixes cannot share computation there, so every text is computed whole, in batches of texts of about one length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastdss.models.batching import length_batches, padded_rows
from fastdss.models.classifier import token_types

from .in_use import in_use, input_device
from .memory import halved


def batched_logits(
    model: Any,
    class_ids: Sequence[int],
    renderings: Sequence[Sequence[int]],
    *,
    separator: int | None = None,
    budget: int | None = None,
    report: Callable[[int], None] = lambda done: None,
) -> Tensor:
    """Logits ``[len(renderings), R]`` of the classes, as one forward per rendering would give them.

    Equal renderings are computed once. Texts are sorted by length into batches of at most ``budget`` tokens, padding
    included; the attention mask hides the padding. When memory runs out, batches are halved for the rest of the call.
    ``separator`` is the token between two texts, for models that give each of them a number (token types).
    """
    budget = budget or (2048 if input_device(model).type == "cpu" else 65536)
    rows = {ids: row for row, ids in enumerate(dict.fromkeys(map(tuple, renderings)))}
    unique = list(rows)
    found: dict[int, Tensor] = {}
    batches = _batches(unique, range(len(unique)), budget)
    with in_use(model):
        while batches:
            chosen = batches[0]
            batch = [unique[i] for i in chosen]
            try:
                logits = _logits(model, batch, separator)[:, list(class_ids)].cpu()
            except RuntimeError as error:
                area = len(batch) * max(map(len, batch))
                budget = halved(area, error, possible=len(batch) > 1, least=1)
                batches = _batches(unique, [i for some in batches for i in some], budget)
            else:
                batches.pop(0)
                found |= dict(zip(chosen, logits.to(torch.promote_types(logits.dtype, torch.float32)), strict=True))
                report(len(batch))
    report(len(renderings) - len(rows))
    return torch.stack([found[rows[tuple(ids)]] for ids in renderings])


def _batches(texts: Sequence[Sequence[int]], chosen: Sequence[int], budget: int) -> list[list[int]]:
    """The chosen of the texts in batches, short ones first."""
    return [[chosen[k] for k in batch] for batch in length_batches([len(texts[i]) for i in chosen], padded=budget)]


def _logits(model: Any, batch: Sequence[Sequence[int]], separator: int | None) -> Tensor:
    """``[B, classes]``, on the model's device."""
    device, longest = input_device(model), max(map(len, batch))
    ids = torch.tensor(padded_rows(batch, model.config.pad_token_id or 0, longest))
    mask = torch.tensor(padded_rows([[1] * len(text) for text in batch], 0, longest))
    given = {"input_ids": ids, "attention_mask": mask, **token_types(ids, separator)}
    logits: Tensor = model(**{name: t.to(device) for name, t in given.items()}).logits
    return logits
