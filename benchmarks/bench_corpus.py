"""Cost of scoring a whole data set with `score_dataset`, over bare `score_turns` on the same rows and batches.

    python benchmarks/bench_corpus.py --rows 10000      # on two idle CPU cores, about 15 minutes

Conversations are generated, half of them poisoned; the guard is the tiny one. Measured:
`memory`: peak resident memory and rows per second of a run over a tenth of the rows and over all, each in a process of
its own. `alternating`: bare and whole runs take turns on parts of the data; `overhead` is the median of the ratios less
one. `inside`: in the whole runs of those turns, the time that was not spent in `score_turns`, over the time that was:
the same overhead, which a busy machine distorts less, in processor time least. `resume`: a run over finished scores,
which reads, plans and verifies everything and scores nothing. `turns`: conversations of ten turns of 40 words, over as
many single responses of 400 words, by turns. One JSON line per measurement.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import transformers
from environment import append_rows, environment

from fastdss import StarScorer, score_dataset
from fastdss.corpus.plan import SHARD_ROWS
from fastdss.corpus.rows import Row, read_rows
from fastdss.corpus.scorer import scoring_batches
from fastdss.demo.conversations import training_conversations
from fastdss.star import scoring


def write_rows(path: Path, count: int, first: int = 0) -> Path:
    """`count` generated conversations, the seed of a row being its number over 96."""
    with path.open("w", encoding="utf-8") as file:
        for start in range(first, first + count, 96):
            for row in training_conversations(48, 48, seed=start)[: first + count - start]:
                file.write(json.dumps({"prompt": row.prompt, "response": row.response}) + "\n")
    return path


def run_bare(source: Path, scorer: StarScorer, shard_rows: int) -> float:
    """Seconds of `score_turns` on the batches that the whole run makes, reading not counted."""
    rows = [row for row in read_rows([source]) if isinstance(row, Row)]
    guard, options = scorer._load(), scorer.options
    spent = 0.0
    for start in range(0, len(rows), shard_rows):
        shard = rows[start : start + shard_rows]
        for indices in scoring_batches(shard):
            part = [shard[index] for index in indices]
            judged = [
                scoring.Judged(row.conversation, turn, place, place)
                for place, row in enumerate(part)
                for turn in row.judged
            ]
            begun = time.perf_counter()
            scoring.score_turns(guard, judged, options)
            spent += time.perf_counter() - begun
    return spent


def now() -> np.ndarray:
    return np.array([time.perf_counter(), time.process_time()])


class Stopwatch:
    """Stands in for `score_turns` and adds up the time inside it: on the wall and of the processor."""

    def __init__(self) -> None:
        self.inside = np.zeros(2)
        self.original = scoring.score_turns

    def __call__(self, *args, **options):
        begun = now()
        try:
            return self.original(*args, **options)
        finally:
            self.inside += now() - begun

    def __enter__(self) -> Stopwatch:
        scoring.score_turns = self
        return self

    def __exit__(self, *raised) -> None:
        scoring.score_turns = self.original


def run_whole(source: Path, out: Path, scorer: StarScorer, shard_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Seconds `[wall, processor]` of `score_dataset`, and of `score_turns` within."""
    with Stopwatch() as watch:
        begun = now()
        counts = score_dataset(source, out, scorer, shard_rows=shard_rows)["counts"]
        spent = now() - begun
    assert counts["failed"] == 0, counts
    return spent, watch.inside


