"""The one command for a GPU, as far as a machine without one can show it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import loss_methods
import numpy as np
import pytest
import torch
from bench_gpu import ROOT, STEPS, TARGETS, Step, measure
from bench_loss import case_of, gemm_floor_on_gradients, kept_rows
from loss_methods import GPU_GRID, Case, Unavailable, make_inputs, planes

FACTS = {"device": "a GPU", "code": "abc", "versions": {}}


def test_two_calls_of_six_minutes_hold_what_matters_and_all_steps_name_what_exists() -> None:
    calls = (STEPS[:3], STEPS[3:4])
    assert [step.name for step in STEPS[:2]] == ["tests", "test of memory"]
    assert [step.name for call in calls for step in call][2:] == ["parts of the loss", "loss, rows of the targets"]
    assert all(sum(step.seconds for step in call) <= 60 * 5.6 for call in calls)
    assert all(step.seconds <= 60 * 5.6 for step in STEPS)
    for step in STEPS:
        place = [word for word in step.command if "/" in word]
        assert place
        for path in place:
            assert (ROOT / path).exists()
        if place[0].endswith(".py"):
            source = (ROOT / place[0]).read_text()
            for option in (word for word in step.command if word.startswith("--")):
                assert f'"{option}"' in source, (step.name, option)
    cases = [GPU_GRID[int(word)] for word in STEPS[3].command if re.fullmatch(r"\d+", word)][1:]
    assert len(cases) == len(TARGETS)
    assert {case.loss for case in cases} == {"ce", "k2", "reverse"}
    assert {case.n for case in cases} == {512, 4096, 8192}
    assert {(case.d, case.v) for case in cases if not case.text} == {(4096, 128256), (4096, 151936), (2560, 262144)}
    assert {case.text for case in cases} == {case.frozen for case in cases} == {True, False}
    assert {case.live for case in cases} == {0.5, 1.0}


def test_steps_run_in_order_end_in_time_and_are_not_repeated(tmp_path: Path) -> None:
    log = tmp_path / "log"
    note = f"open({str(log)!r}, 'a').write('x')"
    steps = (
        Step("good", 20, ("-c", note)),
        Step("bad", 20, ("-c", "import sys; sys.exit(3)")),
        Step("slow", 1, ("-c", "import time; time.sleep(60)")),
    )
    first = measure(steps, 1, tmp_path, FACTS)
    assert first == {"good": "well", "bad": "exit 3", "slow": "overdue"}
    assert measure(steps[:2], 1, tmp_path, FACTS) == {"good": "finished before", "bad": "exit 3"}
    assert log.read_text() == "x"
    measure(steps[:1], 1, tmp_path, FACTS | {"code": "def"})  # other code: measured again
    assert log.read_text() == "xx"
    assert measure(steps[1:2], 0, tmp_path, FACTS) == {"bad": "no time left"}


def test_an_overdue_step_leaves_no_process_and_its_rows_are_copied(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    child = f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    parent = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(60)"
    out, copy = tmp_path / "out", tmp_path / "copy"
    out.mkdir()
    (out / "old.jsonl").write_text("")
    os.utime(out / "old.jsonl", (0, 0))
    assert measure((Step("slow", 3, ("-c", parent)),), 1, out, FACTS, copy) == {"slow": "overdue"}
    for _ in range(50):
        if not _runs(int(pid.read_text())):
            break
        time.sleep(0.1)
    assert not _runs(int(pid.read_text()))
    assert [file.name for file in copy.iterdir()] == ["gpu_steps.jsonl"]
    assert (copy / "gpu_steps.jsonl").read_text() == (out / "gpu_steps.jsonl").read_text()


def _runs(pid: int) -> bool:
    state = Path(f"/proc/{pid}/stat")
    return state.exists() and state.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def test_a_kernel_that_crashes_takes_down_no_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    for code, expected in (("pass", ""), ("raise SystemExit('illegal address')", "of its own: illegal address")):
        loss_methods.fused_failure.cache_clear()
        monkeypatch.setattr(loss_methods, "_FUSED", code)
        assert loss_methods.fused_failure().endswith(expected)
        assert bool(loss_methods.fused_failure()) == bool(expected)
    loss_methods.fused_failure.cache_clear()


def test_the_grid_goes_on_where_it_was_interrupted(tmp_path: Path) -> None:
    path = tmp_path / "loss_cuda.jsonl"
    rows = [
        vars(Case(8, 4, 16)) | FACTS,
        vars(Case(9, 4, 16)) | FACTS | {"code": "old"},
        vars(Case(10, 4, 16)) | {"device": "a GPU", "commit": "of old rows"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [case_of(row) for row in kept_rows(path, FACTS)] == [Case(8, 4, 16)]
    assert kept_rows(tmp_path / "none.jsonl", FACTS) == []


def test_parts_of_the_loss_are_profiled_once(tmp_path: Path) -> None:
    """In the interpreter: every part that a GPU will time runs, the fused product among them."""
    command = [sys.executable, "benchmarks/profile_loss.py", "--device", "cpu", "--dtype", "float32", "--rounds", "1"]
    command += ["--shape", "33", "48", "130", "--keep", "--out", str(tmp_path)]
    settings = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    for _ in range(2):
        done = subprocess.run(command, cwd=ROOT, env=settings, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
    rows = [json.loads(line) for line in (tmp_path / "loss_profile.jsonl").read_text().splitlines()]
    assert [row["part"] for row in rows] == [
        "GEMM 1, 16-bit logits", "GEMM 1, fp32 logits", "pass", "GEMM 1, fp32 logits, and pass",
        "dX", "dW, rounded", "dW, fp32 sum", "step, triton", "fused", "step, fused",
    ]  # fmt: skip
    assert all(row["median_s"] > 0 for row in rows)


def test_text_from_a_file_where_there_are_no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_weights(*_: object) -> None:
        raise RuntimeError("no weights here")

    monkeypatch.setattr(loss_methods, "load_policy", no_weights)
    monkeypatch.setattr(loss_methods, "TEXT_STATES", tmp_path / "states.npz")
    loss_methods.smollm2_on_prose.cache_clear()
    with pytest.raises(Unavailable, match="no weights here; or make states"):
        make_inputs(Case(8, 16, 32, text=True), "cpu")
    states = {"hidden": torch.randn(8, 16).bfloat16(), "head": torch.randn(32, 16).bfloat16()}
    kept = {name: planes(value) for name, value in states.items()}
    np.savez_compressed(tmp_path / "states.npz", labels=np.arange(8, dtype=np.int32), **kept)
    x = make_inputs(Case(8, 16, 32, text=True), "cpu")
    assert torch.equal(x.hidden.detach(), states["hidden"].float())
    assert torch.equal(x.head.detach(), states["head"].float())
    with pytest.raises(Unavailable, match="holds 8 tokens, not 9"):
        make_inputs(Case(9, 16, 32, text=True), "cpu")
    loss_methods.smollm2_on_prose.cache_clear()


def test_the_floor_on_gradients_multiplies_a_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    x = make_inputs(Case(64, 16, 512, live=0.5), "cpu")
    seen: list[torch.Tensor] = []
    real = torch.mm

    def watched(a: torch.Tensor, b: torch.Tensor, **options: torch.Tensor) -> torch.Tensor:
        seen.append(a)
        return real(a, b, **options)

    run = gemm_floor_on_gradients(x)
    monkeypatch.setattr(torch, "mm", watched)
    run()
    assert len(seen) == 3
    live = x.labels != -100
    assert seen[1].shape == (int(live.sum()), 512)
    at_label = seen[1].gather(1, x.labels[live][:, None])
    assert bool((at_label <= 0).all())
    torch.testing.assert_close(seen[1].sum(1), torch.zeros(len(at_label)), rtol=0, atol=1e-5)
