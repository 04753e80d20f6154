"""Approximate scores of data sets: marked, within the promise, the same bytes whatever happens, exact if in doubt."""

import json
import logging
import random
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import fastdss.prefix.engine
from fastdss import Promise, ScoringOptions
from fastdss.cli import main
from fastdss.corpus.approximate import AuditTrail
from fastdss.corpus.merge import merge
from fastdss.corpus.rows import read_rows
from fastdss.corpus.run import score_dataset
from fastdss.corpus.sample import Sample
from fastdss.corpus.scorer import StarScorer
from fastdss.corpus.store import ScoredRow, ScoredTurn, Shards, load_manifest, read_scores
from fastdss.star.probe import TrunkProbe
from tests.support.builders import make_guard

from .fakes import FakeScorer, content_of, write_jsonl

pytest.importorskip("pyarrow", reason="needs the [score] extra")
ROOT = Path(__file__).parents[2]
TEXT = "call her at home today the number is five and seven please write to me soon or never"
PROMISE = Promise(tolerance=0.2, at_most=0.1, confidence=0.9)  # 22 sampled rows can show it: 59 are drawn
ROWS = 150


def rows_of(count):
    generator = random.Random(1)
    return [
        {"id": f"row-{i}", "prompt": "Hello", "response": " ".join(generator.choices(TEXT.split(), k=4 + i % 10)) + "."}
        for i in range(count)
    ]


def scorer():
    return StarScorer(make_guard(), options=ScoringOptions(every=2))


def approximated(out, judge, rows=None, **more):
    how = {"shard_rows": 20, "approx": PROMISE, **more}
    return score_dataset(rows_of(ROWS) if rows is None else rows, out, judge, **how)


@pytest.fixture(scope="module")
def judge():
    return scorer()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, judge):
    out = tmp_path_factory.mktemp("undisturbed")
    approximated(out, judge)
    return out


@pytest.fixture(scope="module")
def exact(tmp_path_factory, judge):
    out = tmp_path_factory.mktemp("exact")
    score_dataset(rows_of(ROWS), out, judge, shard_rows=20)
    return out


def turns_of(out):
    return {row.id: row.turns[0] for row in read_scores(out)}


def test_what_is_computed_is_exact_and_the_rest_is_marked_and_promised(undisturbed, exact):
    near, truth, told = turns_of(undisturbed), turns_of(exact), load_manifest(undisturbed)["approx"]
    approximations, off = 0, 0
    for name, turn in near.items():
        marks = turn.exact or [True] * len(turn.scores)
        errors = [abs(a - b) for a, b in zip(turn.scores, truth[name].scores, strict=True)]
        assert all(error <= 1e-6 for error, mark in zip(errors, marks, strict=True) if mark)
        approximations += marks.count(False)
        off += max(errors) > PROMISE.tolerance
    assert approximations == told["approximated"] > 100
    assert off <= 0.2 * ROWS  # a tenth is promised
    assert told["certificate"]["sampled_rows"] + told["certificate"]["fitted_rows"] == told["sample_rows"] == 59
    audited = [turn for turn in near.values() if turn.missed is not None]
    assert told["audit"] == {"rows": len(audited), "wrong": sum(t.missed > 0.2 for t in audited), "disagrees": False}
    assert all(turn.exact is None for turn in audited)
    assert f"{approximations:,} of {sum(len(turn.scores) for turn in near.values()):,} scores" in told["words"]
    assert all(turn.exact is None and turn.missed is None for turn in truth.values())


def test_the_rows_of_the_sample_are_exact(undisturbed):
    sample = Sample(PROMISE, 0)
    assert len(list(sample.watching(read_rows([rows_of(ROWS)])))) == ROWS
    near = turns_of(undisturbed)
    assert len(sample.rows) == 59
    assert all(near[row.id].exact is None for row in sample.rows)
    assert len({row.id for row in sample.rows}) == 59


def test_a_sample_is_the_same_in_every_order_and_another_for_another_seed():
    rows = rows_of(ROWS)
    drawn = []
    for given, seed in ((rows, 0), (rows[::-1], 0), (rows, 1)):
        sample = Sample(PROMISE, seed)
        list(sample.watching(read_rows([given])))
        drawn.append([row.id for row in sample.rows])
    assert drawn[0] == drawn[1] != drawn[2]
    counts = dict.fromkeys((row["id"] for row in rows), 0)
    for seed in range(200):
        sample = Sample(PROMISE, seed)
        list(sample.watching(read_rows([rows])))
        for row in sample.rows:
            counts[row.id] += 1
    # binomial of 200 draws at 59/150: mean 78.7, deviation 6.9
    assert min(counts.values()) > 45
    assert max(counts.values()) < 113


