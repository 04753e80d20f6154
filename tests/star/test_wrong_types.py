"""A batch, a guard or a scorer of another type is told what is expected, not what Python lacks."""

from __future__ import annotations

import pytest

import fastdss
from fastdss import Guard, score_dataset, star_scores

ROWS = [{"prompt": "Hello", "response": "Hi there."}]


@pytest.fixture(scope="module")
def guard() -> Guard:
    return Guard.tiny()


def test_a_list_of_rows_is_no_batch(guard: Guard) -> None:
    with pytest.raises(fastdss.UserError, match=r"batch: expected a mapping of columns.* got list; rows: StarScorer"):
        star_scores(guard, ROWS)


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ("tiny", "got the text 'tiny': Guard.from_pretrained"),
        (5, "got int"),
        ([], "a non-empty sequence of Guards"),
        (["tiny"], "a non-empty sequence of Guards"),
    ],
)
def test_a_guard_is_no_name_and_no_number(model: object, told: str) -> None:
    with pytest.raises(fastdss.UserError, match=told):
        star_scores(model, {"prompt": ["Hello"], "response": ["Hi."]})


def test_a_scorer_is_no_name(tmp_path) -> None:
    pytest.importorskip("pyarrow", reason="needs the [score] extra")
    with pytest.raises(fastdss.UserError, match=r"scorer: expected a StarScorer, got str: StarScorer\('tiny'\)"):
        score_dataset(ROWS, tmp_path / "out", "tiny")
    assert not (tmp_path / "out").exists()
