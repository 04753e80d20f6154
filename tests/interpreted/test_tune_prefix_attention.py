"""The tuning command, run by the interpreter on two candidates: it checks before it times, and prints the best."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
import torch
from fastdss.kernels.configs import PrefixConfig

BENCH = Path(__file__).parents[2] / "benchmarks" / "bench_prefix_attention.py"
ARGS = ["--words", "60", "--tail", "5", "--budget", "20", "--device", "cpu", "--dtype", "float32", "--repeats", "1"]
CANDIDATES = [PrefixConfig(16, 16, 4, 1), PrefixConfig(32, 16, 4, 1)]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(BENCH.parent)
    module = importlib.import_module(BENCH.stem)
    monkeypatch.setattr(module, "TUNED_SHAPES", ("tiny",))
    monkeypatch.setattr(module, "HEAD", 9)
    return module


def test_candidates_are_timed_and_the_best_is_printed(bench, capsys, tmp_path) -> None:
    out = tmp_path / "rows.jsonl"
    with torch.inference_mode():
        rows = bench.tune(bench.parser().parse_args([*ARGS, "--out", str(out)]), CANDIDATES)
    assert [json.loads(line) for line in out.read_text().splitlines()] == json.loads(json.dumps(rows))
    assert [PrefixConfig(**row["config"]) for row in rows] == CANDIDATES
    assert '("interpreter", 16): PrefixConfig(' in capsys.readouterr().out


def test_a_wrong_candidate_is_never_timed(bench, monkeypatch, tmp_path) -> None:
    real = bench.attend_by_kernel
    monkeypatch.setattr(bench, "attend_by_kernel", lambda *a, **k: real(*a, **k) * 1.001)
    with torch.inference_mode(), pytest.raises(SystemExit, match=r"tiny PrefixConfig.* differs by"):
        bench.tune(bench.parser().parse_args([*ARGS, "--out", str(tmp_path / "rows.jsonl")]), CANDIDATES)
