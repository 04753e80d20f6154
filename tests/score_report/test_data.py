"""Counts over all rows, the rows that are kept, and what the script is given."""

import json
import math
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastdss.chat.conversation import plain
from fastdss.corpus.rows import FailedRow, Row
from fastdss.corpus.store import ScoredRow, ScoredTurn
from fastdss.pages.charts import STEPS, bars, heat
from fastdss.score_report.data import TEXT_LIMIT, collect, columns, detail, page_rows, script_data, utf16_ends
from tests.support.profiles import examples

from .entries import HOSTILE, entry, failed


def one(pair):
    (row,) = page_rows(0, *pair)
    return row


@pytest.mark.parametrize(
    "pair",
    [
        failed(),
        entry("nan", (0.9, math.nan)),  # a guard that wrote NaN without saying so
        entry("inf", (math.inf, 0.9)),
        entry("flag", (0.99,), flags=["failed"]),  # flagged, with a score left over
        entry("error", (0.99,), error="out of memory"),
        entry("none", (), response="text"),
    ],
    ids=lambda pair: pair[1].id,
)
def test_a_failed_row_has_no_score_whatever_else_it_says(pair):
    row = one(pair)
    assert row.failed
    assert (row.minimum, row.final, row.drop, row.scores, row.ends) == (None, None, None, [], [])
    assert row.tags.count("failed") == 1
    summary, _ = collect([pair], None)
    assert (summary.rows, summary.scored, sum(summary.minimum), sum(summary.final)) == (1, 0, 0, 0)


def test_a_truncated_row_has_no_final_score():
    row = one(entry("t", (0.2, 0.9), flags=["truncated"]))
    assert (row.minimum, row.final) == (0.2, None)
    assert "recovers" not in row.tags  # its end was not seen


def test_low_recovers_and_first_drop():
    row = one(entry("r", (0.9, 0.4, 0.1, 0.6), response="x" * 20))
    assert row.tags == ["low", "recovers"]
    assert row.drop == 0.5
    assert one(entry("l", (0.9, 0.1))).tags == ["low"]
    assert one(entry("h", (0.5, 0.9))).tags == []  # one half is not below one half


def test_limit_keeps_the_lowest_and_failed_rows_do_not_push_them_out():
    pairs = [entry(f"s{i}", (score, 0.9)) for i, score in enumerate((0.8, 0.1, 0.5, 0.1, 0.3))]
    pairs[2:2] = [failed(f"f{i}") for i in range(4)]
    summary, rows = collect(pairs, 3)
    assert [row.id for row in rows] == ["s1", "s3", "s4", "f0", "f1", "f2"]  # equal minima in the order of the file
    assert summary.rows == 9
    assert summary.tags["failed"] == 4
    _, everything = collect(pairs, None)
    assert len(everything) == 9


def test_histograms_count_every_row_once_and_one_belongs_to_the_last_bin():
    summary, rows = collect([entry(str(s), (1.0, s)) for s in (0.0, 0.05, 0.1, 0.95, 1.0)], 1)
    assert len(rows) == 1
    assert summary.minimum == [2, 1, 0, 0, 0, 0, 0, 0, 0, 2]
    assert summary.final == summary.minimum
    assert summary.median_drop == 1.0


def test_memory_is_that_of_the_rows_kept():
    """4,000 rows of 4 KB would be 16 MB."""
    pairs = (entry(str(i), (0.5 + (i % 97) / 200,), response="x" * 4000 + str(i)) for i in range(4000))
    tracemalloc.start()
    try:
        summary, rows = collect(pairs, 50)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (summary.rows, len(rows)) == (4000, 50)
    assert peak < 2e6


@examples(200)
@given(st.recursive(st.text(alphabet=st.characters(codec=None)), lambda inner: st.lists(inner, max_size=4)))
def test_script_data_is_inert_and_says_the_same(value):
    text = script_data(value)
    assert "<" not in text
    text.encode("utf-8")  # no lone surrogate
    assert json.loads(text) == value


def test_script_data_of_hostile_text():
    text = script_data({HOSTILE: HOSTILE})
    assert json.loads(text) == {HOSTILE: HOSTILE}
    assert not set(text) & set("<\u2028\u2029\u202e\u202c\x00\x1b\ufeff\ud800")


