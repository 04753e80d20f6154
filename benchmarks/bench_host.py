"""What a call of the loss costs the host beside its products, forward and backward, on a problem too small to matter.

    python benchmarks/bench_host.py              # seconds; --record appends a row to benchmarks/results/host_cpu.jsonl

512 rows of 8 numbers and 16 words, one thread: the three products take 0.04 ms. Each way by turns, processor time,
medians.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from environment import append_rows, environment

from fastdss import dss_loss, weighted_ce

ROWS, WIDTH, WORDS = 512, 8, 16
ROUNDS, CALLS = 120, 3
RESULTS = Path(__file__).parent / "results" / "host_cpu.jsonl"


def ways() -> dict[str, Callable[[], object]]:
    torch.manual_seed(0)
    hidden = torch.randn(ROWS, WIDTH, requires_grad=True)
    head = torch.randn(WORDS, WIDTH, requires_grad=True)
    labels, weights, logprobs = torch.randint(0, WORDS, (ROWS,)), torch.rand(ROWS), -torch.rand(ROWS)
    dz = torch.randn(ROWS, WORDS)

    def cleared() -> None:
        hidden.grad = head.grad = None

    def cross_entropy() -> None:
        cleared()
        weighted_ce(hidden, head, labels, weights).backward()

    def k2() -> None:
        cleared()
        dss_loss(hidden, head, labels, weights, ref_logprobs=logprobs, kl="k2").loss.backward()

    def products() -> None:
        with torch.no_grad():
            hidden @ head.t(), dz @ head, dz.t() @ hidden

    return {"cross-entropy": cross_entropy, "k2": k2, "products": products}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", action="store_true", help=f"append the row to {RESULTS.name}")
    args = parser.parse_args()
    torch.set_num_threads(1)
    calls = ways()
    for call in calls.values():
        for _ in range(50):
            call()
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            begun = time.process_time()
            for _ in range(CALLS):
                call()
            taken[name].append((time.process_time() - begun) / CALLS * 1e3)
    medians = {name: round(statistics.median(times), 3) for name, times in taken.items()}
    for name in ("cross-entropy", "k2"):
        print(f"{name}: {medians[name] - medians['products']:.2f} ms beside {medians['products']:.2f} ms of products")
    row = environment("cpu") | {"command": "python benchmarks/bench_host.py", "rows": ROWS, "median_ms": medians}
    if args.record:
        append_rows(RESULTS, [row])


if __name__ == "__main__":
    main()
