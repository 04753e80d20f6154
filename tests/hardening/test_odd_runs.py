"""Runs under circumstances that nobody lists: odd folders and names, pipes, other programs' files, absurd numbers."""

from __future__ import annotations

import contextlib
import io
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from fastdss.cli import main
from fastdss.corpus.merge import merge
from fastdss.corpus.rows import DataOptions, FailedRow, read_rows
from fastdss.corpus.run import score_dataset
from fastdss.corpus.store import load_manifest, read_scores
from fastdss.score_report.command import write_report
from tests.corpus.fakes import FakeScorer, content_of, conversations, write_jsonl

pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet", reason="needs the [score] extra")


def rows_file(folder: Path, name: str = "rows.jsonl", count: int = 5) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return write_jsonl(folder / name, conversations(count))


@pytest.mark.parametrize("name", ["with blanks", "a\nb", "日本\u202e é", "%00;$(x)'\"", os.fsdecode(b"no text \xff")])
def test_folders_and_files_of_any_name(tmp_path: Path, name: str) -> None:
    """Also one that is no UTF-8: its shards could be written and never be read."""
    data, out = rows_file(tmp_path / name, f"{name}.jsonl"), tmp_path / name / name
    assert score_dataset(data, out, FakeScorer(), shard_rows=2)["counts"]["scored"] == 5
    score_dataset(data, out, FakeScorer(broken=True), shard_rows=2)
    assert write_report(out, tmp_path / name / "page.html") is None
    for suffix in ("parquet", "jsonl"):
        assert merge(out, tmp_path / name / f"merged {name}.{suffix}").rows == 5


def test_an_out_folder_behind_a_link_is_that_folder(tmp_path: Path) -> None:
    data, real, link = rows_file(tmp_path), tmp_path / "real", tmp_path / "link"
    real.mkdir()
    link.symlink_to(real)
    score_dataset(data, link, FakeScorer())
    score_dataset(data, real, FakeScorer(broken=True))
    link.unlink()
    link.symlink_to(tmp_path / "gone")
    with pytest.raises(OSError, match="link"):
        score_dataset(data, link, FakeScorer(broken=True))


def test_the_input_is_left_as_it_was(tmp_path: Path) -> None:
    """It may be read-only, or somebody else's."""
    data = rows_file(tmp_path / "in").parent

    def seen() -> dict[str, tuple[int, int]]:
        return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in (data, *data.rglob("*"))}

    before = seen()
    score_dataset(data, tmp_path / "out", FakeScorer())
    merge(tmp_path / "out", tmp_path / "merged.jsonl")
    assert seen() == before


def test_scores_beside_the_input_would_be_read_as_input(tmp_path: Path) -> None:
    """The second run took the first one's manifest for rows, and no run after it finished."""
    rows_file(tmp_path)
    with pytest.raises(ValueError, match=r"out: .* is the input's folder, where the manifest would be read as rows"):
        score_dataset(tmp_path, tmp_path / "." / "", FakeScorer(broken=True))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.jsonl"]


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    """Rows are read twice; the second time nothing would come, for ever."""
    os.mkfifo(tmp_path / "rows.jsonl")
    with pytest.raises(ValueError, match=r"rows\.jsonl: expected a file that can be read twice, not a pipe"):
        list(read_rows([tmp_path / "rows.jsonl"]))


class Waiting(FakeScorer):
    """Holds the folder until it is told to go on."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.may_end = threading.Event(), threading.Event()

    def score_rows(self, rows: Any, report: Any) -> Any:
        self.begun.set()
        assert self.may_end.wait(60)
        return super().score_rows(rows, report)


def test_another_guard_on_the_same_folder_at_the_same_time(tmp_path: Path) -> None:
    """Refused, and the first run's scores are those of an undisturbed one."""
    data, out, first = rows_file(tmp_path), tmp_path / "out", Waiting()
    running = threading.Thread(target=score_dataset, args=(data, out, first))
    running.start()
    try:
        assert first.begun.wait(60)
        with pytest.raises(ValueError, match="is being written by process"):
            score_dataset(data, out, FakeScorer(name="another", broken=True))
    finally:
        first.may_end.set()
        running.join(60)
    score_dataset(data, tmp_path / "alone", FakeScorer())
    assert content_of(out) == content_of(tmp_path / "alone")
    score_dataset(data, out, FakeScorer(name="another"))
    assert load_manifest(out)["guard"] == "another"


