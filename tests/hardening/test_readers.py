"""Files that a reader could take for other rows than they hold: each is an error, of its row where that is possible."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from fastdss.corpus import csv_files
from fastdss.corpus.files import PEEKED
from fastdss.corpus.rows import DataOptions, FailedRow, Row, read_rows

HEADER, GOOD = b"prompt,response\n", b"Hi,Hello\n"


def outcomes(*sources: Any) -> list[str]:
    """The response of each row, or why there is none."""
    return [
        row.conversation.turns[-1].content if isinstance(row, Row) else row.reason.partition(": ")[2]
        for row in read_rows(sources)
    ]


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (b"Hi,Hello, you\n", "3 fields under a header of 2"),  # a comma without quotes: the text went on
        (b"Hi\n", "1 fields under a header of 2"),
        (b'Hi,"5" screen"\n', "not a record of CSV: ',' expected after '\"'"),
        (b'Hi,"Hello\n', "not a record of CSV: unexpected end of data"),  # the file was cut: the text may go on
    ],
)
def test_a_record_of_csv_that_does_not_fit_fails_alone(tmp_path: Path, record: bytes, reason: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(HEADER + GOOD + b"\n" + record + (b"" if b'"Hello\n' in record else GOOD))
    assert outcomes(path) == ["Hello", reason, "Hello"][: 2 if "end of data" in reason else 3]


def test_bad_records_of_csv_have_hashes_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(HEADER + b"a,b,c\na,b,d\n" + b'"a"b",c\n' + b'"a\xff"c\n')
    found = list(read_rows([path]))
    assert all(isinstance(row, FailedRow) for row in found)
    assert len({row.content_hash for row in found}) == 4


@pytest.mark.parametrize(
    "record",
    [
        b'Hi,"Hello\n',  # never closed: all that follows would be one answer
        b'Hi,"Hello\n"Who?","Me"\n',  # closed by the quote that begins another record
        b'Hi,"Hello"you\n',  # the text may go on
        b'Hi,"5" screen\nand more, of it"\n',  # it does: its second line would be a record
        b'"Hi" he said,Hello\nand "more, of it",so\n',
    ],
)
@pytest.mark.parametrize("mark", [b",", b";", b"\t"])
def test_a_broken_quote_after_which_nothing_is_certain_is_said_with_its_line(
    tmp_path: Path, record: bytes, mark: bytes
) -> None:
    """As pandas and the csv module in its strict mode do; what follows was swallowed, or read as rows of its own."""
    path = tmp_path / "rows.csv"
    path.write_bytes((HEADER + GOOD + record + GOOD + GOOD).replace(b",", mark))
    with pytest.raises(ValueError, match=r"rows\.csv: line 3: a quote is not closed, or not doubled within its field"):
        list(read_rows([path]))


def test_a_record_that_swallowed_others_says_how_many_lines_it_has(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(HEADER + b'Hi,"Hello\nWho?,Me",x\n' + GOOD)
    assert outcomes(path) == ["3 fields under a header of 2, on 2 lines: is a quote not closed?", "Hello"]


def test_a_line_of_quotes_takes_no_time_to_speak_of(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(HEADER + b'"a"b' + b',"x' * 200_000 + b"\n" + GOOD)
    began = time.process_time()
    with pytest.raises(ValueError, match="line 2: a quote is not closed"):
        list(read_rows([path]))
    assert time.process_time() - began < 5  # quadratic, it would take minutes


def test_a_quote_that_is_never_closed_does_not_fill_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_files, "_LONGEST_RECORD", 1000)
    path = tmp_path / "rows.csv"
    path.write_bytes(HEADER + GOOD * 500)
    assert len(list(read_rows([path]))) == 500  # the limit is a record's, not the file's
    path.write_bytes(HEADER + GOOD * 500 + b'Hi,"Hello\n' + GOOD * 500)
    with pytest.raises(
        ValueError, match=r"rows\.csv: line 502: a record of 1000 characters or more; is a quote not closed"
    ):
        list(read_rows([path]))
    path.write_bytes(HEADER + GOOD * 500 + b"x" * 2000)  # nor does a line
    with pytest.raises(ValueError, match="a record of 1000 characters or more"):
        list(read_rows([path]))


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize("twice", ["response", "x"])
def test_two_columns_of_one_name(tmp_path: Path, kind: str, twice: str) -> None:
    """Readers disagree on which one counts; columns that nobody reads may be called what they like."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    names = ["prompt", *dict.fromkeys(["response", twice]), twice]
    path = tmp_path / f"rows.{kind}"
    if kind == "csv":
        path.write_text(f"{','.join(names)}\n{','.join(names)}\n")
    else:
        pq.write_table(pa.Table.from_arrays([pa.array([name]) for name in names], names=names), path)
    if twice == "response":
        with pytest.raises(ValueError, match=rf"rows\.{kind}: 2 columns are named 'response'"):
            list(read_rows([path]))
    else:
        assert outcomes(path) == ["response"]


