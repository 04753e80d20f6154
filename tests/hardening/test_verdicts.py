"""A verdict that is not a number is never a score."""

from __future__ import annotations

import pytest
import torch
from star.builders import make_guard


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("place", [0, 1])
def test_a_logit_that_is_not_finite_gives_no_score(bad: float, place: int) -> None:
    """-inf for "unsafe" alone would otherwise be a score of exactly 1."""
    logits = torch.zeros(3, 2)
    logits[1, place] = bad
    scores = make_guard(check=False).scores(logits)
    assert scores.isnan().tolist() == [False, True, False]
