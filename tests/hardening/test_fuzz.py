"""Malformed input to the readers and the command line: a clear error or a right result, never a traceback."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastdss.chat.conversation import plain
from fastdss.cli import main
from fastdss.corpus.rows import FailedRow, Row, read_rows
from fastdss.guards.known import TINY_FOLDER
from fastdss.train.run.settings import read_settings
from tests.support.profiles import examples

from .outcomes import sensible

quick = settings(examples(120), suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])

words = st.text(st.characters(exclude_categories=[]), max_size=12)  # lone surrogates, NUL and all
leaf = st.none() | st.booleans() | st.integers() | st.floats() | words
tree = st.recursive(
    leaf, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3), max_leaves=8
)
turn = st.fixed_dictionaries(
    {}, optional={"role": st.sampled_from(["user", "assistant", "system", "tool"]) | leaf, "content": words | tree}
)
record = st.fixed_dictionaries(
    {},
    optional={
        "prompt": words | st.lists(turn, max_size=3) | tree,
        "response": words | tree,
        "messages": st.lists(turn, max_size=4) | tree,
        "id": st.integers(0, 3) | words | tree,
        "more": tree,
    },
)
line = st.one_of(
    record.map(lambda row: json.dumps(row).encode()),
    tree.map(lambda value: json.dumps(value).encode()),
    st.binary(max_size=40),
    st.tuples(record, st.integers(0, 60)).map(lambda pair: json.dumps(pair[0]).encode()[: pair[1]]),
    st.sampled_from(
        [b"", b"\xef\xbb\xbf", b"\x00", b"[" * 5000, b'{"a":' * 3000, b"NaN", b"1e999", b"\xff\xfe{", b"9" * 5000]
    ),
)


@quick
@given(lines=st.lists(line, max_size=6), end=st.sampled_from([b"", b"\n"]), newline=st.sampled_from([b"\n", b"\r\n"]))
def test_any_bytes_as_jsonl(tmp_path: Path, lines: list[bytes], end: bytes, newline: bytes) -> None:
    """One outcome per line that is not blank, whatever stands there; a good row among them is read as it is."""
    good = {"prompt": "a", "response": "b", "id": "the good one"}
    path = tmp_path / "rows.jsonl"
    whole = [line for line in lines if b"\n" not in line and b"\r" not in line]
    path.write_bytes(newline.join([*whole, json.dumps(good).encode(), *whole]) + end)
    found = list(read_rows([path]))
    sensible(found)
    (read,) = [row for row in found if row.id == "the good one"]
    assert isinstance(read, Row)
    assert [(turn.role, turn.content) for turn in read.conversation.turns] == [("user", "a"), ("assistant", "b")]
    bom = b"\xef\xbb\xbf"  # of a file that others were appended to
    assert len(found) == sum(bool(line.removeprefix(bom).strip()) for line in [*whole, b"x", *whole])


@quick
@given(rows=st.lists(record, max_size=5))
def test_any_mappings_in_memory(rows: list[dict[str, Any]]) -> None:
    found = list(read_rows([rows]))
    sensible(found)
    assert len(found) == len(rows)
    for row, made in zip(found, rows, strict=True):
        response = made.get("response")
        if isinstance(row, Row) and made.get("messages") is None:
            assert row.conversation.turns[-1].content == response, "text is read as it is"


def rows_of(path: Path) -> list[Row | FailedRow]:
    """What is read, or nothing where the file as a whole is refused; any other error escapes and fails the test."""
    try:
        return list(read_rows([path]))
    except (ValueError, OSError):
        return []


@quick
@given(content=st.binary(max_size=200), suffix=st.sampled_from([".parquet", ".csv", ".jsonl", ".json", ".txt", ""]))
def test_any_bytes_as_any_file(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"rows{suffix}"
    path.write_bytes(content)
    sensible(rows_of(path))


@quick
@given(changed=st.integers(0, 10_000), byte=st.integers(0, 255))
def test_a_damaged_parquet_file_is_an_error_or_reads_as_rows(tmp_path: Path, changed: int, byte: int) -> None:
    pq, pa = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    path = tmp_path / "rows.parquet"
    rows = [{"prompt": f"question {i}", "response": f"answer {i}"} for i in range(20)]
    pq.write_table(pa.Table.from_pylist(rows), path)
    content = bytearray(path.read_bytes())
    content[changed % len(content)] = byte
    path.write_bytes(content)
    sensible(rows_of(path))


conversations = st.lists(
    st.tuples(st.sampled_from(["user", "assistant", "system"]), st.text(st.characters(codec="utf-8"), max_size=5)),
    min_size=1, max_size=4,
)  # fmt: skip


@quick
@given(a=conversations, b=conversations)
def test_the_content_hash_tells_conversations_apart(a: list[tuple[str, str]], b: list[tuple[str, str]]) -> None:
    first, second = ([{"role": role, "content": text} for role, text in turns] for turns in (a, b))
    assert (plain(first).digest == plain(second).digest) == (a == b)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([("user", "a"), ("assistant", "b")], [("system", "a"), ("assistant", "b")]),  # roles count
        ([("user", "a b"), ("assistant", "c")], [("user", "a"), ("assistant", "b c")]),  # where a turn ends counts
        ([("user", '", "'), ("assistant", "")], [("user", ""), ("assistant", '", "')]),
        ([("user", "e\u0301")], [("user", "é")]),  # no normalisation
    ],
)
def test_the_content_hash_of_neighbours(one: list[tuple[str, str]], other: list[tuple[str, str]]) -> None:
    test_the_content_hash_tells_conversations_apart.hypothesis.inner_test(one, other)


MODEL = str(TINY_FOLDER)  # its tokenizer is read before the data
COMMANDS: dict[str, Callable[[Path, Path], list[str]]] = {
    "score": lambda data, out: ["score", str(data), "--guard", "tiny", "--out", str(out), "--quiet"],
    "train": lambda data, out: ["train", "--data", str(data), "--model", MODEL, "--out", str(out), "--cpu"],
    "report": lambda data, out: ["report", str(data)],
    "merge": lambda data, out: ["merge", str(data), "--out", str(out / "m.jsonl")],
    "config": lambda data, out: [
        "train",
        "--config",
        str(data),
        "--data",
        "x.jsonl",
        "--model",
        MODEL,
        "--out",
        str(out),
    ],
}
BOMBS = {
    "empty": b"",
    "nested lists": b"[" * 100_000,
    "nested mappings": b'{"prompt": ' * 50_000,
    "NUL": b"\x00" * 100,
    "invalid UTF-8": b'{"prompt": "\xff\xfe", "response": "x"}\n',
    "giant line": b'{"prompt": "a", "response": "' + b"x" * 9_000_000 + b'"}',
    "giant number": b'{"prompt": "a", "response": ' + b"9" * 10_000 + b"}",
    "twice": b'{"id": 1, "prompt": "a", "response": "b"}\n' * 2,
    "only bad rows": b'{"prompt": 1, "response": 2}\n' * 3,
    "YAML anchors": b"a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n",
    "YAML tag": b"!!python/object/apply:os.getcwd []\n",
    "YAML half": b"a: [1, 2\nb: }\n",
    "a list": b"[1, 2, 3]\n",
}


LARGE = ("nested lists", "nested mappings", "giant line", "giant number")  # a settings file comes from its user


@pytest.mark.parametrize(
    ("command", "bomb"), [(c, b) for c in COMMANDS for b in BOMBS if c != "config" or b not in LARGE]
)
def test_the_command_line_ends_in_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], command: str, bomb: str
) -> None:
    data, out = tmp_path / ("run.yaml" if command == "config" else "rows.jsonl"), tmp_path / "out"
    data.write_bytes(BOMBS[bomb])
    assert main(COMMANDS[command](data, out)) == 1
    said = capfd.readouterr().err
    assert "Traceback" not in said
    assert said.strip().splitlines()[-1].startswith(f"fastdss {'train' if command == 'config' else command}: ")
    assert len(said.strip().splitlines()[-1]) < 1000
    assert not list(tmp_path.rglob("*.tmp"))


@quick
@given(
    given_values=st.dictionaries(
        st.sampled_from(["every", "unit", "kl", "seed", "data", "odd"]) | words, tree, max_size=5
    )
)
def test_any_settings(given_values: dict[str, Any]) -> None:
    with contextlib.suppress(ValueError):
        found = read_settings({"data": "x", "model": "m"} | given_values)
        assert found.unit in ("word", "token", "sentence", "character")
        assert isinstance(found.every, int)
