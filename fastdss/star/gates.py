"""Gates for approximate scores: they decide which branches are computed, and give the scores of the others."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Protocol

import torch
from torch import Tensor

from fastdss.errors import UserError
from fastdss.guards.guard import GuardModel
from fastdss.guards.weights import weights_digest

from .course import Course
from .options import ScoringOptions
from .promise import Audit
from .scoring import Judged, Settled, sharpened

# Last tokens of a branch that a shortcut computes. One gave an R^2 of 0.86, four 0.96; sixteen cost more and were no
# better at the boundaries that matter (docs/approximate.md).
SHORTCUT = 4
LIMIT = 1e-6  # scores nearer to 0 or 1 than this are fitted as if they were this far away
_MOST_LAYERS = 8  # layers whose hidden states are read, evenly spaced: a fit keeps these for every boundary it has

Verdict = Callable[[Tensor], Tensor]  # logits of a guard's verdict [n, R] -> logits of the scores P(safe) [n]
States = Mapping[int, Tensor]  # of one response: k -> [2 layers, D] before the branch of its k-th score, see ``Past``


@dataclass(frozen=True)
class Seen:
    """A response whose scores ``[K]`` were all computed, with the trunk's hidden states before their branches and the
    verdicts of their shortcuts, as logits of P(safe)."""

    judged: Judged
    scores: Tensor
    states: States
    shortcuts: Mapping[int, float] = field(default_factory=dict)


class Past:
    """Adds to the hidden states at a boundary their mean over this and the earlier boundaries of its response.

    A verdict is about the whole text so far. The hidden states at its last token need not describe all of it; the mean
    also describes what came before.
    """

    def __init__(self, kept: Sequence[int]) -> None:
        self._owner = [number for number, count in enumerate(kept) for _ in range(count)]  # score -> its response
        self._states: list[dict[int, Tensor]] = [{} for _ in kept]  # for each response: score -> [layers, D]

    def added(self, scores: Sequence[int], states: Tensor) -> Tensor:
        """states: ``[n, layers, D]`` for these scores, which follow those of earlier calls -> ``[n, 2 layers, D]``."""
        for score, state in zip(scores, states, strict=True):
            self._states[self._owner[score]][score] = state  # again where memory ran out and a group is computed anew
        means: dict[int, Tensor] = {}
        for owner in dict.fromkeys(self._owner[score] for score in scores):
            places = sorted(self._states[owner])
            sums = torch.stack([self._states[owner][place] for place in places]).cumsum(0)
            means |= {place: total / (k + 1) for k, (place, total) in enumerate(zip(places, sums, strict=True))}
        return torch.cat([states, torch.stack([means[score] for score in scores])], 1)


class _Listener:
    """What both gates (see ``prefix.rounds.Gate``) keep of a batch in which response i has ``kept[i]`` scores: the
    hidden states before its branches, and the verdicts of their shortcuts."""

    def __init__(self, kept: Sequence[int] = (), verdict: Verdict | None = None) -> None:
        self._verdict = verdict or no_verdict
        self._places = _places(kept)
        self._past = Past(kept)
        self._states: dict[int, Tensor] = {}  # score -> [2 layers, D]
        self._shortcuts: dict[int, float] = {}

    def _keep(self, scores: list[int], states: Tensor, layers: Sequence[int]) -> None:
        known = self._past.added(scores, states[list(layers)].transpose(0, 1))
        self._states |= dict(zip(scores, known, strict=True))

    def wants(self, score: int) -> bool:
        return score in self._states

    def hear(self, scores: list[int], logits: Tensor) -> None:
        heard = zip(scores, self._verdict(logits).tolist(), strict=True)
        self._shortcuts |= {score: value for score, value in heard if math.isfinite(value)}


class Reading(_Listener):
    """A gate that has every branch computed, and keeps what a probe is fitted on, and of which guard it is."""

    withdrawn = False
    shortcut = SHORTCUT

    def __init__(self) -> None:
        super().__init__()
        self.guard_name, self.weights = "", ""  # of the guard, see ``weights_digest``
        self.layers: tuple[int, ...] = ()
        self.seen: list[Seen] = []
        self._judged: list[Judged] = []

    def gate(
        self, guards: Sequence[GuardModel], judged: Sequence[Judged], kept: Sequence[int], options: ScoringOptions
    ) -> Reading:
        check_approximable(guards, options)
        super().__init__(kept, verdict_of(guards[0], options))
        self.guard_name, self.weights = guards[0].spec.name, self.weights or weights_digest(guards[0].model)
        self._judged = list(judged)
        return self

    def read(self, scores: list[int], states: Tensor) -> None:
        count = states.shape[0] - 1
        self.layers = tuple(sorted({round(count * (k + 1) / _MOST_LAYERS) for k in range(_MOST_LAYERS)} - {0}))
        self._keep(scores, states, self.layers)

    def asks(self, left: Collection[int]) -> Collection[int]:
        return left

    def told(self, scores: list[int], logits: Tensor) -> None:
        """All scores are given to ``settle``."""

    def settle(self, scores: Tensor) -> list[Settled]:
        for item, places in zip(self._judged, self._places, strict=True):
            states = {k: self._states[score] for k, score in enumerate(places) if score in self._states}
            shortcuts = {k: self._shortcuts[score] for k, score in enumerate(places) if score in self._shortcuts}
            self.seen.append(Seen(item, scores[list(places)], states, shortcuts))
        self._verdict = no_verdict  # what was read is sent to other processes, and the guard must not go with it
        return [Settled(torch.ones(len(places), dtype=torch.bool)) for places in self._places]


class Predictor(Protocol):
    """What a gate needs of a probe."""

    layers: tuple[int, ...]
    shortcut: int

    def course(self, places: Sequence[int], states: Sequence[Tensor], shortcuts: Tensor) -> Course:
        """The predicted scores of one response at these K boundaries, from their hidden states, each ``[2 layers, D]``,
        and the logits of their shortcuts ``[K]``."""


class Gating(_Listener):
    """A gate that has the branches of doubtful scores and of audited rows computed.

    ``audit`` is told of every audited row; None: the caller keeps the account itself, from ``Settled.missed``.
    """

    def __init__(
        self,
        probe: Predictor,
        threshold: float,
        tolerance: float,
        judged: Sequence[Judged],
        audited: Sequence[bool],
        kept: Sequence[int],
        audit: Audit | None,
        verdict: Verdict,
    ) -> None:
        super().__init__(kept, verdict)
        self.probe = probe
        self.threshold = threshold
        self.tolerance = tolerance
        self.audit = audit
        self.shortcut = probe.shortcut
        self.withdrawn = False
        self._rows = [item.row for item in judged]
        self._audited = list(audited)
        self._owner = [number for number, count in enumerate(kept) for _ in range(count)]  # score -> its response
        # response -> its predicted scores, with their places in its course
        self._courses: dict[int, tuple[dict[int, int], Course]] = {}

    def read(self, scores: list[int], states: Tensor) -> None:
        self._keep(scores, states, self.probe.layers)
        for score in scores:  # again where memory ran out and a group is computed anew
            self._courses.pop(self._owner[score], None)

    def asks(self, left: Collection[int]) -> Collection[int]:
        wanted = []
        for owner in sorted({self._owner[score] for score in left}):
            own = [score for score in self._places[owner] if score in left]
            if self._audited[owner]:
                wanted += own
                continue
            at, course = self._course(owner)
            wanted += [score for score in own if score not in at]
            if course.doubt > self.threshold:
                predicted = list(at)
                wanted += [predicted[index] for index in course.doubtful()]
        return wanted

    def told(self, scores: list[int], logits: Tensor) -> None:
        for score, logit in zip(scores, self._verdict(logits).tolist(), strict=True):
            if not self._audited[self._owner[score]]:
                at, course = self._course(self._owner[score])
                if score in at:
                    course.learn(at[score], logit)

    def _course(self, owner: int) -> tuple[dict[int, int], Course]:
        """The scores of a response that can be predicted, with their places in its course; and the course."""
        if owner not in self._courses:
            places = self._places[owner]
            heard = self._shortcuts if self.shortcut else self._states
            predicted = [k for k in places if k in self._states and k in heard]
            states = [self._states[k] for k in predicted]
            shortcuts = torch.tensor([self._shortcuts.get(k, 0.0) for k in predicted], dtype=torch.float64)
            course = self.probe.course([k - places.start for k in predicted], states, shortcuts)
            self._courses[owner] = {score: index for index, score in enumerate(predicted)}, course
        return self._courses[owner]

    def settle(self, scores: Tensor) -> list[Settled]:
        settled, wrong = [], dict[int, bool]()
        for owner, (row, places, whole) in enumerate(zip(self._rows, self._places, self._audited, strict=True)):
            at, course = self._course(owner)
            if whole:  # what would have been computed, and how far off the others would have been
                course = course.walked(self.threshold, torch.logit(scores[list(at)].double(), eps=LIMIT))
            near = [score for score, index in at.items() if not course.known[index]]
            values = course.values[~course.known].to(scores.dtype)
            exact = torch.ones(len(places), dtype=torch.bool)
            if whole:
                missed = float((values - scores[near]).abs().max()) if near else 0.0
                wrong[row] = wrong.get(row, False) or not missed <= self.tolerance
                settled.append(Settled(exact, missed))
            else:
                scores[near] = values
                exact[[score - places.start for score in near]] = False
                settled.append(Settled(exact))
        if self.audit is not None:
            for row_is_wrong in wrong.values():
                self.audit.add(row_is_wrong)
            self.withdrawn = self.audit.disagrees
        return settled


def verdict_of(guard: GuardModel, options: ScoringOptions) -> Verdict:
    """The function from the logits of a guard's verdict to the logits of its scores."""
    return lambda logits: torch.logit(sharpened(guard, logits, options.sharpen).double(), eps=LIMIT)


def no_verdict(logits: Tensor) -> Tensor:
    """The verdict of a gate that has no guard yet, or no longer."""
    raise AssertionError("no guard was named")


def check_approximable(guards: Sequence[GuardModel], options: ScoringOptions) -> None:
    """Raise ``ValueError`` for guards and options whose scores no probe can approximate."""
    if len(guards) != 1:
        raise UserError(f"approx: expected one guard, got {len(guards)}")
    guard = guards[0]
    if guard.readouts != 1 or guard.bidirectional:
        why = "reads text both ways" if guard.bidirectional else f"sums {guard.readouts} readings"
        raise UserError(
            f"approx: expected a guard whose score is read at one place of a prefix tree, got {guard.spec.name}, "
            f"which {why}"
        )
    if options.method == "per_prefix":
        raise UserError("approx: expected a method that computes a prefix tree, got method='per_prefix'")


def _places(kept: Sequence[int]) -> list[range]:
    """For each response, the places that its scores have among those of the batch."""
    return [range(end - count, end) for end, count in zip(accumulate(kept), kept, strict=True)]
