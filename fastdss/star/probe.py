"""Approximate scores: a guard's own hidden states on the trunk often know the verdict that its branch would compute.

Most of what a guard computes are branches: the template's tail, once per boundary. A ridge regression from the trunk's
hidden states, at the token after which a branch leaves it, to the branch's verdict is fitted on a sample of rows, and
knows how doubtful each of its predictions is. Branches of doubtful predictions are computed as ever. Which doubt is
low enough is not assumed but shown, on rows that the fit did not see (``promise.py``); where it cannot be shown,
nothing is approximated.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from fastdss.chat.conversation import Message
from fastdss.errors import UserError
from fastdss.guards.guard import GuardModel

from .options import ScoringOptions
from .promise import Audit, Promise, choose_threshold, wrong_from
from .ridge import Ridge
from .scored import ScoredResponse
from .scores import StarScores
from .scoring import read_batch, score_turns

THRESHOLDS = tuple(0.001 * 1.2**step for step in range(38))  # of doubt, up to 0.85: fixed before any row is seen
_MOST_LAYERS = 8  # whose hidden states are read, evenly spaced: a fit holds them of every boundary of its sample
_FEWEST_ROWS = 16  # to fit on, of which a few may have all their scores on the trunk
_FEWEST_BRANCHED = 12
_LIMIT = 1e-6  # scores nearer to 0 or 1 are fitted as this

States = Mapping[int, Tensor]  # of one response: k -> [layers, D] before the branch of its k-th score


@dataclass(frozen=True)
class Certificate:
    """What was shown about a probe, and on what."""

    promise: Promise
    threshold: float | None  # doubt up to which scores are approximated; None: it could not be shown for any
    fitted_rows: int
    sampled_rows: int  # others, on which the threshold was chosen
    wrong_rows: int = 0  # of these, at the threshold
    approximated: float = 0.0  # share of their scores that the threshold spares
    fit: float = 0.0  # R^2 of the verdict's logit on them

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
    """Lets every branch through, and keeps what the trunk knew before it."""

    withdrawn = False

    def __init__(self) -> None:
        self.layers: tuple[int, ...] = ()
        self.states: dict[int, Tensor] = {}  # score -> [layers, D]
        self._kept: list[int] = []

    def gate(
        self, guards: Sequence[GuardModel], texts: Sequence[list[Message]], kept: Sequence[int], options: ScoringOptions
    ) -> Reading:
        check_single(guards)
        self._kept = list(kept)
        return self

    def read(self, scores: list[int], states: Tensor) -> None:
        count = states.shape[0] - 1
        self.layers = tuple(sorted({round(count * (k + 1) / _MOST_LAYERS) for k in range(_MOST_LAYERS)} - {0}))
        self.states |= {score: states[list(self.layers), place] for place, score in enumerate(scores)}

    def passes(self, score: int) -> bool:
        return True

    def settle(self, scores: Tensor) -> Tensor:
        return torch.ones(len(scores), dtype=torch.bool)

    def by_response(self) -> list[States]:
        """What was read of each response."""
        firsts = [0, *accumulate(self._kept)]
        return [
            {k: self.states[first + k] for k in range(count) if first + k in self.states}
            for first, count in zip(firsts, self._kept, strict=False)
        ]


class Gating:
    """Lets through what the probe doubts, and all of the responses that are audited."""

    withdrawn = False

    def __init__(self, probe: TrunkProbe, audited: Sequence[bool], kept: Sequence[int]) -> None:
        self.probe = probe
        self.audited = list(audited)
        self.kept = list(kept)
        self._whole = {
            first + k
            for first, count, whole in zip([0, *accumulate(kept)], kept, audited, strict=False)
            for k in range(count if whole else 0)
        }
        self._predicted: dict[int, float] = {}  # of the scores that the probe is certain of

    def read(self, scores: list[int], states: Tensor) -> None:
        values, doubts = self.probe.predict(states[list(self.probe.layers)].transpose(0, 1))
        threshold = self.probe.certificate.threshold
        assert threshold is not None
        found = zip(scores, values.tolist(), doubts.tolist(), strict=True)
        self._predicted |= {score: value for score, value, doubt in found if doubt <= threshold}

    def passes(self, score: int) -> bool:
        return score in self._whole or score not in self._predicted

    def settle(self, scores: Tensor) -> Tensor:
        exact = torch.ones(len(scores), dtype=torch.bool)
        tolerance, first = self.probe.certificate.promise.tolerance, 0
        for count, whole in zip(self.kept, self.audited, strict=True):
            known = [k for k in range(first, first + count) if k in self._predicted]
            predicted = torch.tensor([self._predicted[k] for k in known], dtype=scores.dtype)
            if whole:
                off = (predicted - scores[known]).abs()
                self.probe.audit.add(bool(len(known)) and not bool((off <= tolerance).all()))
            else:
                scores[known], exact[known] = predicted, False
            first += count
        self.withdrawn = self.probe.audit.disagrees
        return exact


@dataclass
class TrunkProbe:
    """What ``star_scores(guard, batch, approx=probe)`` approximates scores by, and what was shown about it.

    ``audit_share`` of the responses are computed whole and compared. Where they speak against the promise
    (``audit.disagrees``), a warning says so and everything is computed from then on. Which responses are audited
    follows from ``seed`` and their texts alone.
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
        batch: Mapping[str, Sequence[Any]],
        *,
        promise: Promise | None = None,
        options: ScoringOptions | None = None,
        audit_share: float = 0.05,
        seed: int = 0,
        progress: bool = False,
    ) -> tuple[TrunkProbe, StarScores]:
        """Fit on a random sample of the rows to be scored, and choose from which doubt on to compute.

        Returns the probe and the exact scores of ``batch``, which had to be computed for it. A part of the rows is
        fitted, the threshold is chosen on the others: ``promise.least_rows`` of them at least (149 by default).
        ``probe.certificate`` says what was shown; where nothing could be, ``approx=probe`` computes everything.

        Raises ``ValueError`` for several guards, guards whose score takes several readings, and too few rows to fit.
        """
        promise, options = promise or Promise(), options or ScoringOptions()
        if not 0 < audit_share < 1:
            raise UserError(f"audit_share: expected a share in (0, 1), got {audit_share}")
        reading = Reading()
        scored = score_turns([guard], read_batch(batch, options.turns), options, approx=reading, progress=progress)
        states = reading.by_response()
        usable = [i for i, item in enumerate(scored) if not item.failed]
        random.Random(seed).shuffle(usable)
        count = min(max(len(usable) // 3, _FEWEST_ROWS), max(len(usable) - promise.least_rows, _FEWEST_ROWS))
        fitted, sampled = sorted(usable[:count]), sorted(usable[count:])
        features, targets, rows = _table(scored, states, fitted)
        if len(set(rows)) < _FEWEST_BRANCHED:
            raise UserError(f"batch: expected {_FEWEST_BRANCHED} rows with branches to fit on, got {len(set(rows))}")
        used, ridge = _best_layers(features, targets, rows)
        certificate = Certificate(promise, None, len(fitted), len(sampled))
        layers = tuple(reading.layers[k] for k in used)
        probe = cls(layers, ridge, certificate, Audit(promise), guard.spec.name, audit_share, seed)
        probe.certificate = probe._certified(scored, states, sampled, used)
        return probe, scored

    def gate(
        self, guards: Sequence[GuardModel], texts: Sequence[list[Message]], kept: Sequence[int], options: ScoringOptions
    ) -> Gating | None:
        check_single(guards)
        if guards[0].spec.name != self.guard_name:
            raise UserError(f"approx: expected a probe of {guards[0].spec.name}, got one of {self.guard_name}")
        if self.certificate.threshold is None or self.audit.disagrees or options.method == "per_prefix":
            return None
        return Gating(self, [self._audits(text) for text in texts], kept)

    def predict(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """states: ``[n, layers, D]`` -> P(safe) ``[n]``, and how far one standard deviation can move it ``[n]``."""
        logits, spread = self.ridge.predict(states.flatten(1))
        values = torch.sigmoid(logits)
        moved = torch.stack([torch.sigmoid(logits + sign * spread) for sign in (-1, 1)])
        return values, (moved - values).abs().amax(0)

    def _audits(self, conversation: Sequence[Message]) -> bool:
        """By a hash of the texts: the same in every run and order."""
        text = "\0".join([str(self.seed), *(str(turn["content"]) for turn in conversation)])
        digest = hashlib.sha256(text.encode()).digest()
        return int.from_bytes(digest[:8], "big") < self.audit_share * 2**64

    def _certified(
        self, scored: Sequence[ScoredResponse], states: Sequence[States], sampled: list[int], used: list[int]
    ) -> Certificate:
        promise = self.certificate.promise
        wrong, every_doubt, predicted, known = [], [], [], []
        for row in sampled:
            places = sorted(states[row])
            if not places:  # all its scores are read on the trunk
                wrong.append(float("inf"))
                continue
            values, doubts = self.predict(torch.stack([states[row][k][used] for k in places]))
            exact = scored[row].scores[places].double()
            wrong.append(wrong_from(doubts.tolist(), (values - exact).abs().tolist(), promise.tolerance))
            every_doubt += doubts.tolist()
            predicted.append(torch.logit(values, eps=_LIMIT))
            known.append(torch.logit(exact, eps=_LIMIT))
        threshold = choose_threshold(THRESHOLDS, wrong, promise)
        spared = 0 if threshold is None else sum(doubt <= threshold for doubt in every_doubt)
        return replace(
            self.certificate,
            threshold=threshold if spared else None,
            wrong_rows=0 if threshold is None else sum(value <= threshold for value in wrong),
            approximated=spared / max(sum(len(scored[row].ends) for row in sampled), 1),
            fit=_r_squared(predicted, known),
        )


def check_single(guards: Sequence[GuardModel]) -> None:
    if len(guards) != 1:
        raise UserError(f"approx: expected one guard, got {len(guards)}")
    guard = guards[0]
    if guard.readouts != 1 or guard.bidirectional:
        raise UserError(
            f"approx: expected a guard whose score is read at one place of a prefix tree, got {guard.spec.name}"
        )


def _table(
    scored: Sequence[ScoredResponse], states: Sequence[States], rows: Sequence[int]
) -> tuple[Tensor, Tensor, list[int]]:
    """Hidden states ``[n, layers, D]``, verdict logits ``[n]`` and rows of all boundaries that have a branch."""
    found = [(states[row][k], scored[row].scores[k], row) for row in rows for k in sorted(states[row])]
    if not found:
        return torch.empty(0, 1, 1), torch.empty(0), []
    targets = torch.logit(torch.stack([score for _, score, _ in found]).double(), eps=_LIMIT)
    return torch.stack([state for state, _, _ in found]), targets, [row for _, _, row in found]


def _best_layers(features: Tensor, targets: Tensor, rows: list[int]) -> tuple[list[int], Ridge]:
    """The hidden states that predict other rows best: one layer's, or all of them together."""
    layers = features.shape[1]
    candidates = [*([k] for k in range(layers)), list(range(layers))]
    fits = [(used, Ridge.fit(features[:, used].flatten(1), targets, rows)) for used in candidates]
    return min(fits, key=lambda pair: pair[1].spread)


def _r_squared(predicted: Sequence[Tensor], known: Sequence[Tensor]) -> float:
    if not known:
        return 0.0
    z, truth = torch.cat(list(predicted)), torch.cat(list(known))
    return float(1 - (z - truth).square().sum() / (truth - truth.mean()).square().sum().clamp(min=1e-12))