def test_a_clock_that_goes_back_costs_nothing(tmp_path: Path) -> None:
    """What is finished is known by content: times of files and folders, past or to come, mean nothing."""
    data, out = rows_file(tmp_path), tmp_path / "out"
    score_dataset(data, out, FakeScorer(), shard_rows=2)
    before = content_of(out)
    for when, path in enumerate((data, *out.rglob("*"))):
        os.utime(path, (0, 0) if when % 2 else (2**33, 2**33))
    score_dataset(data, out, FakeScorer(broken=True), shard_rows=2)
    assert content_of(out) == before


@pytest.mark.parametrize("content", ["{}", "[]", "5", "null", '"x"', '{"name": "my app", "icons": []}'])
def test_another_programs_manifest_is_neither_read_nor_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    """A folder of something else: it ended in a traceback, or was overwritten."""
    data, out = rows_file(tmp_path), tmp_path / "app"
    out.mkdir()
    (out / "manifest.json").write_text(content)
    for arguments in (["report", str(out)], ["merge", str(out), "--out", str(tmp_path / "m.jsonl")]):
        assert main(arguments) == 1
        assert "manifest.json was not written by fastdss score" in capsys.readouterr().err
    with pytest.raises(TypeError, match=r"manifest\.json was not written by fastdss score; use another folder"):
        score_dataset(data, out, FakeScorer(broken=True))
    assert (out / "manifest.json").read_text() == content


def test_numbers_that_no_machine_counts_to(tmp_path: Path) -> None:
    data, huge = rows_file(tmp_path), 10**30
    manifest = score_dataset(data, tmp_path / "out", FakeScorer(), shard_rows=huge, data=DataOptions(max_bytes=huge))
    assert manifest["counts"]["scored"] == 5
    assert len(list(read_scores(tmp_path / "out"))) == 5


@pytest.mark.parametrize("workers", [0, -1])
def test_nobody_who_works(tmp_path: Path, workers: int) -> None:
    with pytest.raises(ValueError, match=f"workers: expected a positive integer, got {workers}"):
        score_dataset(rows_file(tmp_path), tmp_path / "out", FakeScorer(), workers=workers)


def test_a_terminal_without_the_paths_characters(tmp_path: Path) -> None:
    """The run was complete, and the command said that it had failed."""
    data, out = rows_file(tmp_path / "é"), tmp_path / "é" / "out"
    score_dataset(data, out, FakeScorer())
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    with contextlib.redirect_stdout(terminal):
        assert main(["merge", str(out), "--out", str(tmp_path / "é" / "m.jsonl")]) == 0
    terminal.flush()
    said = terminal.buffer.getvalue()
    assert rb"\xe9/m.jsonl" in said
    assert b"conversations  5" in said


def test_bytes_that_are_no_text_in_a_saved_data_set(tmp_path: Path) -> None:
    """One bad row stays one bad row: the others are read, and two bad ones are not one."""
    datasets = pytest.importorskip("datasets", reason="needs the [score] extra")
    offsets = pa.array([0, 1, 2, 3, 4], pa.int32()).buffers()[1]
    texts = pa.Array.from_buffers(pa.string(), 4, [None, offsets, pa.py_buffer(b"a\xff\xfeb")])
    table = pa.table({"prompt": ["Hi"] * 4, "response": texts})
    datasets.Dataset(table).save_to_disk(tmp_path / "saved")
    found = list(read_rows([tmp_path / "saved"]))
    assert [isinstance(row, FailedRow) for row in found] == [False, True, True, False]
    assert [found[i].conversation.turns[-1].content for i in (0, 3)] == ["a", "b"]
    assert found[1].reason == "row 1: not valid UTF-8 (position 0)"
    assert len({row.content_hash for row in found}) == 4


def test_ids_of_every_kind() -> None:
    """Each is text as Python writes it, or the row fails alone; none becomes another row's."""
    ids = [-0.0, 0.0, 10**400, 10**5000, float("nan"), True, "x" * 1001, "\ud800", [1], "a\nb\x00", "../../etc", ""]
    found = list(read_rows([[{"prompt": "a", "response": "b", "id": value} for value in ids]]))
    assert [row.id for row in found if not isinstance(row, FailedRow)] == [
        "-0.0", "0.0", str(10**400), "4", "True", "[1]", "a\nb\x00", "../../etc", "11"
    ]  # fmt: skip
    assert [row.id for row in found if isinstance(row, FailedRow)] == ["3", "6", "7"]
    assert json.loads(json.dumps([row.id for row in found])) == [row.id for row in found]
