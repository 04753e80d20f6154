"""Scores on a GPU, end to end, in one command of at most six minutes: tests first, then an 8B and a 2B shape.

    python benchmarks/bench_star_gpu.py            # adds rows to benchmarks/results/star_cuda.jsonl
    python benchmarks/bench_star_gpu.py --plan     # what it would run; needs no GPU
    python benchmarks/bench_star_gpu.py --dry-run  # the steps on a CPU with a tiny shape

64 responses of 150 words, a boundary every 5 words, tails of 68 tokens, random weights in bfloat16: tokens per second
against a plain causal forward of as many tokens, by the kernel and by flash-attn, with the time of each kind of kernel
and the host's waits. vLLM with prefix caching takes part where it is installed. Steps are those of ``bench_gpu``: a
finished one is not run again.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch
from bench_gpu import RESULTS, Step, measure
from bench_loss import measured_on
from bench_star import VLLM
from star_ways import vllm_version

OURS = ("fastdss", "fastdss, flash")
CASE = ("--case", "150:30", "--responses", "64", "--sampled", "1", "--repeats", "2", "--profile")


def steps(tests: str = "gpu") -> tuple[Step, ...]:
    """What runs, in order, and for how long at most."""
    found = [Step("tests of scores", 110, ("-m", "pytest", "-q", "-m", tests, "-n", "8", "tests/star"))]
    found += [
        Step(f"scores, {shape}", seconds, _command(shape, "bfloat16", *OURS))
        for shape, seconds in (("llama-guard-8b", 75), ("granite-2b", 45))
    ]
    if vllm_version():
        found += [Step("vLLM, llama-guard-8b", 125, _command("llama-guard-8b", "bfloat16", VLLM))]
    return tuple(found)


def dry_steps(folder: Path) -> tuple[Step, ...]:
    case = ("--case", "20:4", "--responses", "2", "--sampled", "2", "--repeats", "1", "--profile", "--device", "cpu",
            "--threads", "1")  # fmt: skip
    out = ("--out", str(folder / "star_cpu.jsonl"))
    command = ("benchmarks/bench_star.py", "--shape", "tiny", *case, *out, "--ways", *OURS)
    return (
        Step("tests of scores", 280, ("-m", "pytest", "-q", "--collect-only", "-m", "gpu", "tests/star")),
        Step("scores, tiny", 280, command),
    )


def _command(shape: str, dtype: str, *ways: str) -> tuple[str, ...]:
    return ("benchmarks/bench_star.py", "--shape", shape, "--dtype", dtype, *CASE, "--ways", *ways)


def main(argv: list[str]) -> dict[str, str]:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--plan", action="store_true")
    p.add_argument("--dry-run", action="store_true")
    p.add_argument("--copy", type=Path, metavar="DIR", help="where rows are copied to after each step")
    p.add_argument("--out", type=Path, help="of a dry run, the folder of its rows; default a temporary one")
    args = p.parse_args(argv)
    if args.plan:
        for step in steps():
            print(f"{step.seconds:4d} s  {step.name}: python {' '.join(step.command)}")
        return {}
    if args.dry_run:
        with tempfile.TemporaryDirectory() as name:
            folder = args.out or Path(name)
            return measure(dry_steps(folder), 9, folder, measured_on("cpu"))
    if not torch.cuda.is_available():
        p.error("there is no GPU; --plan shows what would run, --dry-run tries it on a CPU")
    return measure(steps(), 5.6, RESULTS, measured_on("cuda"), args.copy)


if __name__ == "__main__":
    ended = main(sys.argv[1:])
    for name, how in ended.items():
        print(f"{how:>15}  {name}")
    sys.exit(0 if set(ended.values()) <= {"well", "finished before"} else 1)
