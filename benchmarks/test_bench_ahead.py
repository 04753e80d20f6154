"""The benchmark of waiting runs and writes what it saw."""

from __future__ import annotations

import json

import bench_ahead

from fastdss.star import forest, scoring


def test_rows(tmp_path):
    out, before = tmp_path / "rows.jsonl", (scoring.Ahead, forest.WHOLE)
    rows = bench_ahead.main(["--rows", "60", "--repeats", "1", "--out", str(out)])
    assert [json.loads(line) for line in out.read_text().splitlines()] == json.loads(json.dumps(rows))
    assert [row["way"] for row in rows] == ["ahead", "in one piece"]
    assert all(0 < row["share"] < 1 for row in rows)
    assert (scoring.Ahead, forest.WHOLE) == before
