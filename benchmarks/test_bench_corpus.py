"""The benchmark runs on a few rows, and its rows say what was measured."""

from __future__ import annotations

import json

from benchmarks import bench_corpus

ARGS = ["--rows", "20", "--turn-rows", "16", "--turns", "2", "--shard-rows", "8"]


def test_rows(tmp_path, capsys):
    rows = bench_corpus.main([*ARGS, "--out", str(tmp_path / "rows.jsonl")])
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    saved = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert printed == saved == json.loads(json.dumps(rows))
    assert [row["measure"] for row in rows] == ["alternating", "inside", "resume", "turns", "memory", "memory"]
    assert [row["rows"] for row in rows if "rows" in row] == [8, 8, 8, 2, 20]
    assert all(row["overhead"] > 0 for row in rows if row["measure"] in ("inside", "memory"))
    assert all(row["peak_bytes"] > 100 << 20 for row in rows if row["measure"] == "memory")
    assert {"commit", "versions", "chip", "threads", "guard", "dtype", "load"} <= set(rows[0])


def test_turns_see_different_rows(tmp_path):
    first = bench_corpus.write_rows(tmp_path / "a.jsonl", 5).read_text()
    assert first == bench_corpus.write_rows(tmp_path / "a.jsonl", 5).read_text()
    assert len(first.splitlines()) == 5
    assert first != bench_corpus.write_rows(tmp_path / "b.jsonl", 5, first=5).read_text()