def test_exact_and_approximate_scores_never_meet(undisturbed, exact, judge, tmp_path):
    approximated(tmp_path, judge)
    first = content_of(tmp_path)
    manifest = score_dataset(rows_of(ROWS), tmp_path, judge, shard_rows=20)
    assert "approx" not in manifest
    assert manifest["entry"] == load_manifest(exact)["entry"]
    both = content_of(tmp_path)
    assert {name for name in both if name.startswith(manifest["entry"])}.isdisjoint(first)
    assert turns_of(tmp_path) == turns_of(exact)
    others = approximated(tmp_path, judge, approx_seed=7)
    assert others["entry"] not in {manifest["entry"], load_manifest(undisturbed)["entry"]}
    approximated(tmp_path, judge)
    assert content_of(tmp_path)["manifest.json"] == first["manifest.json"]
    assert content_of(undisturbed) == first


def killed(out, moment):
    command = [sys.executable, "-m", "tests.corpus.killed_approx", str(out), str(moment)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)


def check_kill_points(tmp_path, undisturbed, judge, moments):
    for moment in moments:
        out = tmp_path / f"killed-{moment}"
        assert killed(out, moment).returncode == -signal.SIGKILL
        approximated(out, judge)
        assert content_of(out) == content_of(undisturbed), moment


@pytest.mark.long
def test_killed_and_resumed_is_the_same_bytes(tmp_path, undisturbed, judge):
    """While the sample's shard is written, between sample and probe, and among the shards."""
    check_kill_points(tmp_path, undisturbed, judge, [4, 8, 21])


@pytest.mark.slow
@pytest.mark.timeout(1500)  # eleven processes, one after the other
def test_killed_at_random_points(tmp_path, undisturbed, judge):
    moments = int(killed(tmp_path / "alive", 0).stdout)
    assert content_of(tmp_path / "alive") == content_of(undisturbed)
    check_kill_points(tmp_path, undisturbed, judge, random.Random(3).sample(range(1, moments + 1), 10))


def test_a_damaged_probe_is_set_aside_and_fitted_again(tmp_path, undisturbed, judge):
    approximated(tmp_path, judge)
    (probe,) = tmp_path.rglob("probe-*.safetensors")
    probe.write_bytes(probe.read_bytes()[:-1])
    approximated(tmp_path, judge)
    assert content_of(tmp_path) == content_of(undisturbed)
    assert probe.with_suffix(".damaged").exists()


class Broken(StarScorer):
    """No row may reach it."""

    def score_rows(self, rows, report, approx=None):
        raise AssertionError("a row was scored again")


def test_a_finished_run_scores_nothing_again(tmp_path, undisturbed):
    approximated(tmp_path, scorer())
    approximated(tmp_path, Broken(make_guard(), options=ScoringOptions(every=2)))
    assert content_of(tmp_path) == content_of(undisturbed)


@pytest.fixture
def erring(monkeypatch):
    """A fit that errs by more than it says, as if the data had drifted since."""
    learn = TrunkProbe.learn.__func__

    def off(cls, *args, **kwargs):
        probe = learn(cls, *args, **kwargs)
        probe.audit_share = 0.5
        probe.ridge = replace(probe.ridge, offset=probe.ridge.offset + 3)
        return probe

    monkeypatch.setattr(TrunkProbe, "learn", classmethod(off))


def test_an_audit_that_disagrees_ends_in_exact_scores(tmp_path, exact, judge, erring, caplog):
    with caplog.at_level(logging.WARNING):
        manifest = approximated(tmp_path / "out", judge)
    assert "audited rows speak against the approximation: all scores are computed" in caplog.text
    told = manifest["approx"]
    assert manifest["finished"]
    assert told["audit"]["disagrees"]
    assert told["approximated"] == 0
    assert told["words"].startswith(f"All scores are exact: {told['audit']['wrong']} of {told['audit']['rows']} rows")
    near, truth = turns_of(tmp_path / "out"), turns_of(exact)
    assert all(turn.exact is None for turn in near.values())
    assert all(turn.scores == pytest.approx(truth[name].scores, abs=1e-6) for name, turn in near.items())
    ended = content_of(tmp_path / "out")
    assert approximated(tmp_path / "out", judge)["approx"] == told
    assert content_of(tmp_path / "out") == ended


