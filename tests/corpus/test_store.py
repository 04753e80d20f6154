"""The store: the same rows give the same bytes, and nothing that was altered is read as if it were not."""

import io
import subprocess
import sys
import threading

import pytest

from fastdss.corpus.rows import Row, read_rows
from fastdss.corpus.run import score_dataset
from fastdss.corpus.store import (
    DamagedShard,
    ScoredRow,
    Shards,
    joined,
    load_manifest,
    only_writer,
    read_scores,
    shard_name,
)
from fastdss.corpus.tables import read_parquet

from .fakes import FakeScorer, conversations, fake_score, write_jsonl

pytest.importorskip("pyarrow", reason="needs the [score] extra")

SCORED = [
    *(fake_score(row) for row in read_rows([conversations(20)])),
    ScoredRow("bad", "0" * 64, [], "line 21: not a line of JSON"),
]
NAME = shard_name((row.id, row.content_hash) for row in SCORED)


@pytest.fixture
def shards(tmp_path):
    store = Shards(tmp_path)
    store.write(NAME, SCORED)
    return store


def test_round_trip_and_equal_bytes(shards):
    before = shards.path(NAME).read_bytes()
    assert shards.read(NAME) == SCORED
    shards.write(NAME, SCORED)
    assert shards.path(NAME).read_bytes() == before


def test_a_flipped_byte_is_never_read_as_another_score(shards):
    whole = shards.path(NAME).read_bytes()
    found = 0
    for at in range(0, len(whole), 3):
        shards.path(NAME).write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        try:
            assert shards.read(NAME) == SCORED  # statistics and hints: nothing depends on them
        except DamagedShard:
            found += 1
    assert found > len(whole) / 3 / 2


@pytest.mark.parametrize("kept", [0, 3, -1000, -1])
def test_a_truncated_shard_is_found(shards, kept):
    whole = shards.path(NAME).read_bytes()
    shards.path(NAME).write_bytes(whole[:kept])
    with pytest.raises(DamagedShard, match=NAME):
        shards.read(NAME)
    assert shards.valid(NAME) is None
    assert [path.suffix for path in shards.folder.iterdir()] == [".damaged"]


def test_a_shard_in_another_ones_place_is_found(shards):
    other = [fake_score(row) for row in read_rows([conversations(3)])]
    shards.write(NAME, other)
    with pytest.raises(DamagedShard, match="not those it was written for"):
        shards.read(NAME)


def test_manifest_missing_or_damaged(tmp_path):
    with pytest.raises(ValueError, match=r"holds no scores"):
        load_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text('{"shards": [')
    with pytest.raises(ValueError, match="is damaged"):
        load_manifest(tmp_path)


@pytest.fixture
def scored(tmp_path):
    rows = conversations(7)
    rows[3] = {"id": "row-3", "prompt": "no response"}
    source = write_jsonl(tmp_path / "rows.jsonl", rows)
    score_dataset(source, tmp_path / "out", FakeScorer(), shard_rows=3)
    return rows, source, tmp_path / "out"


def test_joined_pairs_text_and_scores(scored):
    rows, _, out = scored
    pairs = list(joined(out))
    assert [row.id for row, _ in pairs] == [f"row-{i}" for i in range(7)]
    read = [row.conversation.turns[-1].content if isinstance(row, Row) else "" for row, _ in pairs]
    assert read == [row.get("response", "") for row in rows]
    assert [score.error is None for _, score in pairs] == [True] * 3 + [False] + [True] * 3
    assert "expected 'messages'" in pairs[3][1].error
    assert [score for _, score in pairs] == list(read_scores(out))


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: [*rows[:2], rows[2] | {"response": "Edited."}, *rows[3:]],
        lambda rows: [rows[1], rows[0], *rows[2:]],
        lambda rows: rows[:-1],
        lambda rows: [*rows, *conversations(1, first=100)],
    ],
    ids=["edited", "reordered", "shortened", "appended"],
)
def test_joined_refuses_another_input(scored, change):
    rows, source, out = scored
    write_jsonl(source, change(rows))
    with pytest.raises(ValueError, match=r"the input (is not what was scored: row 'row-\d'|has more rows)"):
        list(joined(out))


def test_joined_takes_the_input_from_elsewhere(scored, tmp_path):
    _, source, out = scored
    moved = source.rename(tmp_path / "moved.jsonl")
    with pytest.raises(ValueError, match=r"rows.jsonl, which was scored, is not there: fastdss merge takes .* --input"):
        list(joined(out))
    assert len(list(joined(out, [moved]))) == 7


def test_the_lock_names_its_holder_and_ends_with_it(tmp_path):
    hold = f"""
from pathlib import Path
from fastdss.corpus.store import only_writer
with only_writer(Path({str(tmp_path)!r})):
    print("held", flush=True)
    input()
"""
    holder = subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match=f"process {holder.pid} on "), only_writer(tmp_path):
            pass
        with pytest.raises(ValueError, match="process"), only_writer(tmp_path, rank=1, ranks=2):
            pass
    finally:
        holder.kill()
        holder.communicate()
    with only_writer(tmp_path):
        pass


def test_ranks_share_the_folder_but_not_a_rank(tmp_path):
    with only_writer(tmp_path, rank=0, ranks=2):
        with only_writer(tmp_path, rank=1, ranks=2):
            pass
        with pytest.raises(ValueError, match="being written"), only_writer(tmp_path, rank=0, ranks=2):
            pass
        with pytest.raises(ValueError, match="being written"), only_writer(tmp_path):
            pass


def test_what_python_lent_to_arrow_comes_back_in_this_thread(shards, tmp_path, monkeypatch):
    """A thread of Arrow that frees bytes of Python's while Python ends aborts the process, with exit code 134."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    threads = []

    class Lent(bytes):
        def __del__(self):
            threads.append(threading.get_ident())

    class Lending(io.BytesIO):
        def read(self, *size):
            threads.append(threading.get_ident())
            return Lent(super().read(*size))

    table = pa.table(
        {name: [f"{name} {i}" for i in range(3000)] for name in ("prompt", "response", "a", "b", "c", "d")}
    )
    pq.write_table(table, written := io.BytesIO())
    assert len(list(read_parquet("rows.parquet", Lending(written.getvalue())))) == 3000
    assert set(threads) == {threading.get_ident()}
    threads.clear()
    content = shards.path(NAME).read_bytes()
    monkeypatch.setattr(type(shards.path(NAME)), "open", lambda *_: Lending(content))
    assert shards.read(NAME) == SCORED
    assert set(threads) == {threading.get_ident()}
