"""``python -m tests.hardening.soak``: many training steps and scored rows; memory must stay flat.

Prints one line per mark (peak of resident memory, live Python objects) and exits 1 where the second half grew.
"""

from __future__ import annotations

import argparse
import gc
import random
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from fastdss import Guard, dss_loss
from fastdss.corpus.run import score_dataset
from fastdss.corpus.scorer import StarScorer
from fastdss.loss.functional import live_rows

_WORDS = [
    "you",
    "can",
    "call",
    "her",
    "on",
    "the",
    "phone",
    "today",
    "and",
    "write",
    "it",
    "down",
    "for",
    "a",
    "friend",
]
_ALLOWED = 24 << 20  # bytes between the middle and the end: the allocator's own movements


def resident() -> int:
    """Bytes of this process in memory now."""
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * 4096


def steps(count: int) -> Iterator[int]:
    """``count`` optimiser steps on a head and an embedding, ragged batches, all KL forms in turn."""
    torch.manual_seed(0)
    head, states = (torch.nn.Parameter(torch.randn(2000, 64) / 8) for _ in range(2))
    reference = head.detach().clone()
    optimiser = torch.optim.AdamW([head, states], lr=1e-3)
    for step in range(count):
        n = 40 + step % 60
        ids = torch.randint(0, 2000, (n,))
        labels, star = torch.randint(0, 2000, (n,)), torch.rand(n)
        labels[:: 3 + step % 5] = -100
        kl: Any = ("k1", "k2", "k3", "reverse", "forward")[step % 5]
        hidden = states[ids]
        known = {"ref_hidden": states.detach()[ids], "ref_lm_head": reference}
        rows = live_rows(labels, star, kl_scale=0.5) if step % 2 else None
        loss = dss_loss(hidden, head, labels, star, kl=kl, rows=rows, chunk_bytes=200_000, **known).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        if not loss.isfinite():
            raise RuntimeError(f"step {step}: the loss is {loss.item()}")
        yield step + 1


def conversations(count: int) -> list[dict[str, Any]]:
    draw = random.Random(0)
    texts = (" ".join(draw.choices(_WORDS, k=draw.randint(0, 24))) for _ in range(count))
    return [{"id": i, "prompt": f"Question {i % 97}?", "response": text} for i, text in enumerate(texts)]


def rows(count: int, at_once: int) -> Iterator[int]:
    """``count`` rows through the tiny guard and ``score_dataset``, ``at_once`` of them per folder."""
    scorer = StarScorer(Guard.tiny(), every=8, gemm="default")
    whole = conversations(count)
    with tempfile.TemporaryDirectory() as folder:
        for start in range(0, count, at_once):
            part = whole[start : start + at_once]
            manifest = score_dataset(part, Path(folder) / str(start), scorer, shard_rows=64)
            if manifest["counts"]["failed"]:
                raise RuntimeError(f"{manifest['counts']['failed']} rows failed")
            yield start + len(part)


def flat(name: str, work: Iterator[int], total: int, say: Callable[[str], None]) -> bool:
    """Run ``work`` to its end; whether memory in the second half stayed within what the first half needed."""
    marks: list[int] = []
    wanted = [total * sixth // 6 for sixth in range(2, 7)]
    for done in work:
        while wanted and done >= wanted[0]:
            wanted.pop(0)
            gc.collect()
            marks.append(resident())
            say(f"{name}: {done} of {total}, {marks[-1] >> 20} MiB, {len(gc.get_objects())} objects")
    middle = len(marks) // 2
    grown = max(marks[middle + 1 :]) - max(marks[: middle + 1])
    say(f"{name}: {grown / 2**20:+.1f} MiB in the second half")
    return grown <= _ALLOWED


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.hardening.soak", description=__doc__)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--rows", type=int, default=10_000)
    args = parser.parse_args()
    say = lambda line: print(line, flush=True)  # noqa: E731
    trained = flat("training steps", steps(args.steps), args.steps, say)
    scored = flat("scored rows", rows(args.rows, max(1, args.rows // 40)), args.rows, say)
    return int(not (trained and scored))


if __name__ == "__main__":
    sys.exit(main())
