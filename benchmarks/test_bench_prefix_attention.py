"""The benchmark's rows, its mask for FlexAttention, and that it times nothing that is wrong."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import bench_prefix_attention as bench
from fastdss.prefix.attention import KVStore, PrefixPlan, attend_in_order
from fastdss.prefix.packed_attention import PackedBatch
from fastdss.prefix.packing import Segment

ARGS = ["--shape", "tiny", "--words", "100", "--repeats", "2", "--device", "cpu", "--dtype", "float32"]
ARGS += ["--budget", "400", "--ways", "loop", "sdpa-causal"]  # FlexAttention compiles for 10 seconds


def test_rows(tmp_path, capsys):
    rows = bench.main([*ARGS, "--out", str(tmp_path / "rows.jsonl")])
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert printed == [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()] == rows
    assert [row["way"] for row in rows] == ["loop", "sdpa-causal"]
    assert rows[0]["max_error"] <= 1e-5
    assert {"median_s", "p20_s", "p80_s", "tflops", "commit", "versions", "chip", "dtype", "shape"} <= set(rows[0])


def test_wrong_results_are_never_timed(monkeypatch, tmp_path):
    real = bench.attend_in_order
    monkeypatch.setattr(bench.Problem, "truth", lambda self: self.packed(real)().double() * 1.001)
    with pytest.raises(SystemExit, match="loop: differs by"):
        bench.main([*ARGS, "--out", str(tmp_path / "rows.jsonl")])


def test_block_mask():
    """Against every pair: a block is left out, partial or full as its pairs say; two slots, and a ragged last block."""
    segments = [Segment(0, 300, [0] * 150), Segment(0, 140, [0] * 90), Segment(512, 256, [0] * 70)]
    plan = PrefixPlan(segments, KVStore(1024), attend_in_order, {})
    mask = bench.block_mask(PackedBatch.of(plan), 1024, torch.device("cpu"))
    rows, columns = torch.arange(310)[:, None], torch.arange(1334)[None]
    dense = mask.mask_mod(torch.tensor(0), torch.tensor(0), rows, columns)
    expected = torch.zeros(310, 1334, dtype=torch.bool)
    left = 0
    for segment in segments:
        for i in range(len(segment.ids)):
            expected[left + i, segment.base : segment.base + segment.start] = True
            expected[left + i, 1024 + left : 1024 + left + i + 1] = True
        left += len(segment.ids)
    assert torch.equal(dense, expected)
    for i in range(3):
        partial = set(mask.kv_indices[0, 0, i, : mask.kv_num_blocks[0, 0, i]].tolist())
        full = set(mask.full_kv_indices[0, 0, i, : mask.full_kv_num_blocks[0, 0, i]].tolist())
        blocks = expected[128 * i : 128 * i + 128].split(128, dim=1)
        assert full == {j for j, block in enumerate(blocks) if block.all() and block.shape[1] == 128}
        assert partial == {j for j, block in enumerate(blocks) if block.any()} - full
