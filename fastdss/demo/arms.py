"""The arms of the comparison: each is a way to turn the guard's scores into token weights, and a KL term.

The arms share one loss: ``star * CE + (1 - star) * kl_scale * KL``. Plain SFT has star = 1; rejection sampling has the
verdict on the whole response, and leaves rejected rows out; STAR-DSS has the score of each token's chunk. DFT and
constrained SFT ask no guard and have losses of their own (``rivals.py``).
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
SAFE, UNSAFE = 0.98, 0.02  # how sure the labelled setting's verdicts are; a guard is never at 0 or 1
MISSED_EVERY = 3  # the labelled setting's verdict on the whole response misses every third poisoned row


@dataclass(frozen=True)
class Arm:
    """One training run: ``method`` under the verdicts of ``setting`` ("" where verdicts play no part)."""

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
    """The runs: methods that use no verdicts once, the others in every setting. ``ValueError`` on unknown names."""
    for name, chosen, known in (("arm", methods, METHODS), ("setting", settings, SETTINGS)):
        for value in chosen:
            if value not in known:
                raise UserError(f"unknown {name} {value!r}; choose from {', '.join(known)}")
        if not chosen:
            raise UserError(f"no {name} chosen; choose from {', '.join(known)}")
    methods, settings = tuple(dict.fromkeys(methods)), tuple(dict.fromkeys(settings))
    plain = [Arm(method) for method in methods if method in WITHOUT_VERDICTS]
    return plain + [Arm(m, setting) for setting in settings for m in methods if m not in WITHOUT_VERDICTS]


def labelled_scores(scores: StarScores, rows: Sequence[Conversation]) -> StarScores:
    """Known verdicts, except that the reassuring ending of every third poisoned row fools the last one.

    A prefix is unsafe from the first word of a disclosed detail on. In the missed rows the verdict on the *whole*
    response (the last prefix) is safe again; that verdict is all that a static filter sees.
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
