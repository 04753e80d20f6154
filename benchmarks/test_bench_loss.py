"""The same cases through pytest-benchmark: pytest benchmarks --benchmark-only. Small here, whole on a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from bench_loss import check, gemm_floor, peak_extra, step
from loss_methods import GPU_GRID, METHODS, Case, Unavailable, make_inputs

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CASES = GPU_GRID[:6] if DEVICE == "cuda" else [Case(256, 64, 4096, loss=loss) for loss in ("ce", "k2", "reverse")]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("method", ["fastdss", "eager"])
def test_step(benchmark: Any, method: str, case: Case) -> None:
    x = make_inputs(case, DEVICE)
    try:
        assert check(method, x) < (1e-5 if case.dtype == "float32" else 1e-2)
    except Unavailable as reason:
        pytest.skip(str(reason))
    loss, gradients = benchmark(step, METHODS[method], x)
    assert loss.isfinite()
    assert len(gradients) == 2 - case.frozen


@pytest.mark.parametrize("loss", ["ce", "k2", "reverse"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_that_runs_here_is_right(method: str, loss: str) -> None:
    """On a GPU with the peers installed this is what shows that their adapters still fit."""
    case = Case(256, 64, 4096, loss=loss)
    try:
        error = check(method, make_inputs(case, DEVICE))
    except Unavailable as reason:
        pytest.skip(str(reason))
    assert error < 1e-5


def test_the_floor_and_the_memory_meter_measure_something() -> None:
    x = make_inputs(Case(64, 16, 512), DEVICE)
    gemm_floor(x)()
    everything = peak_extra(lambda: step(METHODS["eager"], x), x)
    assert everything >= 64 * 512 * 4  # at least the logits
