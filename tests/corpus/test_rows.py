"""Reading: every format gives the same rows, and whatever is wrong with a row stays that row's."""

import csv
import json
import tracemalloc
from dataclasses import replace

import pytest

from fastdss.chat.record import Columns
from fastdss.corpus.engines import Shard
from fastdss.corpus.rows import DataOptions, FailedRow, Row, read_rows
from fastdss.corpus.sources import read_source
from fastdss.corpus.store import ScoredRow, ScoredTurn
from fastdss.score_report.data import page_rows

from .fakes import CANARY, conversations, write_jsonl

pa = pytest.importorskip("pyarrow", reason="needs the [score] extra")
datasets = pytest.importorskip("datasets", reason="needs the [score] extra")
ROWS = conversations(5)


def test_every_format_gives_the_same_rows(tmp_path):
    import pyarrow.parquet as pq

    write_jsonl(tmp_path / "rows.jsonl", ROWS)
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    with (tmp_path / "rows.csv").open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, list(ROWS[0]))
        writer.writeheader()
        writer.writerows(ROWS)
    dataset = datasets.Dataset.from_list([row | {"more": 1} for row in ROWS])
    dataset.save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "parts").mkdir()
    write_jsonl(tmp_path / "parts" / "a.jsonl", ROWS[:2])
    write_jsonl(tmp_path / "parts" / "b.jsonl", ROWS[2:])
    as_messages = [
        {
            "id": row["id"],
            "messages": [
                {"role": "user", "content": row["prompt"]},
                {"role": "assistant", "content": row["response"]},
            ],
        }
        for row in ROWS
    ]
    expected = list(read_rows([ROWS]))
    assert [row.id for row in expected] == [row["id"] for row in ROWS]
    assert expected[0].conversation.before(1) == [{"role": "user", "content": "Question 0?"}]
    assert len({row.content_hash for row in expected}) == 5
    sources = [tmp_path / name for name in ("rows.jsonl", "rows.parquet", "rows.csv", "saved", "parts")]
    for source in [*sources, dataset, as_messages]:
        assert [replace(row, line=None) for row in read_rows([source])] == expected


def test_ids_are_positions_over_all_sources_where_there_are_none():
    without = [{"prompt": row["prompt"], "response": row["response"]} for row in ROWS]
    assert [row.id for row in read_rows([without[:2], without[2:]])] == ["0", "1", "2", "3", "4"]


def test_columns_by_name():
    rows = [{"key": 7, "q": "Hi", "a": "Hello."}]
    (row,) = read_rows([rows], DataOptions(Columns(prompt="q", response="a", id="key")))
    assert (row.id, row.conversation.turns[1].content) == ("7", "Hello.")


# Each line is what a stranger might send, and a piece of the reason it gets.
BAD_LINES = [
    (b'{"prompt": "canary7f3a91", "response": ', "not a line of JSON"),
    (b'["canary7f3a91"]', "expected a JSON object per line, got list"),
    (b"[" * 100_000, "not a line of JSON: nested too deeply"),
    (b'{"prompt": "canary7f3a91 \xff", "response": "x"}', "not valid UTF-8"),
    (b'{"prompt": "canary7f3a91"}', "expected 'messages', or 'prompt' and 'response'"),
    (b'{"prompt": "canary7f3a91", "response": 5}', "expected text, got int"),
    (b'{"prompt": "canary7f3a91", "response": "\\ud800"}', "lone surrogate at character 0"),
    (b'{"messages": [{"role": "user", "content": "canary7f3a91"}]}', "it has no turn of the assistant"),
    (b'{"messages": [{"role": "canary7f3a91", "content": "x"}]}', "unknown role"),
    (b'{"messages": {"role": "user"}}', "expected a mapping per message in a list"),
    (b'{"messages": "canary7f3a91"}', "expected a non-empty list of messages, got str"),
    (b'{"messages": []}', "expected a non-empty list"),
    (b'{"prompt": "x", "response": "' + b"canary7f3a91 " * 800_000 + b'"}', "bytes exceed the limit of 8388608"),
    (b'{"prompt": "x", "response": "' + b"canary7f3a91 " * 100_000 + b'"}', "exceed the limit of 1000000"),
    (b'{"id": "' + b"canary7f3a91" * 1000 + b'", "prompt": "x", "response": 1}', "expected text"),
]


