"""The benchmark runs on a tiny shape, checks equality first, and writes rows that say what was measured."""

from __future__ import annotations

import json

import pytest

from benchmarks import bench_star

ARGS = ["--shape", "tiny", "--case", "20:4", "--repeats", "1", "--sampled", "2", "--device", "cpu"]


def test_rows(tmp_path, capsys):
    rows = bench_star.main([*ARGS, "--out", str(tmp_path / "rows.jsonl")])
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    saved = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert printed == saved == json.loads(json.dumps(rows))
    ours = next(row for row in rows if row["way"] == "fastdss")
    naive = next(row for row in rows if row["way"] == "one forward per prefix")
    assert ours["max_error"] <= 1e-5
    assert ours["tokens"] < naive["tokens"]
    assert naive["sampled"] == 2
    assert {"median_s", "p20_s", "p80_s", "cpu_s", "commit", "torch", "dtype", "shape"} <= set(ours)


def test_unequal_scores_are_never_timed(monkeypatch):
    real = bench_star.tree_logits
    monkeypatch.setattr(bench_star, "tree_logits", lambda *a, **k: real(*a, **k).flip(-1))
    with pytest.raises(SystemExit, match="fastdss: scores differ"):
        bench_star.main(ARGS)