def alternating(args: argparse.Namespace, folder: Path) -> list[dict]:
    scorer = StarScorer("tiny")
    scorer.settle({})
    count = max(1, args.turn_rows // args.turns)
    run_bare(write_rows(folder / "warm.jsonl", min(count, 64)), scorer, args.shard_rows)
    bare, whole, inside, again = [], [], [], []
    for turn in range(args.turns):
        source, out = write_rows(folder / f"{turn}.jsonl", count, first=turn * count), folder / f"scores-{turn}"
        for way in ("bare", "whole") if turn % 2 else ("whole", "bare"):
            if way == "bare":
                bare.append(run_bare(source, scorer, args.shard_rows))
            else:
                spent, within = run_whole(source, out, scorer, args.shard_rows)
                whole.append(spent[0])
                inside.append(spent / within - 1)
        again.append(run_whole(source, out, scorer, args.shard_rows)[0][0])
    common = {"rows": count, "turns": args.turns, "gemm": scorer.options.gemm}
    ratios = [w / b - 1 for w, b in zip(whole, bare, strict=True)]
    wall, processor = zip(*inside, strict=True)
    return [
        {"measure": "alternating", **common, **spread("bare_rows_per_s", [count / b for b in bare])}
        | spread("rows_per_s", [count / w for w in whole])
        | spread("overhead", ratios),
        {"measure": "inside", **common, **spread("overhead", wall), **spread("overhead_cpu", processor)},
        {"measure": "resume", **common, **spread("rows_per_s", [count / a for a in again])},
    ]


def ten_turns(args: argparse.Namespace, folder: Path) -> list[dict]:
    """What judging every turn costs: the same words in ten turns, and in one response."""
    words = " ".join(row.response for row in training_conversations(200, 200, seed=0)).split()
    scorer = StarScorer("tiny")
    scorer.settle({})
    ratios, seconds = [], []
    for turn in range(max(args.turns, 3)):
        texts = [words[(turn * 8 + i) * 400 % 4000 :][:400] for i in range(8)]
        one = [[{"role": "user", "content": "Please go on."}, answer(text)] for text in texts]
        ten = [
            [
                message
                for t in range(10)
                for message in ({"role": "user", "content": "Please go on."}, answer(text[40 * t : 40 * t + 40]))
            ]
            for text in texts
        ]
        spent = []
        for chats in (one, ten) if turn % 2 else (ten, one):
            rows = [row for row in read_rows([[{"messages": chat} for chat in chats]]) if isinstance(row, Row)]
            begun = time.process_time()
            scorer.score_rows(rows, lambda done: None)
            spent.append(time.process_time() - begun)
        single, whole = spent if turn % 2 else spent[::-1]
        ratios.append(whole / single)
        seconds.append(single / len(texts))
    return [{"measure": "turns", **spread("ratio_cpu", ratios), **spread("single_s_cpu", seconds)}]


def answer(words: Sequence[str]) -> dict[str, str]:
    return {"role": "assistant", "content": " ".join(words)}


def spread(name: str, values: Sequence[float]) -> dict[str, float]:
    p20, p80 = np.percentile(values, [20, 80]).tolist()
    return {name: statistics.median(values), f"{name}_p20": p20, f"{name}_p80": p80}


def memory(args: argparse.Namespace, folder: Path) -> list[dict]:
    found = []
    for count in sorted({max(1, args.rows // 10), args.rows}):
        source = write_rows(folder / f"{count}-rows.jsonl", count)
        command = [sys.executable, __file__, "--only", str(source), "--shard-rows", str(args.shard_rows)]
        command += ["--threads", str(args.threads)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr)
        found.append({"measure": "memory", "rows": count} | json.loads(done.stdout.splitlines()[-1]))
    return found


def only(args: argparse.Namespace) -> None:
    """The child of `memory`: one run in a fresh process."""
    scorer = StarScorer("tiny")
    scorer.settle({})
    with tempfile.TemporaryDirectory() as folder:
        spent, inside = run_whole(Path(args.only), Path(folder) / "scores", scorer, args.shard_rows)
    with open(args.only, encoding="utf-8") as file:
        count = sum(1 for _ in file)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    wall, processor = (spent / inside - 1).tolist()
    row = {"peak_bytes": peak, "rows_per_s": count / spent[0], "overhead": wall, "overhead_cpu": processor}
    print(json.dumps(row))


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--rows", type=int, default=10_000, help="of the larger run whose memory is measured")
    p.add_argument("--turn-rows", type=int, default=4096, help="of the alternating turns together")
    p.add_argument("--turns", type=int, default=4)
    p.add_argument("--shard-rows", type=int, default=max(SHARD_ROWS))
    p.add_argument("--threads", type=int, default=torch.get_num_threads())
    p.add_argument("--out", type=Path, help="append the JSON lines to this file")
    p.add_argument("--only", help=argparse.SUPPRESS)
    return p


def main(argv: list[str]) -> list[dict]:
    args = parser().parse_args(argv)
    torch.set_num_threads(args.threads)
    transformers.utils.logging.disable_progress_bar()
    if args.only:
        only(args)
        return []
    with tempfile.TemporaryDirectory() as folder:
        rows = []
        facts = environment("cpu", "transformers", guard="tiny", dtype="float32", shard_rows=args.shard_rows)
        for measured in (alternating, ten_turns, memory):
            for row in measured(args, Path(folder)):
                rows.append(row | facts)
                print(json.dumps(rows[-1]), flush=True)
    if args.out:
        append_rows(args.out, rows)
    return rows


if __name__ == "__main__":
    main(sys.argv[1:])