def test_bad_rows_fail_alone_with_a_reason_that_never_quotes_them(tmp_path):
    good = json.dumps(ROWS[0]).encode()
    path = tmp_path / "rows.jsonl"
    for line, _ in BAD_LINES:
        path.write_bytes(b"\n".join([good, line, b"", good]))
        first, bad, last = read_rows([path])
        assert isinstance(first, Row)
        assert isinstance(last, Row)
        assert isinstance(bad, FailedRow)
        reason = next(piece for bytes_, piece in BAD_LINES if bytes_ == line)
        assert reason in bad.reason
        assert bad.reason.startswith("line 2: ")
        assert bad.line == 2
        assert CANARY not in bad.reason + bad.id
        assert len(bad.id) <= 1000


def test_a_csv_cell_that_is_no_utf8_fails_alone(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes(b"prompt,response\nHi,Hello\nHi,\xff\nHi," + b"x" * 200_000 + b"\n")
    first, bad, last = read_rows([path])
    assert isinstance(first, Row)
    assert isinstance(bad, FailedRow)
    assert isinstance(last, Row)  # longer than a field that the csv module reads by default


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent.jsonl", "does not exist"),
        ("rows.txt", "expected one of"),
        ("empty", "holds no"),
        ("splits", "holds the splits test, train"),
    ],
)
def test_sources_that_are_none(tmp_path, name, message):
    write_jsonl(tmp_path / "rows.txt", ROWS)
    (tmp_path / "empty").mkdir()
    part = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict({"train": part, "test": part}).save_to_disk(str(tmp_path / "splits"))
    with pytest.raises(ValueError, match=message):
        list(read_rows([tmp_path / name]))


def test_rows_that_can_be_read_once_only_are_refused():
    with pytest.raises(TypeError, match="read twice"):
        list(read_rows([iter(ROWS)]))


def test_a_header_of_csv_that_is_none_is_an_error_of_the_file(tmp_path):
    (tmp_path / "rows.csv").write_text('"prompt"x,response\nHi,Hello\n')
    with pytest.raises(ValueError, match=r"rows\.csv: its header is no record of CSV"):
        list(read_rows([tmp_path / "rows.csv"]))


@pytest.mark.long
@pytest.mark.parametrize("suffix", ["jsonl", "parquet", "csv"])
def test_memory_does_not_grow_with_the_rows(tmp_path, suffix):
    peaks = []
    for count in (300, 6000):
        path = tmp_path / f"{count}.{suffix}"
        table = datasets.Dataset.from_list([row | {"response": row["response"] * 20} for row in conversations(count)])
        {"jsonl": table.to_json, "parquet": table.to_parquet, "csv": table.to_csv}[suffix](str(path))
        tracemalloc.start()
        assert sum(isinstance(row, Row) for row in read_rows([path])) == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0] + 100_000


def test_nothing_that_holds_a_row_shows_its_text():
    """Tracebacks with locals, logs and debuggers print what things say of themselves."""
    record = {"prompt": "the secret question", "response": "the secret answer", "note": "a secret note"}
    (found,) = read_source([record], 1000)
    (row,) = read_rows([[record]])
    scored = ScoredRow(row.id, row.content_hash, [ScoredTurn(1, [0.5], [17], [])])
    held = [found, row, row.reading, row.conversation, row.conversation.turns, scored, Shard("name", [row])]
    assert not [type(item) for item in (*held, *page_rows(0, row, scored)) if "secret" in repr(item)]
