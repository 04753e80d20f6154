"""What entropy and accuracy of each token cost where the loss is computed: with and without, in turns.

    python benchmarks/bench_token_stats.py [--rounds 5] [--tokens 384] [--record]

"loss" is dss_loss with k2 and both gradients on random rows, "step" forward and backward of SmolLM2-135M-Instruct in
fp32. "one block" makes entropies of a whole block of logits at once, as before they were made of a few rows in cache.
Times are medians of processor time; with --record a row goes to results/token_stats_cpu.jsonl.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from environment import append_rows, environment

from fastdss import dss_loss, enable_dss
from fastdss.demo.policy import load_policy
from fastdss.loss import softmax

RESULTS = Path(__file__).parent / "results" / "token_stats_cpu.jsonl"
ROWS, DIM, WORDS = 512, 576, 49152
WAYS = {"without": (False, softmax._CACHED), "with": (True, softmax._CACHED), "one block": (True, 1 << 40)}


def loss_alone(dtype: torch.dtype) -> Callable[[bool], None]:
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(ROWS, DIM, generator=g).to(dtype).requires_grad_()
    head = (torch.randn(WORDS, DIM, generator=g) * 3 / DIM**0.5).to(dtype).requires_grad_()
    labels, star = torch.randint(WORDS, (ROWS,), generator=g), torch.rand(ROWS, generator=g)

    def run(token_stats: bool) -> None:
        hidden.grad = head.grad = None
        dss_loss(hidden, head, labels, star, ref_logprobs=-5 * star, token_stats=token_stats).loss.backward()

    return run


def whole_step(tokens: int) -> Callable[[bool], None]:
    model = enable_dss(load_policy(None, "cpu", "fp32").model.train())
    g = torch.Generator().manual_seed(0)
    ids, star = torch.randint(WORDS, (1, tokens), generator=g), torch.rand(1, tokens, generator=g)

    def run(token_stats: bool) -> None:
        model.zero_grad()
        found = model(ids, labels=ids, token_weights=star, ref_logprobs=-5 * star, token_stats=token_stats)
        found.loss.backward()

    return run


def ratios(run: Callable[[bool], None], rounds: int) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in WAYS}
    for turn in range(rounds + 1):
        for name, (token_stats, softmax._CACHED) in WAYS.items():
            start = time.process_time()
            run(token_stats)
            if turn:
                times[name].append(time.process_time() - start)
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {name: round(value / medians["without"], 4) for name, value in medians.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--record", action="store_true", help=f"append to {RESULTS.name}, which is committed")
    parser.add_argument("--tokens", type=int, default=384, help="of the step")
    given = parser.parse_args()
    torch.set_num_threads(1)  # processor time would count another's waiting
    row = {
        "loss, fp32": ratios(loss_alone(torch.float32), given.rounds),
        "loss, bf16": ratios(loss_alone(torch.bfloat16), given.rounds),
        "step, fp32": ratios(whole_step(given.tokens), given.rounds),
        "step_tokens": given.tokens,
    }
    row |= environment("cpu", rounds=given.rounds)
    print(json.dumps(row))
    if given.record:
        append_rows(RESULTS, [row])


if __name__ == "__main__":
    main()
