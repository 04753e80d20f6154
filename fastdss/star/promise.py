"""Promises about approximate scores, and their statistics: which doubt is low enough, and whether it stays so.

**The promise.** With probability ``confidence`` over the draw of a random sample of rows, at most the share
``at_most`` of all rows has any score that is off by more than ``tolerance``. It counts rows, since the scores of one
row are not independent.

**Choosing the threshold** (Learn then Test, Angelopoulos et al., https://arxiv.org/abs/2110.01052). Scores whose doubt
is at most ``t`` are approximated, the others computed. On n sampled rows all scores are known, so that it is known for
each t how many rows W(t) would have a score that is off, whatever was computed first and told about the others. The
hypothesis "more than ``at_most`` of all rows are wrong at t" has the p-value P(Binomial(n, at_most) <= W(t)). A list of
thresholds, fixed without these rows, is tested from the smallest on, and the last one before the first whose hypothesis
cannot be rejected at ``1 - confidence`` is taken: testing in a fixed order needs no correction for the number of tests.

**The audit.** While rows are scored, a random share of them is computed whole as well. A betting process multiplies by

    (3 a / a) = 3                        for a wrong row             a = at_most
    (1 - 3 a) / (1 - a)                  for a right one

and is a supermartingale while the promise holds: the probability that it ever reaches ``1 / (1 - confidence)`` is at
most ``1 - confidence`` (Ville's inequality), however often one looks. When it does, the promise is withdrawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fastdss.errors import UserError, expect_fields

# The audit bets on this multiple of the promised share of wrong rows. It is a choice: less is better at noticing shares
# just above the promised one, more at noticing large ones soon.
_RIVAL = 3.0


@dataclass(frozen=True)
class Promise:
    """What approximate scores promise, and the confidence with which it is shown before any are used.

    Args:
        tolerance: how far a score may be off.
        at_most: the share of rows that may have a score that is off by more.
        confidence: the confidence with which a sample of the rows must show it.
    """

    tolerance: float = 0.1
    at_most: float = 0.02
    confidence: float = 0.95

    def __post_init__(self) -> None:
        expect_fields(self)
        for name, low, high in (("tolerance", 0, 1), ("at_most", 0, 0.3), ("confidence", 0.5, 1)):
            value = getattr(self, name)
            if not low < value < high:
                raise UserError(f"{name}: expected a number between {low} and {high}, got {value}")

    @property
    def least_rows(self) -> int:
        """The fewest sampled rows that can show the promise, if all of them are right."""
        return math.ceil(math.log(1 - self.confidence) / math.log(1 - self.at_most))

    def __str__(self) -> str:
        return (
            f"at most {self.at_most:.1%} of rows off by more than {self.tolerance:g} anywhere, "
            f"with {self.confidence:.0%} confidence"
        )


def binomial_tail(wrong: int, rows: int, share: float) -> float:
    """P(Binomial(rows, share) <= wrong)."""
    if wrong >= rows:
        return 1.0
    logs = [
        math.lgamma(rows + 1) - math.lgamma(k + 1) - math.lgamma(rows - k + 1)
        + k * math.log(share) + (rows - k) * math.log1p(-share)
        for k in range(wrong + 1)
    ]  # fmt: skip
    top = max(logs)
    return min(1.0, math.exp(top) * sum(math.exp(value - top) for value in logs))


def choose_threshold(
    thresholds: Sequence[float], wrong: Callable[[float], int], rows: int, promise: Promise
) -> float | None:
    """The largest of ``thresholds`` (ascending, fixed without these rows) that keeps the promise; None: none does.

    wrong: how many of the ``rows`` sampled rows are wrong at a threshold; not asked beyond the first that fails.
    """
    chosen = None
    for threshold in thresholds:
        if binomial_tail(wrong(threshold), rows, promise.at_most) > 1 - promise.confidence:
            break
        chosen = threshold
    return chosen


class Audit:
    """Watches whether later rows keep the promise as well."""

    def __init__(self, promise: Promise) -> None:
        self.promise = promise
        self.rows = self.wrong = 0
        self._log_wealth = 0.0
        self._highest = 0.0

    def add(self, wrong: bool) -> None:
        """Take account of one more row whose approximate scores were compared with the computed ones."""
        self.rows += 1
        self.wrong += wrong
        share = self.promise.at_most
        self._log_wealth += math.log(_RIVAL if wrong else (1 - _RIVAL * share) / (1 - share))
        self._highest = max(self._highest, self._log_wealth)

    @property
    def disagrees(self) -> bool:
        """Whether the rows seen so far speak against the promise; once true, it stays true."""
        return self._highest >= -math.log(1 - self.promise.confidence)
