"""Promises are tested as statistics: on simulated guards whose errors are known they hold as often as they say."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest

from fastdss.star.promise import Audit, Promise, binomial_tail, choose_threshold

PROMISE = Promise()
THRESHOLDS = [k / 40 for k in range(1, 41)]


def test_the_binomial_tail_is_the_sum_of_its_terms() -> None:
    for rows, share in ((20, 0.1), (149, 0.02), (400, 0.3)):
        terms = [math.comb(rows, k) * share**k * (1 - share) ** (rows - k) for k in range(rows + 1)]
        for wrong in (0, 1, 5, rows - 1, rows):
            assert binomial_tail(wrong, rows, share) == pytest.approx(min(1, sum(terms[: wrong + 1])), rel=1e-9)
    assert 0 < binomial_tail(700, 40_000, 0.02) < 1e-3  # where the terms alone underflow


def test_the_fewest_rows_that_can_show_a_promise() -> None:
    assert PROMISE.least_rows == 149
    assert choose_threshold(THRESHOLDS, lambda threshold: 0, 149, PROMISE) == THRESHOLDS[-1]
    assert choose_threshold(THRESHOLDS, lambda threshold: 0, 148, PROMISE) is None


def test_nothing_beyond_the_first_threshold_that_fails_is_taken() -> None:
    """Also where a larger one looks right again, as it may when what is computed first decides about the rest."""
    wrong, asked = {0.1: 0, 0.2: 1, 0.3: 9, 0.4: 0}, []

    def wrong_at(threshold: float) -> int:
        asked.append(threshold)
        return wrong[threshold]

    assert choose_threshold(list(wrong), wrong_at, 400, PROMISE) == 0.2
    assert asked == [0.1, 0.2, 0.3]


@pytest.mark.parametrize("change", [{"tolerance": 0}, {"at_most": 0.5}, {"confidence": 1.0}, {"at_most": math.nan}])
def test_what_is_no_promise_is_refused(change: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(change))}: expected a number between"):
        Promise(**change)


def simulated_row(generator: random.Random, quality: float) -> float:
    """From which threshold on a row of 15 scores is wrong, by a guard whose doubt means as much as ``quality``.

    A score of doubt d is off with probability (1 - quality) d^2 / 6, so the risk at any threshold is known.
    """
    doubts = [generator.random() for _ in range(15)]
    errors = [float(generator.random() < (1 - quality) * d * d / 6) for d in doubts]
    return min((d for d, e in zip(doubts, errors, strict=True) if e > PROMISE.tolerance), default=math.inf)


def count(wrong: list[float]) -> Callable[[float], int]:
    """How many rows are wrong at a threshold."""
    return lambda threshold: sum(value <= threshold for value in wrong)


def risk(threshold: float | None, quality: float) -> float:
    """The probability that a row is wrong: each score is doubtful below the threshold and off, independently."""
    if threshold is None:
        return 0.0
    return 1 - (1 - (1 - quality) * threshold**3 / 18) ** 15


@pytest.mark.parametrize(("quality", "rows"), [(0.0, 150), (0.0, 400), (0.7, 300), (0.99, 200)])
def test_the_promise_holds_in_its_share_of_a_thousand_repetitions(quality: float, rows: int) -> None:
    generator = random.Random(rows)
    kept = useful = 0
    for _ in range(1000):
        wrong = [simulated_row(generator, quality) for _ in range(rows)]
        threshold = choose_threshold(THRESHOLDS, count(wrong), len(wrong), PROMISE)
        kept += risk(threshold, quality) <= PROMISE.at_most
        useful += threshold is not None
    # 1000 draws of a true share of 95 % lie above 93.4 % with a probability of 99 %
    assert kept >= 934
    assert useful >= 300  # it promises something, instead of computing all


def test_the_check_would_see_a_promise_that_is_not_kept() -> None:
    """A threshold at which the sample's own share of wrong rows is the promised one breaks it every other time."""
    generator = random.Random(0)
    kept = 0
    for _ in range(300):
        wrong = [simulated_row(generator, 0.0) for _ in range(400)]
        fitting = [t for t in THRESHOLDS if sum(w <= t for w in wrong) <= PROMISE.at_most * len(wrong)]
        kept += risk(max(fitting, default=None), 0.0) <= PROMISE.at_most
    assert kept < 0.934 * 300


def test_the_audit_is_silent_while_the_promise_holds_and_speaks_when_it_does_not() -> None:
    generator = random.Random(1)
    alarms = found = 0
    for _ in range(1000):
        steady, drifting = Audit(PROMISE), Audit(PROMISE)
        for row in range(600):
            steady.add(generator.random() < PROMISE.at_most)
            drifting.add(generator.random() < (0.005 if row < 200 else 0.12))
        alarms += steady.disagrees
        found += drifting.disagrees
    assert alarms <= 66  # 5 %, and what a thousand draws of it may show
    assert found >= 990


def test_an_audit_never_takes_its_word_back() -> None:
    audit = Audit(PROMISE)
    for wrong in [True] * 3 + [False] * 5000:
        audit.add(wrong)
    assert audit.disagrees
    assert (audit.rows, audit.wrong) == (5003, 3)
