"""Answers of a classification head: which of its classes are read, and the score that their logits make."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fastdss.errors import UserError

from .spec import GuardSpec


class Classes:
    """What ``Answers`` is for words: one place, the end of the rendering, and a column for each class of the spec."""

    tails: Sequence[tuple[int, ...]] = ((),)

    def __init__(self, spec: GuardSpec, config: Any) -> None:
        safe, unsafe, other = spec.words
        self.spec = spec
        self.token_ids = _class_ids(spec, _names(spec, config), (*safe, *unsafe, *other))
        self._safe, self._unsafe = len(safe), len(unsafe)

    def scores(self, logits: Tensor, temperature: float) -> Tensor:
        """P(safe) ``[...]`` from logits ``[..., 1, classes]``."""
        logits = logits[..., 0, :] / temperature
        safe, unsafe, other = logits.split(
            [self._safe, self._unsafe, logits.shape[-1] - self._safe - self._unsafe], dim=-1
        )
        if self.spec.independent:
            return torch.sigmoid(torch.cat([safe, -unsafe], dim=-1)).amin(-1)
        shares = torch.softmax(torch.cat([safe, unsafe, other], dim=-1), dim=-1)
        score = shares[..., : self._safe].sum(-1)
        if self.spec.other_weight:
            score = score + self.spec.other_weight * shares[..., self._safe + self._unsafe :].sum(-1)
        return score.clamp(max=1)


def _names(spec: GuardSpec, config: Any) -> dict[str, int]:
    """The numbers of the head's classes, by name and by the number itself as text."""
    named: Mapping[str, Any] = (
        getattr(config, "response_risk_level_map" if spec.head == "token" else "id2label", None) or {}
    )
    return {str(int(index)): int(index) for index in named} | {str(name): int(index) for index, name in named.items()}


def _class_ids(spec: GuardSpec, known: Mapping[str, int], names: Sequence[str]) -> list[int]:
    ids = [known[name] for name in names if name in known]
    whole = spec.independent or set(ids) == set(known.values())
    if len(set(ids)) != len(names) or not whole:
        raise UserError(
            f"{spec.name}: expected a head over the classes {sorted(names)}, the config has {sorted(known)}"
        )
    return ids
