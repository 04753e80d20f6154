"""Ray Data on one machine with two actors: the same scores as in-process, and a killed actor loses nothing."""

import pytest

from fastdss.corpus.run import score_dataset
from fastdss.corpus.scorer import StarScorer
from fastdss.corpus.store import load_manifest, read_scores
from fastdss.demo.conversations import training_conversations

from .fakes import FakeScorer, content_of, conversations, write_jsonl

ray = pytest.importorskip("ray", reason="needs the [scale] extra")
pytestmark = pytest.mark.slow  # a Ray cluster takes 20 s to start on two busy cores


@pytest.fixture(scope="module", autouse=True)
def cluster():
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def test_a_killed_actor_loses_nothing_and_a_resumed_run_scores_the_rest(tmp_path):
    source, out, note = write_jsonl(tmp_path / "rows.jsonl", conversations(50)), tmp_path / "out", tmp_path / "note"
    score_dataset(source, tmp_path / "here", FakeScorer(), shard_rows=7)
    expected = content_of(tmp_path / "here")
    score_dataset(source, out, FakeScorer(suicide_note=str(note)), engine="ray", workers=2, shard_rows=7)
    assert note.exists(), "no actor died"
    assert content_of(out) == expected
    shards = [out / load_manifest(out)["entry"] / f"{name}.parquet" for name in load_manifest(out)["shards"]]
    before = [path.stat().st_mtime_ns for path in shards]
    for path in shards[2:5]:
        path.unlink()
    score_dataset(source, out, FakeScorer(), engine="ray", workers=2, shard_rows=7)
    assert content_of(out) == expected
    written = [path.stat().st_mtime_ns != earlier for path, earlier in zip(shards, before, strict=True)]
    assert written == [False, False, True, True, True, False, False, False]


def test_the_tiny_guard_scores_there_as_here(tmp_path):
    rows = [{"prompt": row.prompt, "response": row.response} for row in training_conversations(12, 12, seed=5)]
    rows.insert(3, {"prompt": "no response"})
    scorer = StarScorer("tiny", gemm="default")
    here = score_dataset(rows, tmp_path / "here", scorer, shard_rows=8)
    there = score_dataset(rows, tmp_path / "there", scorer, shard_rows=8, engine="ray", workers=2)
    assert here["counts"] == there["counts"]
    for one, other in zip(read_scores(tmp_path / "here"), read_scores(tmp_path / "there"), strict=True):
        assert (one.id, one.error) == (other.id, other.error)
        for turn, twin in zip(one.turns, other.turns, strict=True):
            assert turn.scores == pytest.approx(twin.scores, abs=1e-6)
            assert (turn.turn, turn.ends, turn.flags, turn.error) == (twin.turn, twin.ends, twin.flags, twin.error)
