"""All pairs of options, one process; tests/loss/test_vocab_parallel.py runs the same cases on two ranks."""

from __future__ import annotations

import itertools

import pytest

from .combinations import OPTIONS, check, covering_cases, pairs_of

CASES = covering_cases()


def test_every_pair_of_options_meets() -> None:
    met = set().union(*(pairs_of(case) for case in CASES))
    pairs = itertools.combinations((len(values) for values in OPTIONS.values()), 2)
    assert len(met) == sum(a * b for a, b in pairs)
    assert len(CASES) < 40


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_a_combination(case: dict) -> None:
    check(case)
