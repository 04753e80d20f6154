"""The forward KL of a frozen head from a stored vector a token, beside a live reference: time, memory, errors.

    python benchmarks/bench_forward_kl.py [--rows 512] [--rounds 5] [--record]

SmolLM2's hidden states of English prose, the reference's those plus noise; all rows count, weights are uniform in
[0, 1], the head is frozen. Methods take turns in one process; times are medians of processor time, ratios are to the
step from stored vectors. "live" is the loss alone: a live reference also runs its backbone at every step, shown apart.
Errors are relative Frobenius errors of the gradient for the hidden states against float64 and both models' full
logits, of the whole loss and of the KL alone on 128 rows, by the dtype in which the vectors were stored. With --record
a row for each dtype goes to results/forward_kl.jsonl.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from bench_loss import peak_extra
from environment import append_rows, environment
from loss_methods import Case, Inputs, make_inputs
from torch import Tensor

from fastdss import dss_loss, forward_reference
from fastdss.demo.policy import load_policy
from fastdss.models.causal_lm import backbone

RESULTS = Path(__file__).parent / "results" / "forward_kl.jsonl"
CHECKED = 128
STORED = (torch.float32, torch.float16, torch.bfloat16)


def arguments(x: Inputs, stored: torch.dtype | None) -> dict[str, Any]:
    """The reference: vectors stored in a dtype, or hidden states and head."""
    if stored is None:
        return {"ref_hidden": x.ref_hidden, "ref_lm_head": x.ref_head}
    _, slope, offset = forward_reference(x.ref_hidden, x.ref_head, x.labels, dtype=stored)
    return {"ref_slope": slope, "ref_offset": offset}


def step(x: Inputs, kl: str, star: Tensor, reference: dict[str, Any]) -> Tensor:
    """The gradient of the hidden states."""
    loss = dss_loss(x.hidden, x.head, x.labels, star, kl=kl, rows=x.rows, **reference).loss
    return torch.autograd.grad(loss, x.hidden)[0]


def true_gradient(x: Inputs, star: Tensor) -> Tensor:
    """By the formula, from both models' full logits in float64."""
    hidden, head, ref_hidden = (t.detach().double() for t in (x.hidden, x.head, x.ref_hidden))
    leaf, w = hidden.requires_grad_(), star.double()
    log_p, log_q = (leaf @ head.T).log_softmax(1), (ref_hidden @ head.T).log_softmax(1)
    nll = -log_p.gather(1, x.labels[:, None])[:, 0]
    kl = (log_q.exp() * (log_q - log_p)).sum(1)
    return torch.autograd.grad((w * nll + (1 - w) * 0.5 * kl).mean(), leaf)[0]


def errors(whole: Inputs) -> dict[str, float]:
    """On the first rows."""
    found, x = {}, whole.first(CHECKED, whole.hidden.dtype)
    for name, star in (("loss", x.star), ("kl", torch.zeros_like(x.star))):
        true = true_gradient(x, star)
        for stored in (*STORED, None):
            got = step(x, "forward", star, arguments(x, stored)).double()
            label = "live" if stored is None else str(stored).removeprefix("torch.")
            found[f"{name}, {label}"] = float((got - true).norm() / true.norm())
    return found


def measure(dtype: str, rows: int, rounds: int) -> dict[str, Any]:
    case = Case(rows, 576, 49152, dtype, 1.0, "k2", frozen=True, text=True)
    x = make_inputs(case, "cpu")
    policy = load_policy(None, "cpu", "bf16" if dtype == "bfloat16" else "fp32")
    windows = x.labels.view(-1, 512)
    stored, live, k2 = arguments(x, torch.float16), arguments(x, None), {"ref_logprobs": x.ref_logprobs}

    def backbone_alone() -> None:
        with torch.no_grad():
            for window in windows:
                backbone(policy.model)(window[None])

    ways: dict[str, Callable[[], Any]] = {
        "stored": lambda: step(x, "forward", x.star, stored),
        "live": lambda: step(x, "forward", x.star, live),
        "k2": lambda: step(x, "k2", x.star, k2),
        "cross-entropy": lambda: step(x, "k2", torch.ones_like(x.star), k2),
        "backbone": backbone_alone,
        "making the columns": lambda: arguments(x, torch.float16),
    }
    memory = {name: round(peak_extra(ways[name], x) / 2**20) for name in ("stored", "live", "k2")}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, run in ways.items():
            start = time.process_time()
            run()
            if turn:
                times[name].append(time.process_time() - start)
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        "dtype": dtype,
        "rows": rows,
        "cpu_s": {name: round(value, 4) for name, value in medians.items()},
        "ratio_to_stored": {name: round(value / medians["stored"], 3) for name, value in medians.items()},
        "peak_extra_mib": memory,
        "gradient_error": {name: float(f"{value:.2g}") for name, value in errors(x).items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=512, help="tokens, a multiple of 512")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--record", action="store_true", help=f"append to {RESULTS.name}, which is committed")
    given = parser.parse_args()
    torch.set_num_threads(1)  # processor time would count another's waiting
    for dtype in ("float32", "bfloat16"):
        row = measure(dtype, given.rows, given.rounds) | environment("cpu", rounds=given.rounds)
        print(json.dumps(row, indent=1))
        if given.record:
            append_rows(RESULTS, [row])


if __name__ == "__main__":
    main()
