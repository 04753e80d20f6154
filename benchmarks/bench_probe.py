"""Approximate scores against exact ones: tokens, time, and what the certificate promised, on rows that neither saw.

    python benchmarks/bench_probe.py --guard tiny --fit 400 --score 400

Rows are held-out conversations of the built-in guard's training (topics, names and formats of their own). One line is
appended to benchmarks/results/probe_cpu.jsonl. Times are processor time, exact and approximate by turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from environment import environment

from fastdss import Guard, Promise, StarScores, TrunkProbe, star_scores

sys.path.insert(0, str(Path(__file__).parents[1]))
from training.held_out import benign, poisoned

RESULTS = Path(__file__).parent / "results" / "probe_cpu.jsonl"


def conversations(count: int, seed: int) -> dict[str, list[Any]]:
    made = [(poisoned if index % 2 else benign)(seed, index) for index in range(count)]
    roles = ("user", "assistant")
    prompts = [[{"role": roles[k % 2], "content": text} for k, text in enumerate(item.turns)] for item in made]
    return {"prompt": prompts, "response": [item.response for item in made]}


def timed(guard: Guard, batch: dict[str, list[Any]], probe: TrunkProbe | None) -> tuple[float, StarScores]:
    begun = time.process_time()
    scores = star_scores(guard, batch, gemm="default", approx=probe)
    return time.process_time() - begun, scores


def measure(guard: Guard, args: argparse.Namespace) -> dict[str, Any]:
    begun = time.process_time()
    probe, _ = TrunkProbe.fit(guard, conversations(args.fit, 101), promise=Promise(), seed=args.seed)
    fitted = time.process_time() - begun
    batch = conversations(args.score, 202)
    exact_seconds, approx_seconds = [], []
    for _ in range(args.repeats):
        spent, exact = timed(guard, batch, None)
        exact_seconds.append(spent)
        spent, near = timed(guard, batch, probe)
        approx_seconds.append(spent)
    off = [float((a - b).abs().max()) for a, b in zip(exact.scores, near.scores, strict=True)]
    marks = [item.exact if item.exact is not None else torch.ones(len(item.ends), dtype=torch.bool) for item in near]
    return {
        "fit_rows": args.fit,
        "fit_s": fitted,
        "rows": args.score,
        "scores": sum(map(len, marks)),
        "approximated": float((~torch.cat(marks)).float().mean()),
        "rows_off": sum(value > probe.certificate.promise.tolerance for value in off),
        "largest_error": max(off),
        "exact_s": statistics.median(exact_seconds),
        "approx_s": statistics.median(approx_seconds),
        "speedup": statistics.median(a / b for a, b in zip(exact_seconds, approx_seconds, strict=True)),
        "audit": {"rows": probe.audit.rows, "wrong": probe.audit.wrong, "disagrees": probe.audit.disagrees},
        "certificate": {**asdict(probe.certificate), "words": str(probe.certificate)},
        "layers": probe.layers,
    }


def main(argv: list[str]) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--guard", default="tiny", help="tiny, or a folder")
    parser.add_argument("--fit", type=int, default=400)
    parser.add_argument("--score", type=int, default=400)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help=f"append the line here; {RESULTS} holds those of the docs")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    guard = Guard.tiny() if args.guard == "tiny" else Guard.from_pretrained(args.guard)
    row = environment("cpu", "transformers", guard=args.guard) | measure(guard, args)
    print(json.dumps(row, indent=1))
    if args.out:
        with args.out.open("a") as file:
            file.write(json.dumps(row) + "\n")
    return row


if __name__ == "__main__":
    main(sys.argv[1:])
