"""Approximate scores: a branch's verdict, predicted from what the guard computes in any case.

Most of what a guard computes are branches: the template's tail, once per boundary. A shortcut computes only the last
tokens of a branch, behind the trunk's own tail. Its verdict is near the branch's, but not equal: the trunk's tail was
computed behind the whole response, so it carries what comes after the boundary. A ridge regression learns the
difference from the trunk's hidden states, those at the token after which the branch leaves it and their mean over the
boundaries so far. Without shortcuts it predicts the verdict itself. It is fitted on a sample of rows, and knows how
doubtful each of its predictions is; the branches of doubtful ones are computed as usual, and tell about those beside
them (``course.py``). Which doubt is low enough is not assumed but shown, with the same steps on rows that the fit did
not see (``promise.py``). Where it cannot be shown, nothing is approximated.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastdss.chat.conversation import Conversation
from fastdss.errors import UserError, expect
from fastdss.guards.guard import GuardModel
from fastdss.guards.weights import weights_digest
from fastdss.prefix.in_use import cpu_by_default

from .course import Course, Persistence
from .fitting import Rows, best_fit, by_row, exact_logits, table_of
from .gates import SHORTCUT, Gating, Reading, Seen, check_approximable, verdict_of
from .options import ScoringOptions
from .promise import Audit, Promise, choose_threshold
from .ridge import Ridge
from .scores import StarScores
from .scoring import Judged, read_batch, score_turns

AUDIT_SHARE = 0.03  # of the rows; a choice: with more, a broken promise is noticed sooner, and less is spared
THRESHOLDS = tuple(0.002 * 1.15**step for step in range(42))  # of doubt, up to 0.62: fixed before any row is seen
# Options that change which scores a row has, or what they are: the promise holds only for their values.
ASKED = ("every", "unit", "turns", "sharpen")
_FEWEST_ROWS = 16  # rows to fit on; in a few of them all scores may be read on the trunk, with no branch to predict
_FEWEST_BRANCHED = 12  # rows to fit on that have branches
_LEAST_SPARED = 0.2  # of the scores; sparing fewer is not worth the audit and errors of up to the tolerance


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
        persistence: how errors of the predictions persist along a response.
        weights: a fingerprint of the guard's weights; empty: not known, as of probes from older files.
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
    persistence: Persistence = field(default_factory=Persistence)
    weights: str = ""

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
        expect("guard", guard, GuardModel, wanted="a Guard")
        options = ScoringOptions.given(options)
        reading = Reading()
        scored = score_turns([guard], read_batch(batch, options.turns), options, approx=reading, progress=progress)
        return cls.learn(reading, promise=promise, options=options, audit_share=audit_share, seed=seed), scored

    @classmethod
    @cpu_by_default()
    def learn(
        cls,
        reading: Reading,
        *,
        promise: Promise | None,
        options: ScoringOptions,
        audit_share: float = AUDIT_SHARE,
        seed: int = 0,
    ) -> TrunkProbe:
        """The probe fitted on what ``reading`` kept while a random sample was scored with ``approx=reading``."""
        promise = Promise() if promise is None else promise
        expect("promise", promise, Promise)
        expect("seed", seed, int)
        expect("audit_share", audit_share, Real, wanted="a number")
        if not 0 < audit_share < 1:
            raise UserError(f"audit_share: expected a share in (0, 1), got {audit_share}")
        rows = by_row(reading.seen)
        random.Random(seed).shuffle(rows)
        count = min(max(len(rows) // 3, _FEWEST_ROWS), max(len(rows) - promise.least_rows, _FEWEST_ROWS))
        fitted, sampled = rows[:count], rows[count:]
        table = table_of(fitted)
        if len(set(table.rows)) < _FEWEST_BRANCHED:
            raise UserError(
                f"batch: expected {_FEWEST_BRANCHED} rows with branches to fit on, got {len(set(table.rows))}"
            )
        best, shortcut = best_fit(table, table.exact), 0
        if all(seen.states.keys() == seen.shortcuts.keys() for row in rows for seen in row):
            correction = best_fit(table, table.exact - table.shortcuts)
            if correction.ridge.spread < best.ridge.spread:
                best, shortcut = correction, SHORTCUT
        certificate = Certificate(promise, None, len(fitted), len(sampled))
        layers = tuple(reading.layers[k] for k in best.used[: len(best.used) // 2])
        asked = {name: getattr(options, name) for name in ASKED}
        probe = cls(
            layers, best.ridge, certificate, Audit(promise), reading.guard_name, asked, audit_share, seed, shortcut,
            persistence=Persistence.fit(best.left_out()), weights=reading.weights,
        )  # fmt: skip
        probe.certificate = probe._certified(sampled, best.used)
        return probe

    def gate(
        self, guards: Sequence[GuardModel], judged: Sequence[Judged], kept: Sequence[int], options: ScoringOptions
    ) -> Gating | None:
        check_approximable(guards, options)
        if guards[0].spec.name != self.guard_name:
            raise UserError(f"approx: expected a probe of {guards[0].spec.name}, got one of {self.guard_name}")
        config = guards[0].model.config.get_text_config(decoder=True)  # one spec may ask guards of several sizes
        size, deepest = len(self.ridge.mean) // (2 * len(self.layers)), max(self.layers)
        if size != config.hidden_size or deepest > config.num_hidden_layers:
            raise UserError(
                f"approx: expected a probe of a guard with {config.num_hidden_layers} layers of {config.hidden_size}, "
                f"got one that reads layer {deepest} of {size}"
            )
        if self.weights and self.weights != weights_digest(guards[0].model):
            raise UserError(
                "approx: expected the guard that the probe was fitted on, got other weights (another fine-tune, "
                "another adapter or another dtype): fit a probe for this one"
            )
        for name, value in self.asked.items():
            if getattr(options, name) != value:
                raise UserError(f"approx: expected {name}={value!r}, as it was fitted, got {getattr(options, name)!r}")
        threshold = self.certificate.threshold
        if threshold is None or (self.audit is not None and self.audit.disagrees):
            return None
        audited = [self._audits(item.conversation) for item in judged]
        tolerance, verdict = self.certificate.promise.tolerance, verdict_of(guards[0], options)
        return Gating(self, threshold, tolerance, judged, audited, kept, self.audit, verdict)

    def course(self, places: Sequence[int], states: Sequence[Tensor], shortcuts: Tensor) -> Course:
        """The predicted scores of one response at its boundaries ``places``, from their hidden states, each ``[2
        layers, D]``, see ``Past``; shortcuts: ``[K]``, logits, ignored where ``shortcut`` is 0."""
        where = torch.tensor(list(places))
        if not places:
            return Course(self.persistence, torch.empty(0), torch.empty(0), where)
        logits, spreads = self.ridge.predict(torch.stack(list(states)).flatten(1))
        return Course(self.persistence, logits + shortcuts if self.shortcut else logits, spreads, where)

    def _audits(self, conversation: Conversation) -> bool:
        """Whether a row is audited. A hash of its texts decides, so the answer is the same in every run and order, and
        for all judged turns of a conversation."""
        text = "\0".join([str(self.seed), *(turn.answer.text for turn in conversation.turns)])
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
        return int.from_bytes(digest[:8], "big") < self.audit_share * 2**64

    def _certified(self, sampled: Rows, used: list[int]) -> Certificate:
        promise = self.certificate.promise
        rows = [[self._course_of(seen, used) for seen in row if seen.states] for row in sampled]
        walks = [[_walk(course, exact) for course, exact in row] for row in rows]

        def ends(threshold: float) -> list[list[_Step]]:
            """Where the walk of each response of each row ends."""
            return [[next(step for step in walk if step.doubt <= threshold) for walk in row] for row in walks]

        def wrong(threshold: float) -> int:
            return sum(any(not step.off <= promise.tolerance for step in row) for row in ends(threshold))

        threshold = choose_threshold(THRESHOLDS, wrong, len(sampled), promise)
        share = 0.0
        if threshold is not None:
            spared = sum(step.spared for row in ends(threshold) for step in row)
            share = spared / max(sum(len(seen.scores) for row in sampled for seen in row), 1)
        return replace(
            self.certificate,
            threshold=threshold if share >= _LEAST_SPARED else None,
            wrong_rows=0 if threshold is None else wrong(threshold),
            approximated=share,
            fit=_r_squared([course.logits for row in rows for course, _ in row], [z for row in rows for _, z in row]),
        )

    def _course_of(self, seen: Seen, used: list[int]) -> tuple[Course, Tensor]:
        """The course of a response, and its exact logits; used: the hidden states that the probe reads."""
        places = sorted(seen.states)
        shortcuts = torch.tensor([seen.shortcuts.get(k, 0.0) for k in places], dtype=torch.float64)
        return self.course(places, [seen.states[k][used] for k in places], shortcuts), exact_logits(seen)


class _Step(NamedTuple):
    """A response after a round: its largest doubt, how far off a score is at most, how many are not computed."""

    doubt: float
    off: float
    spared: int


def _walk(course: Course, exact: Tensor) -> list[_Step]:
    return [_Step(step.doubt, step.off(exact), int((~step.known).sum())) for step in course.steps(exact)]


def _r_squared(predicted: Sequence[Tensor], known: Sequence[Tensor]) -> float:
    if not known:
        return 0.0
    z, truth = torch.cat(list(predicted)), torch.cat(list(known))
    return float(1 - (z - truth).square().sum() / (truth - truth.mean()).square().sum().clamp(min=1e-12))
