"""Scores by hand, a list per field as tests write them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import repeat

from fastdss import StarScores
from fastdss.star.scored import ScoredResponse


def by_fields(
    scores: Sequence[Iterable[float]],
    ends: Sequence[Sequence[int]],
    histories: Sequence[list],
    responses: Sequence[str],
    flags: Iterable[Iterable[str]] = repeat(()),
) -> StarScores:
    columns = zip(histories, responses, scores, ends, flags)  # noqa: B905  (flags may be endless)
    return StarScores(ScoredResponse.of(*fields, row) for row, fields in enumerate(columns))
