"""Approximate scores: a branch's verdict, predicted from what the guard computes in any case.

Most of what a guard computes are branches: the template's tail, once per boundary. A shortcut computes only the last
tokens of a branch, behind the trunk's own tail. Its verdict is near the branch's, but not equal: the trunk's tail was
computed behind the whole response, so it carries what comes after the boundary. A ridge regression learns the
difference from the trunk's hidden states, those at the token after which the branch leaves it and their mean over the
boundaries so far. Without shortcuts it predicts the verdict itself. It is fitted on a sample of rows, and knows how
doubtful each of its predictions is; the branches of doubtful ones are computed as usual. Which doubt is low enough is
not assumed but shown, with the shortcuts and corrections that will be used, on rows that the fit did not see
(``promise.py``). Where it cannot be shown, nothing is approximated.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fastdss.chat.conversation import Conversation
from fastdss.errors import UserError
from fastdss.guards.guard import GuardModel

from .gates import LIMIT, SHORTCUT, Gating, Reading, Seen, check_approximable, verdict_of
from .options import ScoringOptions
from .promise import Audit, Promise, choose_threshold, wrong_from
from .ridge import Ridge
from .scores import StarScores
from .scoring import Judged, read_batch, score_turns

AUDIT_SHARE = 0.05  # of the rows; a choice: with more, a broken promise is noticed sooner, and less is spared
THRESHOLDS = tuple(0.001 * 1.2**step for step in range(38))  # of doubt, up to 0.85: fixed before any row is seen
ASKED = ("every", "unit", "sharpen")  # options that change the scores, so that the promise holds only for their values
_FEWEST_ROWS = 16  # rows to fit on; in a few of them all scores may be read on the trunk, with no branch to predict
_FEWEST_BRANCHED = 12  # rows to fit on that have branches
_MOST_FITTED = 1500  # boundaries: the time of a fit grows with their cube, and those of one row are much alike
_LEAST_SPARED = 0.2  # of the scores; sparing fewer is not worth the audit and errors of up to the tolerance

Rows = list[list[Seen]]  # the judged responses of each row


@dataclass(frozen=True)
class Certificate:
    """What was shown about a probe, and on which rows."""

    promise: Promise
    threshold: float | None  # doubt up to which scores are approximated; None: not shown for any, or not worth it
    fitted_rows: int
    sampled_rows: int  # other rows, on which the threshold was chosen
    wrong_rows: int = 0  # how many of the sampled rows are wrong at the threshold
    approximated: float = 0.0  # the share of their scores that need no branch at the threshold
    fit: float = 0.0  # R^2 of the predicted logits on the sampled rows

    def __str__(self) -> str:
        if self.threshold is None:
            if self.approximated:
                return (
                    f"nothing is approximated: {self.promise} would spare {self.approximated:.0%} of the scores only "
                    f"(R^2 is {self.fit:.2f})"
                )
            few = self.sampled_rows < self.promise.least_rows
            why = f"it takes {self.promise.least_rows} sampled rows at least" if few else f"R^2 is {self.fit:.2f}"
            return f"nothing is approximated: {self.promise} could not be shown on {self.sampled_rows} rows ({why})"
        return (
            f"{self.approximated:.0%} of the scores are approximated: {self.promise}; "
            f"{self.wrong_rows} of {self.sampled_rows} sampled rows were wrong"
        )


@dataclass
class TrunkProbe:
    """Approximates scores for ``star_scores(guard, batch, approx=probe)``, and holds what was shown about that.

    Some rows are computed whole and compared. Where they speak against the promise (``audit.disagrees``), a warning
    says so and everything is computed from then on.

    Attributes:
        layers: the numbers of the layers whose hidden states are read.
        ridge: the regression on these hidden states.
        certificate: what was shown on the sample, or that nothing could be shown.
        audit: the account of the rows that were compared; None: the caller keeps it.
        guard_name: the name of the guard's spec.
        asked: the options with which it was fitted.
        audit_share: the share of the rows that are computed whole and compared.
        seed: together with the texts of a row, it decides whether the row is compared.
        shortcut: how many last tokens of each branch are computed in any case, for a verdict that the regression
            corrects; 0: none, the regression predicts the verdict from the trunk alone.
    """

    layers: tuple[int, ...]
    ridge: Ridge
    certificate: Certificate
    audit: Audit | None
    guard_name: str
    asked: Mapping[str, Any]  # the options ``ASKED`` that it was fitted with
    audit_share: float = AUDIT_SHARE
    seed: int = 0
    shortcut: int = 0

    @classmethod
    def fit(
        cls,
        guard: GuardModel,
        batch: Mapping[str, Sequence[Any]],
        *,
        promise: Promise | None = None,
        options: ScoringOptions | None = None,
        audit_share: float = AUDIT_SHARE,
        seed: int = 0,
        progress: bool = False,
    ) -> tuple[TrunkProbe, StarScores]:
        """Fit on a random sample of the rows to be scored, and choose the doubt up to which scores are approximated.

        The probe is fitted on a part of the sample, and the threshold is chosen on the others: this takes at least
        ``promise.least_rows`` of them (149 by default). ``probe.certificate`` says what was shown; where nothing could
        be shown, ``approx=probe`` computes everything.

        Args:
            guard: the guard whose scores are approximated.
            batch: the sample, in the form that ``star_scores`` takes.
            promise: what is to be shown; None: ``Promise()``.
            options: the options with which the rows will be scored.
            audit_share: the share of later rows that are computed whole and compared.
            seed: decides which rows are fitted on, and which later rows are compared.
            progress: show a bar.

        Returns:
            tuple: the probe, and the exact ``StarScores`` of ``batch``, which the fit needs.

        Raises:
            UserError: for a guard whose score takes several readings, and for too few rows to fit on.
        """
        options = options or ScoringOptions()
        reading = Reading()
        scored = score_turns([guard], read_batch(batch, options.turns), options, approx=reading, progress=progress)
        probe = cls.learn(
            reading, guard_name=guard.spec.name, promise=promise, options=options, audit_share=audit_share, seed=seed
        )
        return probe, scored

    @classmethod
    def learn(
        cls,
        reading: Reading,
        *,
        guard_name: str,
        promise: Promise | None,
        options: ScoringOptions,
        audit_share: float = AUDIT_SHARE,
        seed: int = 0,
    ) -> TrunkProbe:
        """The probe fitted on what ``reading`` kept while a random sample was scored with ``approx=reading``."""
        promise = promise or Promise()
        if not 0 < audit_share < 1:
            raise UserError(f"audit_share: expected a share in (0, 1), got {audit_share}")
        rows = _by_row(reading.seen)
        random.Random(seed).shuffle(rows)
        count = min(max(len(rows) // 3, _FEWEST_ROWS), max(len(rows) - promise.least_rows, _FEWEST_ROWS))
        fitted, sampled = rows[:count], rows[count:]
        features, targets, shortcuts, origin = _table(fitted)
        if len(set(origin)) < _FEWEST_BRANCHED:
            raise UserError(f"batch: expected {_FEWEST_BRANCHED} rows with branches to fit on, got {len(set(origin))}")
        used, ridge = _best_layers(features, targets, origin)
        shortcut = 0
        if all(seen.states.keys() == seen.shortcuts.keys() for row in rows for seen in row):
            corrected, correction = _best_layers(features, targets - shortcuts, origin)
            if correction.spread < ridge.spread:
                shortcut, used, ridge = SHORTCUT, corrected, correction
        certificate = Certificate(promise, None, len(fitted), len(sampled))
        layers = tuple(reading.layers[k] for k in used[: len(used) // 2])
        asked = {name: getattr(options, name) for name in ASKED}
        probe = cls(layers, ridge, certificate, Audit(promise), guard_name, asked, audit_share, seed, shortcut)
        probe.certificate = probe._certified(sampled, used)
        return probe

    def gate(
        self, guards: Sequence[GuardModel], judged: Sequence[Judged], kept: Sequence[int], options: ScoringOptions
    ) -> Gating | None:
        check_approximable(guards, options)
        if guards[0].spec.name != self.guard_name:
            raise UserError(f"approx: expected a probe of {guards[0].spec.name}, got one of {self.guard_name}")
        for name, value in self.asked.items():
            if getattr(options, name) != value:
                raise UserError(f"approx: expected {name}={value!r}, as it was fitted, got {getattr(options, name)!r}")
        threshold = self.certificate.threshold
        if threshold is None or (self.audit is not None and self.audit.disagrees):
            return None
        audited = [self._audits(item.conversation) for item in judged]
        tolerance, verdict = self.certificate.promise.tolerance, verdict_of(guards[0], options)
        return Gating(self, threshold, tolerance, judged, audited, kept, self.audit, verdict)

    def predict(self, states: Tensor, shortcuts: Tensor) -> tuple[Tensor, Tensor]:
        """states: ``[n, 2 layers, D]``, see ``Past``; shortcuts: ``[n]``, logits, ignored where ``shortcut`` is 0
        -> P(safe) ``[n]``, and its doubt ``[n]``: how far one standard deviation of the logit moves it."""
        logits, spread = self.ridge.predict(states.flatten(1))
        if self.shortcut:
            logits = logits + shortcuts
        values = torch.sigmoid(logits)
        moved = torch.stack([torch.sigmoid(logits + sign * spread) for sign in (-1, 1)])
        return values, (moved - values).abs().amax(0)

    def _audits(self, conversation: Conversation) -> bool:
        """Whether a row is audited. A hash of its texts decides, so the answer is the same in every run and order, and
        for all judged turns of a conversation."""
        text = "\0".join([str(self.seed), *(turn.answer.text for turn in conversation.turns)])
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
        return int.from_bytes(digest[:8], "big") < self.audit_share * 2**64

    def _certified(self, sampled: Rows, used: list[int]) -> Certificate:
        promise = self.certificate.promise
        wrong, every_doubt, predicted, known = [], [], [], []
        for row in sampled:
            states, exact, shortcuts, _ = _table([row])
            if not len(exact):  # all its scores are read on the trunk: none is approximated, so none can be wrong
                wrong.append(float("inf"))
                continue
            values, doubts = self.predict(states[:, used], shortcuts)
            errors = (values - torch.sigmoid(exact)).abs()
            wrong.append(wrong_from(doubts.tolist(), errors.tolist(), promise.tolerance))
            every_doubt += doubts.tolist()
            predicted.append(torch.logit(values, eps=LIMIT))
            known.append(exact)
        threshold = choose_threshold(THRESHOLDS, wrong, promise)
        spared = 0 if threshold is None else sum(doubt <= threshold for doubt in every_doubt)
        share = spared / max(sum(len(seen.scores) for row in sampled for seen in row), 1)
        return replace(
            self.certificate,
            threshold=threshold if share >= _LEAST_SPARED else None,
            wrong_rows=0 if threshold is None else sum(value <= threshold for value in wrong),
            approximated=share,
            fit=_r_squared(predicted, known),
        )


def _by_row(found: Sequence[Seen]) -> Rows:
    """The responses without failed scores, in groups of one conversation each."""
    rows: dict[int, list[Seen]] = {}
    for seen in found:
        if bool(torch.isfinite(seen.scores).all()):
            rows.setdefault(id(seen.judged.conversation), []).append(seen)
    return list(rows.values())


def _table(rows: Rows) -> tuple[Tensor, Tensor, Tensor, list[int]]:
    """For all n boundaries that have a branch: hidden states ``[n, 2 layers, D]``, logits of the scores ``[n]``, logits
    of the shortcuts ``[n]`` (0 where there is none), and the number of the row that each comes from."""
    found = [
        (seen.states[k], seen.scores[k], seen.shortcuts.get(k, 0.0), number)
        for number, row in enumerate(rows)
        for seen in row
        for k in sorted(seen.states)
    ]
    if not found:
        return torch.empty(0, 1, 1), torch.empty(0), torch.empty(0), []
    states, scores, shortcuts, origin = zip(*found, strict=True)
    targets = torch.logit(torch.stack(scores).double(), eps=LIMIT)
    return torch.stack(states), targets, torch.tensor(shortcuts, dtype=targets.dtype), list(origin)


def _best_layers(features: Tensor, targets: Tensor, rows: list[int]) -> tuple[list[int], Ridge]:
    """The hidden states that predict held-out rows best, one layer's with their mean or all together; and the fit."""
    step = -(-len(rows) // _MOST_FITTED)
    features, targets, rows = features[::step], targets[::step], rows[::step]
    layers = features.shape[1] // 2
    candidates = [*([k, layers + k] for k in range(layers)), list(range(2 * layers))]
    fits = [(used, Ridge.fit(features[:, used].flatten(1), targets, rows)) for used in candidates]
    return min(fits, key=lambda pair: pair[1].spread)


def _r_squared(predicted: Sequence[Tensor], known: Sequence[Tensor]) -> float:
    if not known:
        return 0.0
    z, truth = torch.cat(list(predicted)), torch.cat(list(known))
    return float(1 - (z - truth).square().sum() / (truth - truth.mean()).square().sum().clamp(min=1e-12))
