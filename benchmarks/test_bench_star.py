"""The benchmark runs on a tiny shape, checks equality first, and writes rows that say what was measured."""

from __future__ import annotations

import json

import bench_star
import pytest

ARGS = ["--shape", "tiny", "--case", "20:4", "--repeats", "1", "--sampled", "2", "--device", "cpu"]
QUICK = ["length-sorted batches", "generate per prefix", "cropped DynamicCache", "fastdss", "fastdss, oneDNN"]


def test_rows_and_picture(tmp_path, capsys):
    out = tmp_path / "rows.jsonl"
    rows = bench_star.main([*ARGS, "--case", "40:9", "--out", str(out), "--ways", *QUICK])
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    saved = [json.loads(line) for line in out.read_text().splitlines()]
    assert printed == saved == json.loads(json.dumps(rows))
    ours = next(row for row in rows if row["way"] == "fastdss")
    naive = next(row for row in rows if row["way"] == "one forward per prefix")
    assert ours["max_error"] <= 1e-5
    assert ours["tokens"] < naive["tokens"]
    assert naive["sampled"] == 2
    assert {"median_s", "p20_s", "p80_s", "cpu_s", "load", "commit", "versions", "chip", "dtype", "shape"} <= set(ours)
    assert out.with_suffix(".png").stat().st_size > 1000


@pytest.mark.slow
def test_flex_attention(tmp_path):
    """Compiling it takes most of a minute."""
    rows = bench_star.main([*ARGS, "--out", str(tmp_path / "rows.jsonl"), "--ways", "FlexAttention"])
    assert next(row for row in rows if row["way"] == "FlexAttention")["max_error"] <= 1e-5


def test_unequal_scores_are_never_timed(monkeypatch, tmp_path):
    real = bench_star.tree_logits
    monkeypatch.setattr(bench_star, "tree_logits", lambda *a, **k: real(*a, **k).flip(-1))
    with pytest.raises(SystemExit, match="fastdss: scores differ"):
        bench_star.main([*ARGS, "--out", str(tmp_path / "rows.jsonl"), "--ways", "fastdss"])


def test_generated_conversations(tmp_path):
    arguments = ["--shape", "tiny-guard", "--responses", "5", "--repeats", "1", "--sampled", "2", "--device", "cpu"]
    rows = bench_star.main([*arguments, "--out", str(tmp_path / "rows.jsonl"), "--ways", "fastdss"])
    ours = next(row for row in rows if row["way"] == "fastdss")
    assert ours["max_error"] <= 1e-5
    assert ours["words"] > ours["boundaries"] * 4  # a boundary after every fifth word
    with pytest.raises(SystemExit, match="--case"):
        bench_star.main([*arguments, "--case", "20:4"])


def test_rows_of_a_case_are_kept_when_the_next_is_interrupted(monkeypatch, tmp_path):
    real = bench_star.measure
    turns = iter([real, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)])
    monkeypatch.setattr(bench_star, "measure", lambda *given: next(turns)(*given))
    out = tmp_path / "rows.jsonl"
    with pytest.raises(KeyboardInterrupt):
        bench_star.main([*ARGS, "--case", "40:9", "--out", str(out), "--ways", "fastdss"])
    saved = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["words"] for row in saved] == [20, 20, 20]  # one forward per prefix, a plain forward, and fastdss
    assert all(row["speedup_s" if "speedup_s" in row else "speedupcpu"] > 0 for row in saved)