def test_a_run_whose_audit_disagreed_stops_at_once_when_resumed(tmp_path, judge, erring):
    """The shards that it has say so: none is added to them."""
    first = approximated(tmp_path, judge)
    entries = {path.parent.name for path in tmp_path.glob("*/*.parquet")}
    approximate = max(entries - {first["entry"]}, key=lambda name: len(list((tmp_path / name).glob("*.parquet"))))
    shards = set((tmp_path / approximate).glob("*.parquet"))
    assert 1 <= len(shards) < len(first["shards"])
    approximated(tmp_path, judge)
    assert set((tmp_path / approximate).glob("*.parquet")) == shards


def test_scores_of_another_probe_are_another_entry(tmp_path, judge, undisturbed, monkeypatch):
    """Such as one that was fitted again with other threads, after the first was lost."""
    approximated(tmp_path, judge)
    (probe,) = tmp_path.rglob("probe-*.safetensors")
    probe.unlink()
    learn = TrunkProbe.learn.__func__
    monkeypatch.setattr(
        TrunkProbe, "learn", classmethod(lambda cls, *args, **kwargs: replace(learn(cls, *args, **kwargs), seed=5))
    )
    assert approximated(tmp_path, judge)["entry"] != load_manifest(undisturbed)["entry"]


@pytest.fixture
def clueless(monkeypatch):
    """Hidden states that say nothing about the verdict."""
    import torch

    course, generator = TrunkProbe.course, torch.Generator().manual_seed(0)

    def guessed(self, places, states, shortcuts):
        found = course(self, places, states, shortcuts)
        found.logits = 3 * torch.randn(len(places), generator=generator).double()
        return found

    monkeypatch.setattr(TrunkProbe, "course", guessed)


def test_a_trunk_that_does_not_know_ends_in_exact_scores_at_their_price(
    tmp_path, exact, judge, clueless, caplog, monkeypatch
):
    tokens, run = [], fastdss.prefix.engine.Runner.run

    def counted(self, segments, store, read=None):
        tokens.append(sum(len(segment.ids) for segment in segments))
        return run(self, segments, store, read)

    monkeypatch.setattr(fastdss.prefix.engine.Runner, "run", counted)
    score_dataset(rows_of(ROWS), tmp_path / "exact", judge, shard_rows=20)
    price = sum(tokens)
    tokens.clear()
    with caplog.at_level(logging.WARNING):
        told = approximated(tmp_path / "out", judge)["approx"]
    assert "nothing is approximated" in caplog.text
    assert told["words"].startswith("All scores are exact: nothing is approximated: ")
    assert told["certificate"]["threshold"] is None
    # shards without the rows of the sample share fewer heads of prompts, and the check of a kept head repeats a token
    assert sum(tokens) <= 1.1 * price
    near, truth = turns_of(tmp_path / "out"), turns_of(exact)
    assert all(turn.exact is None and turn.missed is None for turn in near.values())
    assert all(turn.scores == pytest.approx(truth[name].scores, abs=1e-6) for name, turn in near.items())


def test_too_few_rows_end_in_the_exact_entry(tmp_path, judge, caplog):
    rows = rows_of(117)
    with caplog.at_level(logging.WARNING):
        told = approximated(tmp_path / "near", judge, rows)["approx"]
    assert told["words"] == (
        "All scores are exact: the input has 117 conversations, and it takes 118 to approximate scores."
    )
    assert "it takes 118" in caplog.text
    score_dataset(rows, tmp_path / "exact", judge, shard_rows=20)
    near, truth = content_of(tmp_path / "near"), content_of(tmp_path / "exact")
    assert near.pop("manifest.json") != truth.pop("manifest.json")
    assert near == truth


@pytest.mark.parametrize("engine", ["ray", "ranks"])
def test_an_engine_that_cannot_approximate_is_refused_by_name(tmp_path, judge, engine, monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=f"approx: expected engine local or datasets, got '{engine}'"):
        approximated(tmp_path, judge, engine=engine)


