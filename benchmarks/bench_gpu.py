"""Everything that only a GPU can measure, in one command of under 10 minutes, most important first.

    python benchmarks/bench_gpu.py              # writes rows to benchmarks/results/ as they come
    python benchmarks/bench_gpu.py --plan       # what it would run, and for how long at most; needs no GPU

Each step is a command of this repository with a limit; an overdue one is ended. What a finished step measured is not
measured again: the same command goes on where it was interrupted or ran out of time, until the commit, the GPU or a
version is another one. gpu_steps.jsonl says how each step ended. Peers take part where they are installed:
pip install --no-deps liger-kernel cut-cross-entropy quack-kernels.

By arithmetic, nothing here having met a GPU yet: one GEMM of the head's first shape (8192 x 4096 x 128256) is 8.6
TFLOP, 20 ms at 420 TFLOP/s (60 % of an H100's dense bf16); all methods of a case together some 60 of them, 1.2 s a
round; with 3 rounds, warm-up, memory run and check 7 s, and 10 to 20 s of torch.compile and autotuning. The 7 cases
that have targets thus take 2 to 3 minutes, the other 15 as long again; those that do not fit wait.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from bench_loss import environment, kept_rows

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).parent / "results"
TARGETS = ("0", "4", "8", "2", "1", "10", "18")  # of GPU_GRID: CE, k2, reverse; frozen; half live; frozen; N = 512


class Step(NamedTuple):
    name: str
    seconds: int  # at most
    command: tuple[str, ...]  # after python


STEPS = (
    Step("loss, rows of the targets", 180, ("benchmarks/bench_loss.py", "--keep", "--rounds", "3", "--case", *TARGETS)),
    Step("tests of the loss", 80, ("-m", "pytest", "-q", "-m", "gpu", "tests/loss")),
    Step("tune row pass", 30, ("benchmarks/bench_loss.py", "--tune")),
    Step("tune prefix attention", 60, ("benchmarks/bench_prefix_attention.py", "--tune")),
    Step("tests of scores and the rest", 60, ("-m", "pytest", "-q", "-m", "gpu", "tests/star", "tests/hardening")),
    Step(
        "star scores",
        60,
        ("benchmarks/bench_star.py", "--dtype", "bfloat16", "--shape", "granite-2b", "--responses", "20",
         "--case", "150:30", "--repeats", "2", "--ways", "one forward per prefix", "fastdss"),
    ),
    Step(
        "training, the loss alone",
        40,
        ("benchmarks/bench_train.py", "--head-only", "--tokens", "8192", "--hidden", "4096", "--vocab", "128256"),
    ),
    Step("loss, other rows", 80, ("benchmarks/bench_loss.py", "--keep", "--rounds", "3", "--seconds", "60")),
)  # fmt: skip


def run(step: Step, seconds: float) -> str:
    """How the step ended: "well", "overdue" or "exit N"."""
    try:
        code = subprocess.run([sys.executable, *step.command], cwd=ROOT, timeout=seconds, check=False).returncode
    except subprocess.TimeoutExpired:
        return "overdue"
    return "well" if code == 0 else f"exit {code}"


def measure(steps: tuple[Step, ...], minutes: float, out: Path, facts: dict[str, Any]) -> dict[str, str]:
    """Run what is not finished, in order, while there is time; how each step ended. Its row is written at once."""
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
        with path.open("a") as file:
            file.write(json.dumps(row | facts) + "\n")
    return ended


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9.9)
    parser.add_argument("--plan", action="store_true")
    args = parser.parse_args()
    if args.plan:
        for step in STEPS:
            print(f"{step.seconds:4d} s  {step.name}: python {' '.join(step.command)}")
        return
    if not torch.cuda.is_available():
        parser.error("there is no GPU; --plan shows what would run")
    ended = measure(STEPS, args.minutes, RESULTS, environment("cuda"))
    for name, how in ended.items():
        print(f"{how:>15}  {name}")
    sys.exit(0 if set(ended.values()) <= {"well", "finished before"} else 1)


if __name__ == "__main__":
    main()
