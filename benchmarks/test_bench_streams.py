"""The benchmark of many streams runs, checks equality first, and writes rows that say what was measured."""

from __future__ import annotations

import json

import bench_streams
import pytest


@pytest.mark.parametrize("shape", ["tiny-guard", "smollm2-135m"])
def test_rows(tmp_path, shape):
    out = tmp_path / "rows.jsonl"
    options = ["--shape", shape, "--layers", "1", "--streams", "3", "--repeats", "1", "--device", "cpu"]
    rows = bench_streams.main([*options, "--out", str(out)])
    assert [json.loads(line) for line in out.read_text().splitlines()] == json.loads(json.dumps(rows))
    assert [row["way"] for row in rows] == [bench_streams.TOGETHER, bench_streams.APART]
    assert rows[1]["speedup"] == 1
    assert rows[0]["scores"] > 3
    assert {"cpu_s", "commit", "chip", "threads", "load"} <= set(rows[0])


def test_unequal_scores_are_never_timed(tmp_path, monkeypatch):
    monkeypatch.setattr(bench_streams, "one_by_one", lambda guard, rows: [[0.25] * 50 for _ in rows])
    monkeypatch.setattr(bench_streams, "together", lambda guard, rows: [[0.5] * 50 for _ in rows])
    with pytest.raises(SystemExit, match="scores differ"):
        bench_streams.main(["--shape", "tiny-guard", "--streams", "2", "--out", str(tmp_path / "rows.jsonl")])
