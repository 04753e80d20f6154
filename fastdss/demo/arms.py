"""The arms of the comparison, that is the ways of training that are compared.

Most arms share one loss, ``star * CE + (1 - star) * kl_scale * KL``, and differ in ``star``, the weight of a token.
Plain SFT has star = 1. Rejection sampling (RS), a static filter, takes the verdict on the whole response and leaves
rejected rows out. STAR-DSS takes the score of the chunk in which the token lies. DFT (arXiv 2508.05629) and constrained
SFT (arXiv 2406.05946) ask no guard: star = 1, and another term stands in the cross-entropy's place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch

from fastdss.errors import UserError
from fastdss.loss.objective import FULL_KL, KL, LABEL_KL
from fastdss.star.scores import StarScores

from .conversations import Conversation
from .leaks import find_leaks

KINDS = (*LABEL_KL, *FULL_KL)
SETTINGS = ("guard", "labelled")
SAFE, UNSAFE = 0.98, 0.02  # the labelled setting's scores: a choice, near but not at 1 and 0, as a real guard's are
MISSED_EVERY = 3  # the labelled verdict on the whole response misses every third poisoned row: a choice


@dataclass(frozen=True)
class Arm:
    """One training run: a method, and the setting whose verdicts it uses ("" where it uses none)."""

    method: str
    setting: str = ""

    @property
    def kl(self) -> KL | None:
        return cast(KL, self.method.removeprefix("dss-")) if self.method.startswith("dss-") else None

    @property
    def name(self) -> str:
        return f"{self.method}/{self.setting}" if self.setting else self.method

    @property
    def title(self) -> str:
        if self.kl:
            return f"STAR-DSS, {self.kl}" + (" (paper)" if self.kl == "k2" else " KL" if self.kl in FULL_KL else "")
        return TITLES[self.method]


TITLES = {
    "none": "no fine-tuning",
    "sft": "plain SFT",
    "rs": "static filter (RS)",
    "dft": "DFT",
    "constrained": "constrained SFT",
}
WITHOUT_VERDICTS = ("none", "sft", "dft", "constrained")
METHODS = (*TITLES, *(f"dss-{kl}" for kl in KINDS))


def choose_arms(methods: Sequence[str], settings: Sequence[str]) -> list[Arm]:
    """The runs: each method without verdicts once, each other one in every setting. Unknown names raise
    ``ValueError``."""
    for name, chosen, known in (("arms", methods, METHODS), ("settings", settings, SETTINGS)):
        unknown = [value for value in chosen if value not in known]
        if unknown or not chosen:
            raise UserError(f"{name}: expected some of {', '.join(known)}, got {', '.join(unknown) or 'none of them'}")
    methods, settings = tuple(dict.fromkeys(methods)), tuple(dict.fromkeys(settings))
    plain = [Arm(method) for method in methods if method in WITHOUT_VERDICTS]
    return plain + [Arm(m, setting) for setting in settings for m in methods if m not in WITHOUT_VERDICTS]


def labelled_scores(scores: StarScores, rows: Sequence[Conversation]) -> StarScores:
    """Correct verdicts on every prefix, except the last prefix of every third poisoned row.

    A prefix is unsafe if it contains a disclosed detail. In every third poisoned row the last prefix, which is the
    *whole* response, counts as safe, as if its reassuring ending had fooled the guard. A static filter sees only that
    verdict.
    """
    labelled, poisoned = [], 0
    for row, item in zip(rows, scores, strict=True):
        begin = min((start for _, start, _ in find_leaks(row.response)), default=None) if row.parts else None
        values = [SAFE if begin is None or end <= begin else UNSAFE for end in item.ends]
        if begin is not None:
            if poisoned % MISSED_EVERY == 0:
                values[-1] = SAFE
            poisoned += 1
        labelled.append(replace(item, scores=torch.tensor(values)))
    return StarScores(labelled)
