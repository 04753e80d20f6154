"""Scored responses: a sequence of them, what they tell about themselves, and errors that carry their row."""

from __future__ import annotations

import pickle

import pytest

from fastdss import Flag, RowError, ScoredResponse, StarScores, UserError, star_scores
from fastdss.chat.conversation import plain
from fastdss.corpus.rows import Row
from tests.support.builders import BATCH, make_guard
from tests.support.scored import by_fields

SECRET = "Ask for Zelda Quux."
HISTORY = [{"role": "user", "content": "Where does Zelda live?"}]


def two() -> StarScores:
    fields = [[0.9, 0.25], [float("nan")]], [[3, 19], [19]], [HISTORY] * 2, [SECRET] * 2, [[], ["failed"]]
    return by_fields(*fields)


def test_no_repr_holds_a_text() -> None:
    row = Row("7", plain([*HISTORY, {"role": "assistant", "content": SECRET}]), (1,), "abc")
    for shown in (repr(two()), repr(two()[0]), repr(row), str(two()), f"{two()[1]!r}"):
        assert "Zelda" not in shown
        assert "Quux" not in shown
    assert repr(two()) == "StarScores(2 responses, lowest 0.250, 1 failed)"
    assert repr(two()[0]) == "ScoredResponse(row 0: 19 characters, 2 scores, lowest 0.250)"


def test_scores_are_a_sequence_of_responses() -> None:
    star = star_scores(make_guard(), BATCH, every=3)
    assert len(star) == len(BATCH["response"]) == len(list(star))
    first = star[0]
    assert isinstance(first, ScoredResponse)
    assert (first.response, first.ends, first.row) == (BATCH["response"][0], star.ends[0], 0)
    assert first.scores is star.scores[0]
    assert star[-1] is star[len(star) - 1]
    part = star[1:3]
    assert isinstance(part, StarScores)
    assert part.responses == star.responses[1:3]
    assert [item.final for item in star] == star.final().tolist()
    with pytest.raises(IndexError):
        _ = star[len(star)]


def test_rows_for_training_are_plain_values() -> None:
    (row, _) = two().to_training_rows()
    scores = [pytest.approx(0.9), 0.25]
    assert row == {
        "messages": [*HISTORY, {"role": "assistant", "content": SECRET}],
        "star": [{"turn": 1, "text": SECRET, "ends": [3, 19], "scores": scores, "flags": []}],
    }


def test_flags_are_known_names() -> None:
    assert two()[1].flags == {Flag.FAILED} == {"failed"}
    with pytest.raises(ValueError, match="'odd' is not a valid Flag"):
        ScoredResponse.of(HISTORY, SECRET, [1.0], [19], ["odd"])


def test_an_error_carries_its_row_and_reason() -> None:
    batch = {"prompt": ["a", "b"], "response": ["fine", 3]}
    with pytest.raises(RowError, match="row 1: response: expected text, got int") as caught:
        star_scores(make_guard(check=False), batch)
    assert (caught.value.row, caught.value.reason) == (1, "response: expected text, got int")
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.row, again.reason, str(again)) == (1, caught.value.reason, str(caught.value))
    assert isinstance(again, UserError)
    assert isinstance(again, TypeError)
