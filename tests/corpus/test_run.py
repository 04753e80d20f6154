"""Runs: nothing that ends one costs finished work or changes a byte of the result, and nothing is scored twice."""

import json
import random
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fastdss.corpus import run as run_module
from fastdss.corpus.plan import parts_of
from fastdss.corpus.rows import DataOptions, Row
from fastdss.corpus.run import score_dataset
from fastdss.corpus.store import joined, load_manifest, read_scores

from .fakes import CANARY, FakeScorer, content_of, conversations, write_jsonl

pytest.importorskip("pyarrow", reason="needs the [score] extra")
ROOT = Path(__file__).parents[2]
ROWS = 50  # seven shards of seven rows and one of one


@pytest.fixture
def source(tmp_path):
    return write_jsonl(tmp_path / "rows.jsonl", conversations(ROWS))


@pytest.fixture
def undisturbed(source, tmp_path):
    score_dataset(source, tmp_path / "undisturbed", FakeScorer(), shard_rows=7)
    return content_of(tmp_path / "undisturbed")


def shards_in(out):
    return [out / load_manifest(out)["entry"] / f"{name}.parquet" for name in load_manifest(out)["shards"]]


def ids(rows):
    return [f"row-{i}" for i in rows]


def killed(source, out, moment):
    command = [sys.executable, "-m", "tests.corpus.killed", str(source), str(out), str(moment)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def check_kill_points(source, tmp_path, undisturbed, moments):
    for moment in moments:
        out = tmp_path / f"killed-{moment}"
        assert killed(source, out, moment).returncode == -signal.SIGKILL
        finished = len(list(out.glob("*/*.parquet")))
        scorer = FakeScorer()
        score_dataset(source, out, scorer, shard_rows=7)
        assert content_of(out) == undisturbed
        assert scorer.seen == ids(range(7 * finished, ROWS))


def test_the_first_shards_are_small_and_rows_at_the_end_move_none_of_them():
    """A small input lay in one shard, so an interruption cost all of it."""

    def plan(count, shard_rows=None):
        rows = (Row(str(i), None, (), f"{i:064}") for i in range(count))
        return [len(part) for part in parts_of(rows, shard_rows)]

    assert plan(40) == [16, 16, 8]
    assert plan(1000) == [16, 16, 32, 64, 128, 256, 256, 232]
    assert plan(2000)[:7] == plan(1000)[:7]
    assert plan(40, 7) == [7] * 5 + [5]


def test_killed_and_resumed_is_the_same_bytes(source, tmp_path, undisturbed):
    alive = killed(source, tmp_path / "alive", 0)
    moments = int(alive.stdout)
    assert content_of(tmp_path / "alive") == undisturbed
    # within the first manifest, between a shard's flush and its rename, within the last manifest
    check_kill_points(source, tmp_path, undisturbed, [2, moments // 2, moments - 3])


@pytest.mark.slow
def test_killed_at_twenty_random_points(source, tmp_path, undisturbed):
    moments = int(killed(source, tmp_path / "alive", 0).stdout)
    check_kill_points(source, tmp_path, undisturbed, random.Random(6).sample(range(1, moments + 1), 20))


def test_a_full_disk_stops_cleanly(source, tmp_path, undisturbed):
    smallest = sorted(len(content) for name, content in undisturbed.items() if name.endswith(".parquet"))
    manifest = len(undisturbed["manifest.json"])
    assert manifest < smallest[-1], "the limit below must hit a shard, not the manifest"
    out, soft = tmp_path / "out", resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (smallest[-1] - 1, soft[1]))
    try:
        with pytest.raises(OSError, match=r"no room to write in .*finished shards are intact"):
            score_dataset(source, out, FakeScorer(), shard_rows=7)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, soft)
    assert not list(out.rglob(".*.tmp"))
    score_dataset(source, out, FakeScorer(), shard_rows=7)
    assert content_of(out) == undisturbed


def flip(content):
    at = content.index(b"\x28\xb5\x2f\xfd") + 9  # inside the first page, which begins with zstd's magic number
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


@pytest.mark.parametrize("damage", [lambda content: content[:-9], flip], ids=["truncated", "flipped"])
def test_a_damaged_shard_is_set_aside_and_scored_again(source, tmp_path, undisturbed, damage):
    out = tmp_path / "out"
    score_dataset(source, out, FakeScorer(), shard_rows=7)
    victim = shards_in(out)[2]
    broken = damage(victim.read_bytes())
    victim.write_bytes(broken)
    with pytest.raises(ValueError, match=victim.stem):
        list(read_scores(out))
    scorer = FakeScorer()
    score_dataset(source, out, scorer, shard_rows=7)
    assert scorer.seen == ids(range(14, 21))
    assert content_of(out) == undisturbed
    assert victim.with_suffix(".damaged").read_bytes() == broken


@pytest.mark.parametrize("out", ["file", "file/deeper", "/proc/nowhere"])
def test_unwritable_output_is_found_before_the_guard_loads(source, tmp_path, out):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises((OSError, ValueError), match=r"file|nowhere"):
        score_dataset(source, tmp_path / out, FakeScorer(broken=True))
    assert (tmp_path / "file").read_text() == "not a folder"


def test_input_errors_come_before_the_guard_loads(tmp_path):
    broken = FakeScorer(broken=True)
    twice = [*conversations(300), *conversations(1, first=7)]
    with pytest.raises(ValueError, match="rows 7 and 300 have the same id 'row-7'"):
        score_dataset(twice, tmp_path, broken)
    with pytest.raises(ValueError, match="no rows"):
        score_dataset([], tmp_path, broken)
    with pytest.raises(ValueError, match="none of the 2 rows is a conversation; row 0: expected"):
        score_dataset([{"question": CANARY}] * 2, tmp_path, broken)
    with pytest.raises(ValueError, match="engine: expected one of local"):
        score_dataset(conversations(1), tmp_path, broken, engine="spark")
    with pytest.raises(ValueError, match="shard_rows"):
        score_dataset(conversations(1), tmp_path, broken, shard_rows=0)


def test_an_interrupt_keeps_what_is_finished(source, tmp_path, undisturbed):
    class Interrupted(FakeScorer):
        def score_rows(self, rows, report):
            if rows[0].id == "row-21":
                raise KeyboardInterrupt
            return super().score_rows(rows, report)

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        score_dataset(source, out, Interrupted(), shard_rows=7)
    assert not load_manifest(out)["finished"]
    with pytest.raises(ValueError, match="is not finished"):
        list(read_scores(out))
    scorer = FakeScorer()
    score_dataset(source, out, scorer, shard_rows=7)
    assert scorer.seen == ids(range(21, ROWS))
    assert content_of(out) == undisturbed


def test_edited_and_appended_rows_cost_their_own_shards(source, tmp_path):
    out, rows = tmp_path / "out", conversations(ROWS)
    score_dataset(source, out, FakeScorer(), shard_rows=7)
    rows[9] |= {"response": "Edited."}
    write_jsonl(source, [*rows, *conversations(3, first=ROWS)])
    scorer = FakeScorer()
    score_dataset(source, out, scorer, shard_rows=7)
    assert scorer.seen == [*ids(range(7, 14)), *ids(range(49, 53))]
    write_jsonl(source, [rows[1], rows[0], *rows[2:]])
    scorer = FakeScorer()
    score_dataset(source, out, scorer, shard_rows=7)
    assert scorer.seen == ids([1, 0, *range(2, 7)])  # row 49 alone is the last shard again, as it was at first
    assert [row.id for row in read_scores(out)][:3] == ids([1, 0, 2])


def test_another_guard_is_another_entry_and_the_first_stays(source, tmp_path):
    out = tmp_path / "out"
    score_dataset(source, out, FakeScorer("one"), shard_rows=7)
    first = content_of(out)
    other = FakeScorer("other")
    manifest = score_dataset(source, out, other, shard_rows=7)
    assert len(other.seen) == ROWS
    assert manifest["guard"] == "other"
    assert {name: content_of(out)[name] for name in first if name != "manifest.json"}.items() <= first.items()
    score_dataset(source, out, FakeScorer("one", broken=True), shard_rows=7)
    assert load_manifest(out)["guard"] == "one"


def test_an_input_that_changes_meanwhile_is_refused(tmp_path, monkeypatch):
    rows = conversations(20)

    def plan(*args):
        made = make_plan(*args)
        rows[12] = rows[12] | {"response": "Edited."}
        return made

    make_plan = run_module.make_plan
    monkeypatch.setattr(run_module, "make_plan", plan)
    with pytest.raises(ValueError, match="changed while it was read: rows from 7 on"):
        score_dataset(rows, tmp_path, FakeScorer(), shard_rows=7)


def test_a_failure_of_the_machine_is_raised_and_no_row_counts_as_failed(source, tmp_path):
    class Broken(FakeScorer):
        def score_rows(self, rows, report):
            raise RuntimeError("device lost")

    with pytest.raises(RuntimeError, match="device lost"):
        score_dataset(source, tmp_path / "out", Broken())
    assert not list((tmp_path / "out").glob("*/*.parquet"))


def test_no_text_in_manifest_logs_or_errors(source, tmp_path, caplog, capfd):
    rows = [*conversations(5), {"id": "bad", "prompt": CANARY, "response": None}]
    score_dataset(write_jsonl(source, rows), tmp_path / "out", FakeScorer(), progress=True)
    bad = [row for row in read_scores(tmp_path / "out") if row.error]
    assert [row.id for row in bad] == ["bad"]
    everything = [(tmp_path / "out" / "manifest.json").read_text(), caplog.text, *capfd.readouterr(), bad[0].error]
    everything += [path.read_bytes().decode("latin-1") for path in (tmp_path / "out").glob("*/*.parquet")]
    assert CANARY not in "".join(everything)


def test_manifest_says_what_was_scored(source, tmp_path):
    score_dataset(source, tmp_path / "out", FakeScorer(), shard_rows=7)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["inputs"] == [{"path": str(source)}]
    counts = {"rows": ROWS, "scored": ROWS, "failed": 0, "left_out": 0, "turns": ROWS, "turns_failed": 0}
    assert manifest["counts"] == {**counts, "flags": {}, "reasons": {}}
    assert manifest["finished"] is True
    assert manifest["versions"]["pyarrow"]
    assert {"guard", "revision", "template_hash", "options", "data", "shards"} <= set(manifest)


def test_hostile_ids_never_become_paths(tmp_path):
    rows = [row | {"id": bad} for row, bad in zip(conversations(3), ["../../evil", "/etc/passwd", "a\0b"], strict=True)]
    score_dataset(rows, tmp_path / "out", FakeScorer())
    assert [row.id for row in read_scores(tmp_path / "out")] == ["../../evil", "/etc/passwd", "a\0b"]
    assert not list(tmp_path.rglob("*evil*"))
    assert {path.name for path in tmp_path.iterdir()} == {"out"}


def test_ranks_share_the_work_and_the_last_one_closes(source, tmp_path, undisturbed, monkeypatch):
    out, seen = tmp_path / "out", []
    monkeypatch.setenv("WORLD_SIZE", "3")
    for rank in (2, 0, 1):
        monkeypatch.setenv("RANK", str(rank))
        scorer = FakeScorer()
        manifest = score_dataset(source, out, scorer, engine="ranks", shard_rows=7)
        assert manifest["finished"] is (rank == 1)
        seen.append(scorer.seen)
    assert {row_id for part in seen for row_id in part} == set(ids(range(ROWS)))
    assert [len(part) for part in seen] == [14, 21, 15]
    assert content_of(out) == undisturbed


def test_ranks_outside_of_a_job(source, tmp_path, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ValueError, match="torchrun"):
        score_dataset(source, tmp_path / "out", FakeScorer(), engine="ranks")


def test_datasets_map_gives_the_same_bytes(source, tmp_path, undisturbed):
    out = tmp_path / "out"
    score_dataset(source, out, FakeScorer(), engine="datasets", workers=2, shard_rows=7)
    assert content_of(out) == undisturbed


def dialogues(count):
    """``count`` conversations of two exchanges, and one of which nothing can be judged."""
    asked = [[f"Question {i}?", f"First {i} in words.", "And?", f"Then {i} in more words."] for i in range(count)]
    chats = [[{"role": ("user", "assistant")[t % 2], "content": x} for t, x in enumerate(turns)] for turns in asked]
    return [{"id": f"chat-{i}", "messages": chat} for i, chat in enumerate(chats)] + [{"id": "bad", "prompt": "x"}]


def test_every_turn_is_scored_resumed_and_joined(tmp_path):
    source, out = write_jsonl(tmp_path / "rows.jsonl", dialogues(10)), tmp_path / "out"
    score_dataset(source, out, FakeScorer(), data=DataOptions(turns="last"), shard_rows=4)
    last = {row.id: row for row in read_scores(out)}
    manifest = score_dataset(source, out, FakeScorer(), shard_rows=4)
    assert manifest["options"]["turns"] == "all"
    counts = {name: manifest["counts"][name] for name in ("rows", "scored", "turns", "failed", "left_out")}
    assert counts == {"rows": 11, "scored": 10, "turns": 20, "failed": 1, "left_out": 0}
    expected = content_of(out)
    every = list(read_scores(out))
    assert [row.id for row in every] == [*(f"chat-{i}" for i in range(10)), "bad"]
    for i in range(10):  # the last turn's score does not depend on which other turns are judged
        assert [turn.turn for turn in every[i].turns] == [1, 3]
        assert every[i].turns[1:] == last[f"chat-{i}"].turns
    texts = [row.conversation.turns[t].answer.text for row, _ in list(joined(out))[:2] for t in row.judged]
    assert texts == ["First 0 in words.", "Then 0 in more words.", "First 1 in words.", "Then 1 in more words."]
    shards_in(out)[1].unlink()
    scorer = FakeScorer()
    score_dataset(source, out, scorer, shard_rows=4)
    assert scorer.seen == [row.id for row in every[4:8]]
    assert content_of(out) == expected
    score_dataset(source, out, FakeScorer(broken=True), data=DataOptions(turns="last"), shard_rows=4)  # still there


def test_ids_that_occur_twice_are_found_though_their_turns_differ(tmp_path):
    chat = dialogues(1)[0]["messages"]
    rows = [{"id": "a", "messages": chat[:2]}, {"id": "a", "messages": [{"role": "system", "content": "x"}, *chat[:2]]}]
    with pytest.raises(ValueError, match="rows 0 and 1 have the same id 'a'"):
        score_dataset(rows, tmp_path, FakeScorer(broken=True))
    with pytest.raises(ValueError, match="turns: expected one of last, all, got 'first'"):
        score_dataset(rows[:1], tmp_path, FakeScorer(broken=True), data=DataOptions(turns="first"))
