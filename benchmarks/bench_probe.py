"""Approximate scores against exact ones: tokens, time, and what the certificate promised, on rows that neither saw.

    python benchmarks/bench_probe.py --guard tiny --fit 400 --score 400
    python -m training.smollm2_guard --out GUARD              # a real LLM as a guard, see there
    python benchmarks/bench_probe.py --guard GUARD --words 200 --dtype bfloat16 --probe GUARD/probe.safetensors

Rows are held-out conversations of the built-in guard's training (topics, names and formats of their own), lengthened by
others of them up to ``--words``. A probe that ``--probe`` does not find is fitted and written there; fitting on long
rows takes much longer than the rest. Times are processor time, exact and approximate by turns. With ``--out`` one line
is appended; benchmarks/results/probe_cpu.jsonl holds those of the docs.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

import torch
from environment import append_rows, environment

from fastdss import Guard, Promise, ScoringOptions, StarScores, TrunkProbe, star_scores
from fastdss.prefix.engine import Runner
from fastdss.star.gates import Reading
from fastdss.star.probe_file import probe_bytes, read_probe
from fastdss.star.scoring import read_batch, score_turns

sys.path.insert(0, str(Path(__file__).parents[1]))
from training.held_out import benign, poisoned
from training.smollm2_guard import SPEC

OPTIONS = ScoringOptions(gemm="default")


def conversations(count: int, seed: int, words: int) -> dict[str, list[Any]]:
    """Every other one holds a disclosure somewhere; harmless responses stand before and after it."""
    prompts, responses = [], []
    for index in range(count):
        item, rng = (poisoned if index % 2 else benign)(seed, index), Random(f"{seed}/{index}/{words}")
        parts = [item.response]
        while sum(len(part.split()) for part in parts) < words:
            other = benign(seed + 1, rng.randrange(10**9)).response
            parts.insert(rng.choice([0, len(parts)]), other)
        prompts.append([{"role": ("user", "assistant")[k % 2], "content": text} for k, text in enumerate(item.turns)])
        responses.append(" ".join(" ".join(parts).split()[: max(words, 1)]) if words else item.response)
    return {"prompt": prompts, "response": responses}


@contextmanager
def counted() -> Iterator[list[int]]:
    """The numbers of tokens that go through the model."""
    tokens, run = [], Runner.run

    def watched(self: Runner, segments: Any, *rest: Any) -> Any:
        tokens.append(sum(len(segment.ids) for segment in segments))
        return run(self, segments, *rest)

    Runner.run = watched  # type: ignore[method-assign]
    try:
        yield tokens
    finally:
        Runner.run = run  # type: ignore[method-assign]


def timed(guard: Guard, batch: dict[str, list[Any]], probe: TrunkProbe | None) -> tuple[float, int, StarScores]:
    with counted() as tokens:
        begun = time.process_time()
        scores = star_scores(guard, batch, options=OPTIONS, approx=probe)
        return time.process_time() - begun, sum(tokens), scores


def read_sample(args: argparse.Namespace, part: int) -> tuple[Reading, float]:
    """What every ``--processes``-th row of the sample tells, from ``part`` on, and the processor time."""
    torch.set_num_threads(1)
    guard, reading, whole = load(args), Reading(), conversations(args.fit, args.sample_seed, args.words)
    begun = time.process_time()
    for row in range(part, args.fit, args.processes):
        batch = {name: values[row : row + 1] for name, values in whole.items()}
        score_turns([guard], read_batch(batch, "last"), OPTIONS, approx=reading)
        print(f"row {row} of {args.fit}", file=sys.stderr, flush=True)
    return reading, time.process_time() - begun


def fitted(args: argparse.Namespace) -> tuple[TrunkProbe, float | None]:
    """The probe, and the processor time of the sample's exact scores and the fit, unless it was fitted before."""
    if args.probe and args.probe.exists():
        return read_probe(args.probe.read_bytes()), None
    with multiprocessing.get_context("spawn").Pool(args.processes) as pool:
        found = pool.starmap(read_sample, [(args, part) for part in range(args.processes)])
    reading = Reading()
    first, _ = found[0]
    reading.layers, reading.guard_name, reading.weights = first.layers, first.guard_name, first.weights
    reading.seen = [found[row % args.processes][0].seen[row // args.processes] for row in range(args.fit)]
    begun = time.process_time()
    promise = Promise(args.tolerance, args.at_most, args.confidence)
    probe = TrunkProbe.learn(reading, promise=promise, options=OPTIONS, seed=args.seed)
    spent = time.process_time() - begun + sum(seconds for _, seconds in found)
    if args.probe:
        args.probe.write_bytes(probe_bytes(probe))
    return probe, spent


def measure(guard: Guard, args: argparse.Namespace) -> dict[str, Any]:
    probe, fit_seconds = fitted(args)
    print(probe.certificate, flush=True)
    batch = conversations(args.score, 202, args.words)
    seconds: dict[str, list[float]] = {"exact": [], "approx": []}
    for _ in range(args.repeats):
        spent, exact_tokens, exact = timed(guard, batch, None)
        seconds["exact"].append(spent)
        spent, approx_tokens, near = timed(guard, batch, probe)
        seconds["approx"].append(spent)
    off = [float((a - b).abs().max()) for a, b in zip(exact.scores, near.scores, strict=True)]
    marks = [item.exact if item.exact is not None else torch.ones(len(item.ends), dtype=torch.bool) for item in near]
    assert probe.audit is not None
    return {
        "fit_rows": probe.certificate.fitted_rows + probe.certificate.sampled_rows,
        "fit_s": fit_seconds,
        "rows": args.score,
        "words": statistics.mean(len(text.split()) for text in batch["response"]),
        "scores": sum(map(len, marks)),
        "approximated": float((~torch.cat(marks)).float().mean()),
        "rows_off": sum(value > probe.certificate.promise.tolerance for value in off),
        "largest_error": max(off),
        "exact_tokens": exact_tokens,
        "approx_tokens": approx_tokens,
        "fewer_tokens": exact_tokens / approx_tokens,
        "exact_s": statistics.median(seconds["exact"]),
        "approx_s": statistics.median(seconds["approx"]),
        "faster": statistics.median(a / b for a, b in zip(*seconds.values(), strict=True)),
        "audit": {"rows": probe.audit.rows, "wrong": probe.audit.wrong, "disagrees": probe.audit.disagrees},
        "certificate": {**asdict(probe.certificate), "words": str(probe.certificate)},
        "layers": probe.layers,
    }


def load(args: argparse.Namespace) -> Guard:
    if args.guard == "tiny":
        return Guard.tiny()
    return Guard.from_pretrained(args.guard, spec=SPEC, dtype=getattr(torch, args.dtype))


def main(argv: list[str]) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--guard", default="tiny", help="tiny, or a folder of training.smollm2_guard")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--words", type=int, default=0, help="of each response; 0: as they are, about 70")
    parser.add_argument("--fit", type=int, default=400, help="rows to fit and to show the promise on")
    parser.add_argument("--processes", type=int, default=1, help="that score these rows, a core each")
    parser.add_argument("--tolerance", type=float, default=0.1)
    parser.add_argument("--at-most", type=float, default=0.02)
    parser.add_argument("--confidence", type=float, default=0.95)
    parser.add_argument("--probe", type=Path, help="file of the probe: fitted and written if it is not there")
    parser.add_argument("--score", type=int, default=400)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--sample-seed", type=int, default=102, help="of the sample's rows; the probe's form was chosen on 101's"
    )
    parser.add_argument("--out", type=Path, help="append the line here")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    said = " ".join(["python benchmarks/bench_probe.py", *argv])
    row = environment("cpu", "transformers", command=said, guard=Path(args.guard).name) | measure(load(args), args)
    print(json.dumps(row, indent=1))
    if args.out:
        append_rows(args.out, [row])
    return row


if __name__ == "__main__":
    main(sys.argv[1:])