def test_script_data_refuses_numbers_that_json_has_not():
    with pytest.raises(ValueError, match="not JSON compliant"):
        script_data([math.nan])


@pytest.mark.parametrize("text", ["plain", "naïve ½", "a😀b👩‍👩‍👧c", "\ud800x😀", ""])
def test_utf16_ends_are_where_scripts_count(text):
    ends = list(range(len(text) + 1))
    expected = [len(text[:end].encode("utf-16-le", "surrogatepass")) // 2 for end in ends]
    assert utf16_ends(text, ends) == expected


def test_utf16_ends_go_on_beyond_a_text_that_was_cut():
    assert utf16_ends("😀b", [1, 2, 5, 9]) == [2, 3, 6, 10]


def test_detail_says_how_much_text_it_leaves_out():
    row = one(entry("long", (0.9, 0.8), response="x" * (TEXT_LIMIT + 7)))
    found = detail(row)
    assert len(found["response"]) == TEXT_LIMIT
    assert found["left_out"] == 7
    assert found["ends"][-1] == TEXT_LIMIT + 7


def test_detail_without_text_keeps_the_scores():
    found = detail(one(entry("x", (0.25, 0.75), text=False, response="ten chars!")))
    assert "response" not in found
    assert found["scores"] == [0.25, 0.75]
    assert found["ends"] == [5, 10]


def test_columns_are_as_long_as_the_rows():
    rows = [one(entry("a", (0.1, 0.9))), one(failed("b"))]
    found = columns(rows, ["low", "recovers", "failed", "because: the guard's logits are not finite"])
    assert found["id"] == ["a", "b"]
    assert found["minimum"] == [0.1, None]
    assert found["tags"] == [[0, 1], [2, 3]]


def test_heat_steps_meet_at_one_half():
    assert [heat(score) for score in (0.0, *STEPS, 1.0)] == [0, 1, 2, 3, 4, 5, 5]
    assert heat(0.4999) == 2


def test_bars_never_hide_a_count_and_never_leave_the_frame():
    svg = bars([1, 0, 10_000_000], field="minimum", axis="x", label="y")
    heights = [float(part.split('height="')[1].split('"')[0]) for part in svg.split('<rect class="bar')[1:]]
    assert heights[0] >= 2
    assert heights[1] == 0
    assert max(heights) <= 176
    assert bars([0, 0], field="minimum", axis="x", label="y")  # nothing scored


def test_turns_of_a_conversation_are_answers_of_one_place_and_line():
    chat = plain([{"role": r, "content": f"{r} {t}"} for t in range(2) for r in ("user", "assistant")])
    row = Row("c", chat, (1, 3), "hash", line=7)
    turns = [ScoredTurn(1, [0.9], [11], ["one_boundary"]), ScoredTurn(3, [], [], ["failed"], "x 5")]
    empty = FailedRow("d", "line 8: no", "h", True), ScoredRow("d", "h", [], "line 8: no", True)
    summary, rows = collect([(row, ScoredRow("c", "hash", turns)), empty], None)
    assert [(r.name, r.order, r.line) for r in rows] == [("c · turn 1", 0, 7), ("c · turn 3", 0, 7), ("d", 1, None)]
    assert rows[0].tags == ["one_boundary"]
    assert rows[1].tags == ["failed", "because: x N"]
    assert rows[2].tags == ["left_out", "because: no"]
    assert (summary.rows, summary.scored) == (3, 1)
    assert columns(rows, sorted(summary.tags))["turn"] == [1, 3, None]
    assert rows[1].history[-1] == {"role": "user", "content": "user 1"}


def test_approximate_scores_are_marked_and_can_be_filtered_by():
    row = one(entry("x", (0.9, 0.2, 0.8), exact=[True, False, False]))
    assert detail(row)["approximate"] == (1, 2)
    assert "approximate" in row.tags
    for exact in (None, [True, True, True]):
        row = one(entry("x", (0.9, 0.2, 0.8), exact=exact))
        assert "approximate" not in detail(row)
        assert "approximate" not in row.tags
    assert one(entry("x", (0.9, float("nan")), exact=[False, True])).approximate == ()
