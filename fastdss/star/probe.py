"""Approximate scores: a guard's own hidden states on the trunk often know the verdict that its branch would compute.

Most of what a guard computes are branches: the template's tail, once per boundary. A ridge regression from the trunk's hidden
states, at the token after which a branch leaves it, to the branch's verdict is fitted on a sample of rows, and knows how
doubtful each of its predictions is. Branches of doubtful predictions are computed as ever. Which doubt is low enough is
not assumed but shown, on rows that the fit did not see (``promise.py``); where it cannot be shown, nothing is approximated.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fastdss.errors import UserError
from fastdss.guards.guard import GuardModel

from .promise import Audit, Promise, choose_threshold, wrong_from
from .ridge import Ridge

THRESHOLDS = tuple(0.001 * 1.2**step for step in range(38))  # of doubt, up to 0.85: fixed before any row is seen
_MOST_LAYERS = 8  # whose hidden states are read, evenly spaced: a fit holds them of every boundary of its sample
_LIMIT = 1e-6  # scores nearer to 0 or 1 are fitted as this


@dataclass(frozen=True)
class Certificate:
    """What was shown about a probe, and on what."""

    promise: Promise
    threshold: float | None  # doubt up to which scores are approximated; None: it could not be shown for any
    fitted_rows: int
    sampled_rows: int  # others, on which the threshold was chosen
    wrong_rows: int  # of these, at the threshold
    approximated: float  # share of their scores that the threshold spares
    fit: float  # R^2 of the verdict's logit on them

    def __str__(self) -> str:
        if self.threshold is None:
            few = self.sampled_rows < self.promise.least_rows
            why = f"it takes {self.promise.least_rows} sampled rows at least" if few else f"R^2 is {self.fit:.2f}"
            return f"nothing is approximated: {self.promise} could not be shown on {self.sampled_rows} rows ({why})"
        return (
            f"{self.approximated:.0%} of the scores are approximated: {self.promise}; "
            f"{self.wrong_rows} of {self.sampled_rows} sampled rows were wrong"
        )


class Reading:
    """A gate that lets every branch through and keeps what the trunk knew before it."""

    def __init__(self, layers: Sequence[int] | None = None) -> None:
        self.layers = layers
        self.states: dict[int, Tensor] = {}

    def read(self, scores: list[int], states: Tensor) -> None:
        if self.layers is None:
            count = states.shape[0] - 1
            self.layers = sorted({round(count * (k + 1) / _MOST_LAYERS) for k in range(_MOST_LAYERS)} - {0})
        for place, score in enumerate(scores):
            self.states[score] = states[list(self.layers), place]  # [layers, D]

    def passes(self, score: int) -> bool:
        return True


class Gating(Reading):
    """Lets through what the probe doubts, and all of the rows that are audited."""

    def __init__(self, probe: TrunkProbe, audited: frozenset[int]) -> None:
        super().__init__(probe.layers)
        self.probe = probe
        self.audited = audited  # scores
        self.predicted: dict[int, tuple[float, float]] = {}  # score -> (P(safe), doubt)

    def read(self, scores: list[int], states: Tensor) -> None:
        assert self.layers is not None
        values, doubts = self.probe.predict(states[list(self.layers)].transpose(0, 1))
        self.predicted |= zip(scores, zip(values.tolist(), doubts.tolist(), strict=True), strict=True)

    def certain(self, score: int) -> bool:
        """Whether the prediction of this score would do."""
        threshold = self.probe.certificate.threshold
        return threshold is not None and score in self.predicted and self.predicted[score][1] <= threshold

    def passes(self, score: int) -> bool:
        return score in self.audited or not self.certain(score)


@dataclass
class TrunkProbe:
    """What ``star_scores(guard, batch, approx=probe)`` approximates scores by, and what was shown about it.

    ``audit_share`` of the rows are computed whole and compared; where they speak against the promise, ``audit.disagrees``
    and everything is computed exactly from then on. Which rows these are follows from ``seed`` and the rows alone.
    """

    layers: tuple[int, ...]
    ridge: Ridge
    certificate: Certificate
    audit: Audit
    guard_name: str
    audit_share: float = 0.05
    seed: int = 0

    @classmethod
    def fit(
        cls,
        guard: GuardModel,
        scored: Sequence[Any],
        states: Sequence[Mapping[int, Tensor]],
        layers: Sequence[int],
        *,
        promise: Promise,
        audit_share: float = 0.05,
        seed: int = 0,
    ) -> TrunkProbe:
        """scored: ``ScoredResponse`` of a random sample of rows, computed exactly; states: for each, the hidden states
        ``[layers, D]`` before the branch of its k-th score, as far as there is one.

        Half of the rows are fitted, on the others the threshold is chosen.
        """
        order = list(range(len(scored)))
        random.Random(seed).shuffle(order)
        half = max(len(order) // 3, min(len(order) - promise.least_rows, len(order) // 2))
        fitted, sampled = sorted(order[:half]), sorted(order[half:])
        features, targets, rows = _table(scored, states, fitted)
        if len(set(rows)) < 8:
            raise UserError(f"batch: expected at least 8 rows with branches to fit on, got {len(set(rows))}")
        used, ridge = _best_layers(features, targets, rows, layers)
        probe = cls(
            tuple(layers[k] for k in used), ridge, Certificate(promise, None, len(fitted), len(sampled), 0, 0.0, 0.0),
            Audit(promise), guard.spec.name, audit_share, seed,
        )  # fmt: skip
        probe.certificate = probe._certified(scored, states, sampled, used)
        return probe

    def predict(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """states: ``[n, layers, D]`` -> P(safe) ``[n]``, and how far one standard deviation can move it ``[n]``."""
        logits, spread = self.ridge.predict(states.flatten(1))
        values = torch.sigmoid(logits)
        moved = torch.stack([torch.sigmoid(logits + sign * spread) for sign in (-1, 1)])
        return values, (moved - values).abs().amax(0)

    def audits(self, row: Sequence[Mapping[str, Any]]) -> bool:
        """Whether a conversation is computed whole, by a hash of its contents: the same in every run and order."""
        text = "\0".join([str(self.seed), *(str(turn["content"]) for turn in row)])
        digest = hashlib.sha256(text.encode()).digest()
        return int.from_bytes(digest[:8], "big") < self.audit_share * 2**64

    def _certified(
        self, scored: Sequence[Any], states: Sequence[Mapping[int, Tensor]], sampled: list[int], used: list[int]
    ) -> Certificate:
        promise, empty = self.certificate.promise, self.certificate
        wrong, every_doubt, predicted, known = [], [], [], []
        for row in sampled:
            places = sorted(states[row])
            if not places:
                wrong.append(float("inf"))
                continue
            values, doubts = self.predict(torch.stack([states[row][k][used] for k in places]))
            exact = scored[row].scores[places].double()
            wrong.append(wrong_from(doubts.tolist(), (values - exact).abs().tolist(), promise.tolerance))
            every_doubt += doubts.tolist()
            predicted.append(torch.logit(values, eps=_LIMIT))
            known.append(torch.logit(exact, eps=_LIMIT))
        threshold = choose_threshold(THRESHOLDS, wrong, promise)
        total = sum(len(scored[row].ends) for row in sampled)
        spared = 0 if threshold is None else sum(doubt <= threshold for doubt in every_doubt)
        return replace(
            empty,
            threshold=threshold if spared else None,
            wrong_rows=0 if threshold is None else sum(value <= threshold for value in wrong),
            approximated=spared / max(total, 1),
            fit=_r_squared(predicted, known),
        )


def _table(
    scored: Sequence[Any], states: Sequence[Mapping[int, Tensor]], rows: Sequence[int]
) -> tuple[Tensor, Tensor, list[int]]:
    """Hidden states ``[n, layers, D]``, verdict logits ``[n]`` and rows of all boundaries that have a branch."""
    found = [(states[row][k], scored[row].scores[k], row) for row in rows for k in sorted(states[row])]
    if not found:
        return torch.empty(0, 1, 1), torch.empty(0), []
    targets = torch.logit(torch.stack([score for _, score, _ in found]).double(), eps=_LIMIT)
    return torch.stack([state for state, _, _ in found]), targets, [row for _, _, row in found]


def _best_layers(features: Tensor, targets: Tensor, rows: list[int], layers: Sequence[int]) -> tuple[list[int], Ridge]:
    """The hidden states that predict other rows best: one layer's, or all of them together."""
    candidates = [*([k] for k in range(len(layers))), list(range(len(layers)))]
    fits = [(used, Ridge.fit(features[:, used].flatten(1), targets, rows)) for used in candidates]
    return min(fits, key=lambda pair: pair[1].spread)


def _r_squared(predicted: Sequence[Tensor], known: Sequence[Tensor]) -> float:
    if not known:
        return 0.0
    z, truth = torch.cat(list(predicted)), torch.cat(list(known))
    return float(1 - (z - truth).square().sum() / (truth - truth.mean()).square().sum().clamp(min=1e-12))
