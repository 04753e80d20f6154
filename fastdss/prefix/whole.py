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

from .in_use import in_use


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
    included; the attention mask hides the padding. ``separator`` is the token between two texts, for models that give
    each of them a number (token types).
    """
    device = next(model.parameters()).device
    budget = budget or (2048 if device.type == "cpu" else 65536)
    rows = {ids: row for row, ids in enumerate(dict.fromkeys(map(tuple, renderings)))}
    unique = list(rows)
    found: Tensor | None = None
    with in_use(model):
        for chosen in length_batches([*map(len, unique)], padded=budget):
            batch = [unique[i] for i in chosen]
            longest = max(map(len, batch))
            ids = torch.tensor(padded_rows(batch, model.config.pad_token_id or 0, longest))
            mask = torch.tensor(padded_rows([[1] * len(text) for text in batch], 0, longest))
            given = {"input_ids": ids, "attention_mask": mask, **token_types(ids, separator)}
            logits = model(**{name: t.to(device) for name, t in given.items()}).logits[:, list(class_ids)].cpu()
            if found is None:
                dtype = torch.promote_types(logits.dtype, torch.float32)
                found = torch.full((len(rows), len(class_ids)), float("nan"), dtype=dtype)
            found[[rows[text] for text in batch]] = logits.to(found)
            report(len(batch))
    assert found is not None
    report(len(renderings) - len(rows))
    return found[[rows[tuple(ids)] for ids in renderings]]
