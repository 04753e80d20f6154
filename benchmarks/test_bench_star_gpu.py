"""The one command for scores on a GPU, as far as a machine without one can show it."""

from __future__ import annotations

import json
import re

import bench_star_gpu
import pytest
from bench_gpu import ROOT
from bench_star import SHAPES
from star_profile import Span, kind_of, shares


def test_all_of_it_fits_into_six_minutes_and_names_what_exists(monkeypatch) -> None:
    monkeypatch.setattr(bench_star_gpu, "vllm_version", lambda: "vllm 1")
    found = bench_star_gpu.steps()
    assert found[0].command[-1] == "tests/star", "nothing is timed before the tests"
    assert sum(step.seconds for step in found) <= 360
    source = (ROOT / "benchmarks/bench_star.py").read_text()
    for step in found[1:]:
        for option in (word for word in step.command if word.startswith("--")):
            assert f'"{option}"' in source
        assert step.command[step.command.index("--shape") + 1] in SHAPES


def test_a_dry_run_writes_what_a_gpu_would(tmp_path) -> None:
    ended = bench_star_gpu.main(["--dry-run", "--out", str(tmp_path)])
    assert set(ended.values()) == {"well"}
    rows = {row["way"]: row for row in map(json.loads, (tmp_path / "star_cpu.jsonl").read_text().splitlines())}
    ours, plain = rows["fastdss"], rows["plain causal forward"]
    assert ours["max_error"] <= 1e-5
    for row in (ours, plain):
        assert row["tokens_per_s"] == pytest.approx(row["tokens"] / row["median_s"])
        assert row["kernel_s"]["gemm"] > 0
        assert row["kernel_s"]["attention"] > 0
        assert row["waits"] == 0
    assert "kernel_s" not in rows["one forward per prefix"]


def test_without_a_gpu_it_says_so(capsys) -> None:
    with pytest.raises(SystemExit):
        bench_star_gpu.main([])
    assert "--dry-run" in capsys.readouterr().err


NAMES = {
    "sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64": "gemm",
    "nvjet_tst_192x192_64x4_2x1_v_bz_coopA_TNT": "gemm",
    "aten::addmm": "gemm",
    "prefix_attention_fwd_kernel": "attention",
    "void pytorch_flash::flash_fwd_kernel<…>": "attention",
    "Memcpy HtoD (Pinned -> Device)": "copies",
    "void at::native::(anonymous namespace)::indexSelectLargeIndex<c10::BFloat16>": "copies",
    "void at::native::vectorized_elementwise_kernel<4, at::native::mul>": "elementwise",
    "a_kernel_nobody_knows": "other",
}


@pytest.mark.parametrize("name", NAMES)
def test_kinds_of_kernels(name: str) -> None:
    assert kind_of(name) == NAMES[name]


def test_shares_count_overlaps_once_and_idle_between() -> None:
    """Two kernels that overlap by 10 us, 30 us of nothing, a copy; the host waited twice."""
    spans = [
        Span("gemm", True, 100, 50),
        Span("flash", True, 140, 30),
        Span("Memcpy DtoH", True, 200, 10),
        Span("cudaStreamSynchronize", False, 0, 60),
        Span("cudaDeviceSynchronize", False, 300, 40),
        Span("cudaLaunchKernel", False, 10, 5),
    ]
    found = shares(spans)
    assert found["kernel_s"] == {"attention": 3e-5, "gemm": 5e-5, "copies": 1e-5, "elementwise": 0, "other": 0}
    assert (found["waits"], found["waits_s"]) == (2, pytest.approx(1e-4))
    assert (found["device_s"], found["idle_s"]) == (pytest.approx(1.1e-4), pytest.approx(3e-5))
    assert shares([])["device_s"] == 0
    assert re.search(r"\bSpan\b", repr(spans[0]))