def test_what_cannot_be_approximated_is_refused_by_name(tmp_path, judge):
    guard = make_guard()
    with pytest.raises(ValueError, match="approx: expected one guard, got 2"):
        approximated(tmp_path, StarScorer([guard, guard]))
    with pytest.raises(ValueError, match="approx: expected a method that computes a prefix tree"):
        approximated(tmp_path, StarScorer(guard, method="per_prefix"))
    with pytest.raises(ValueError, match="approx: expected a StarScorer, got FakeScorer"):
        approximated(tmp_path, FakeScorer(broken=True))


@pytest.mark.slow
def test_datasets_map_gives_the_same_bytes(tmp_path):
    rows = write_jsonl(tmp_path / "rows.jsonl", rows_of(ROWS))
    for engine, workers in (("local", None), ("datasets", 2)):
        approximated(tmp_path / engine, StarScorer("tiny", every=2), str(rows), engine=engine, workers=workers)
    assert load_manifest(tmp_path / "local")["approx"]["approximated"] > 0
    local, others = (
        {name: content for name, content in content_of(tmp_path / engine).items() if name != "manifest.json"}
        for engine in ("local", "datasets")
    )
    assert local == others


def test_the_trail_reads_shards_in_order_as_far_as_they_are_finished(tmp_path):
    def row(number, missed):
        turns = [ScoredTurn(1, [0.5, 0.5], [1, 2], [], None, None if missed is not None else [True, False], missed)]
        return ScoredRow(f"r{number}", "x", turns)

    shards = Shards(tmp_path)
    from fastdss.corpus.store import shard_name

    parts = [[row(0, 0.1), row(1, None)], [row(2, 0.9), row(3, 0.9)], [row(4, 0.9)]]
    names = [shard_name((r.id, r.content_hash) for r in part) for part in parts]
    trail = AuditTrail(shards, names, PROMISE)
    assert not trail.disagrees()
    for place in (0, 2):
        shards.write(names[place], parts[place])
    assert not trail.disagrees()  # the second is missing, so the third is not read yet
    assert (trail.audit.rows, trail.audit.wrong, trail.scores, trail.approximated) == (1, 0, 4, 1)
    shards.write(names[1], parts[1])
    assert trail.disagrees()  # 0.78 x 3 x 3 is less than the 10 that it takes; with the third, more
    assert (trail.audit.rows, trail.audit.wrong) == (4, 3)


def test_marks_are_in_the_merged_file(tmp_path, judge):
    import pyarrow.parquet as pq

    rows = write_jsonl(tmp_path / "rows.jsonl", rows_of(ROWS))
    approximated(tmp_path / "out", judge, str(rows))
    near = turns_of(tmp_path / "out")
    merge(tmp_path / "out", tmp_path / "m.parquet")
    merge(tmp_path / "out", tmp_path / "m.jsonl")
    table = pq.read_table(tmp_path / "m.parquet").to_pylist()
    lines = [json.loads(line) for line in (tmp_path / "m.jsonl").read_text().splitlines()]
    assert {row["id"]: row["star"][0]["exact"] for row in table} == {name: turn.exact for name, turn in near.items()}
    assert {row["id"]: row["star"][0].get("exact") for row in lines} == {n: turn.exact for n, turn in near.items()}
    assert any("exact" not in row["star"][0] for row in lines)


def test_the_command_says_what_was_shown(tmp_path, capsys):
    rows = write_jsonl(tmp_path / "rows.jsonl", rows_of(ROWS))
    command = ["score", str(rows), "--guard", "tiny", "--out", str(tmp_path / "out"), "--every", "2", "--quiet"]
    assert main([*command, "--approx", "0.2", "--at-most", "0.1", "--confidence", "0.9", "--approx-seed", "3"]) == 0
    told = load_manifest(tmp_path / "out")["approx"]
    assert told["words"] in capsys.readouterr().out
    assert (told["tolerance"], told["at_most"], told["confidence"], told["seed"]) == (0.2, 0.1, 0.9, 3)
    for alone in (["--at-most", "0.1"], ["--confidence", "0.9"], ["--approx-seed", "1"]):
        assert main([*command, *alone]) != 0
        assert f"{alone[0]}: expected --approx TOLERANCE beside it, got none" in capsys.readouterr().err
    assert main([*command, "--approx", "2"]) != 0
    assert "tolerance: expected a number between 0 and 1, got 2.0" in capsys.readouterr().err