def test_what_parquet_holds_and_python_does_not_fails_alone(tmp_path: Path) -> None:
    """Bytes that are no text in a column of text, and a date of the year 146,000 as an id."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    offsets = pa.array([0, 1, 2, 3], pa.int32()).buffers()[1]
    texts = pa.Array.from_buffers(pa.string(), 3, [None, offsets, pa.py_buffer(b"a\xffb")])
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"prompt": ["Hi"] * 3, "response": texts}), path)
    assert outcomes(path) == ["a", "not valid UTF-8 (position 0)", "b"]
    ids = pa.array([0, 2**62, 1], pa.timestamp("us"))
    pq.write_table(pa.table({"prompt": ["Hi"] * 3, "response": ["a", "b", "c"], "id": ids}), path)
    assert outcomes(path) == ["a", "a value that Python cannot hold (OverflowError)", "c"]
    hashes = [row.content_hash for row in read_rows([path])]
    assert len(set(hashes)) == 3


def test_values_that_cannot_be_written_down_fail_alone() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    good, number = {"prompt": "Hi", "response": "Hello"}, 10**5000
    for bad in ({"id": number}, {"id": deep}, {"response": number}, {"prompt": number}, {"messages": [deep]}):
        first, reason, last = outcomes([good, good | bad, good])
        assert (first, last) == ("Hello", "Hello")
        assert len(reason) < 200


@pytest.mark.parametrize("limit", [0, -1, -2])
def test_a_limit_that_leaves_no_row(tmp_path: Path, limit: int) -> None:
    """-1 read no line of a file, and the run finished with 0 rows."""
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"prompt": "Hi", "response": "Hello"}\n')
    with pytest.raises(ValueError, match=f"max_bytes: expected at least 1, got {limit}"):
        list(read_rows([path], DataOptions(max_bytes=limit)))


@pytest.mark.parametrize("content", ["{}", "[]", "{"])
def test_splits_that_do_not_say_what_they_are(tmp_path: Path, content: str) -> None:
    for part in ("test", "train"):
        (tmp_path / part).mkdir()
        for name in ("state.json", "dataset_info.json"):
            (tmp_path / part / name).write_text("{}")
    (tmp_path / "dataset_dict.json").write_text(content)
    with pytest.raises(ValueError, match="holds the splits test, train: give one of their folders"):
        list(read_rows([tmp_path]))


def test_a_parquet_file_that_arrow_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by the fuzzer: not all of Arrow's errors are ValueErrors, and a column's name need not be text."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"prompt": ["Hi"], "response": ["Hello"], "canary": [1]}), path)
    path.write_bytes(path.read_bytes().replace(b"canary", b"canar\xff"))
    with pytest.raises(ValueError, match=r"rows\.parquet: not to be read as Parquet: not valid UTF-8") as caught:
        list(read_rows([path]))
    assert "xff" not in str(caught.value)

    def refuse(path: Path, **_: object) -> None:
        raise pa.ArrowNotImplementedError("Integers with less than 8 bits not implemented")

    monkeypatch.setattr(pq, "ParquetFile", refuse)
    with pytest.raises(ValueError, match="not to be read as Parquet: Integers with less than 8 bits"):
        list(read_rows([path]))


LINE = json.dumps({"prompt": "a", "response": "b"}) + "\n"


@pytest.mark.parametrize(
    ("content", "kinds"),
    [
        ((LINE * 2).encode("utf-16")[:-1], [Row, FailedRow]),
        ((LINE * 2).encode("utf-16-be")[:-3], [Row, FailedRow]),
        (LINE.encode("utf-16")[:20] + b"\x00\xd8" + (LINE * 2).encode("utf-16")[20:], [FailedRow, Row]),
        (b"\0\n\0\n" + LINE.encode(), [FailedRow, FailedRow, Row]),
    ],
    ids=["cut within a character", "cut by one and a half", "half a pair", "NULs that are no UTF-16"],
)
def test_what_is_no_utf16_costs_its_row(tmp_path, content, kinds):
    """It ended in a UnicodeDecodeError, or the file was taken for another encoding and its rows were lost."""
    (tmp_path / "rows.jsonl").write_bytes(content)
    assert [type(row) for row in read_rows([tmp_path / "rows.jsonl"])] == kinds


def test_a_long_file_of_lines_whose_first_ones_are_broken(tmp_path):
    """Beyond what is looked at to find the layout: the file was refused as neither lines nor one object."""
    deep = '{"a":' * 3000 + "\n"
    (tmp_path / "rows.jsonl").write_text(deep + "x\n" + deep * 4 + LINE)
    found = [type(row) for row in read_rows([tmp_path / "rows.jsonl"])]
    assert found == [FailedRow] * 6 + [Row]
    long = '{ "prompt": "a",\n "response": "' + "b " * PEEKED + '"\n}'  # one object over lines, for all its name says
    (tmp_path / "one.jsonl").write_text(long)
    assert [type(row) for row in read_rows([tmp_path / "one.jsonl"])] == [Row]
