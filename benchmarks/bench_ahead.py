"""How long scoring stands still for renderings, with the worker thread that runs ahead and without it.

    python benchmarks/bench_ahead.py                # the built-in guard, 300 generated conversations; a minute on a CPU

By turns in one process, the same scores by each way. ``waited``: seconds in which the caller had nothing to compute.
``share``: of the wall time. One JSON line per way, added to ``--out``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import torch
from environment import append_rows, environment

from fastdss import Guard, star_scores
from fastdss.demo.conversations import training_conversations
from fastdss.star import forest, scoring


def run(guard: Guard, batch: dict[str, list[str]], whole: int) -> dict[str, float]:
    """One call, with slices of at most ``whole`` turns."""
    used: list[scoring.Ahead] = []

    class Watched(scoring.Ahead):
        def __init__(self, make, items) -> None:
            super().__init__(make, items)
            used.append(self)

    before = scoring.Ahead, forest.WHOLE
    scoring.Ahead, forest.WHOLE = Watched, whole
    begun = time.perf_counter(), time.process_time()
    try:
        star_scores(guard, batch)
    finally:
        scoring.Ahead, forest.WHOLE = before
    return {
        "wall_s": time.perf_counter() - begun[0],
        "cpu_s": time.process_time() - begun[1],
        "waited_s": sum(ahead.waited for ahead in used),
    }


def main(argv: list[str]) -> list[dict]:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--rows", type=int, default=300)
    p.add_argument("--repeats", type=int, default=3)
    p.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "ahead.jsonl")
    args = p.parse_args(argv)
    guard = Guard.tiny()
    found = training_conversations(args.rows - args.rows // 2, args.rows // 2, seed=0)
    batch = {"prompt": [row.prompt for row in found], "response": [row.response for row in found]}
    ways = {"ahead": forest.WHOLE, "in one piece": args.rows}
    star_scores(guard, {name: values[:8] for name, values in batch.items()})
    times: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for _ in range(args.repeats):
        for name, whole in ways.items():
            times[name].append(run(guard, batch, whole))
    facts = environment("cuda" if torch.cuda.is_available() and guard.model.device.type == "cuda" else "cpu")
    rows = []
    for name, runs in times.items():
        row = {key: statistics.median(one[key] for one in runs) for key in runs[0]}
        row["share"] = statistics.median(one["waited_s"] / one["wall_s"] for one in runs)
        rows.append({"way": name, "rows": args.rows} | row | facts)
        print(json.dumps(rows[-1]), flush=True)
    append_rows(args.out, rows)
    return rows


if __name__ == "__main__":
    main(sys.argv[1:])
