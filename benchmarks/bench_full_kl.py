"""The full KL from exponentials, a prototype, beside the row pass that computes it: time and errors of the pass.

    python benchmarks/bench_full_kl.py [--rounds 7] [--record]

Both turn fp32 logits of policy and reference into dZ, of as many rows as the row pass takes at a time; the products
around them are the same. The prototype makes exponentials first, as the label forms do, and keeps them and the
reference's logits in the parameters' dtype. Inputs are SmolLM2's hidden states of English prose, or random ones; the
reference's states are those plus a tenth of their spread. Ways take turns in one process; times are medians of
processor time. Errors are relative Frobenius errors of dZ, and the largest of a token's KL in nats, against float64,
for weights uniform in [0, 1] and for the KL alone, before dZ itself is rounded (in bf16 by 1.7e-3).
With --record a row for each dtype and input goes to results/full_kl_cpu.jsonl.
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
from environment import append_rows, environment
from loss_methods import smollm2_on_prose
from torch import Tensor

from fastdss.loss.exponentials import LocalSums, combined, torch_exponentials
from fastdss.loss.objective import BLOCK_ELEMENTS, Objective, RowInputs, torch_row_pass
from fastdss.loss.softmax import softmax_
from fastdss.loss.vocab_shard import VocabShard

RESULTS = Path(__file__).parent / "results" / "full_kl_cpu.jsonl"
DIM, WORDS, KL_SCALE = 576, 49152, 0.5
ROWS = BLOCK_ELEMENTS // WORDS


def row_pass(z: Tensor, z_ref: Tensor, rows: RowInputs, kl: str) -> tuple[Tensor, Tensor]:
    """``(dZ, in place of z, KL)``"""
    _, token_kl = torch_row_pass(
        z,
        z_ref,
        rows,
        Objective(kl),
        bias=None,
        ref_bias=None,
        vocab_start=0,
        vocab_size=WORDS,
        combine=None,
        grad=True,
    )
    return z, token_kl


def from_exponentials(
    z: Tensor, kept: Tensor | None, z_ref: Tensor, scratch: Tensor, q: Tensor, rows: RowInputs, kl: str
) -> tuple[Tensor, Tensor]:
    """``(dZ, in place of z, KL)``. kept: [n, V] 16 bit, where E is rounded. z_ref: [n, V] in the parameters' dtype."""
    shard, label_form = VocabShard(0, WORDS, WORDS, None, None), Objective("none")
    sums = LocalSums.empty(z, len(z), torch.float32, label_form, False)
    torch_exponentials(z, shard.columns_of(rows.labels, checked=True), label_form, None, sums, kept)
    stats = combined(sums, None, rows.labels, label_form, shard, checked=True)
    if kept is not None:
        z.copy_(kept)
    assert rows.kl_weight is not None
    a, b, column = rows.ce_weight[:, None], rows.kl_weight[:, None], rows.labels[:, None]
    ours, nll = (1 - stats.miss)[:, None], stats.nll
    lse = nll + sums.label_logit
    level = (sums.others - sums.total.log())[:, None]
    torch.clamp(z, min=1e-38, out=scratch).log_().add_(level).scatter_(1, column, sums.label_logit[:, None])
    q.copy_(z_ref)
    scratch.sub_(q)
    ref = softmax_(q)
    z.mul_(stats.unit[:, None]).scatter_(1, column, ours)
    if kl == "forward":
        token_kl = lse - ref.lse - scratch.mul_(q).sum(1) / ref.total
        z.mul_(a + b).sub_(q.mul_(b / ref.total[:, None]))
    else:
        mean = torch.mul(z, scratch, out=q).sum(1)
        token_kl = mean + ref.lse - lse
        z.mul_(scratch.mul_(b).add_(a - b * mean[:, None]))
    return z.scatter_add_(1, column, -a), token_kl


def truth(z: Tensor, z_ref: Tensor, rows: RowInputs, kl: str) -> tuple[Tensor, Tensor]:
    log_p, log_q = z.log_softmax(1), z_ref.log_softmax(1)
    p, q = log_p.exp(), log_q.exp()
    assert rows.kl_weight is not None
    a, b = rows.ce_weight.double()[:, None], rows.kl_weight.double()[:, None]
    token_kl = ((p * (log_p - log_q)) if kl == "reverse" else (q * (log_q - log_p))).sum(1)
    of_kl = p * ((log_p - log_q) - token_kl[:, None]) if kl == "reverse" else p - q
    return (a * p + b * of_kl).scatter_add_(1, rows.labels[:, None], -a), token_kl


def inputs(text: bool, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of policy and reference in float64, of parameters of ``dtype``; labels."""
    g = torch.Generator().manual_seed(0)
    if text:
        hidden, head, labels = smollm2_on_prose(512)
        hidden, labels = hidden[-ROWS:], labels[-ROWS:]
    else:
        hidden, head = torch.randn(ROWS, DIM, generator=g), torch.randn(WORDS, DIM, generator=g) * 3 / DIM**0.5
        labels = torch.randint(WORDS, (ROWS,), generator=g)
    ref_hidden = hidden + 0.1 * hidden.std() * torch.randn(hidden.shape, generator=g)
    hidden, ref_hidden, head = (t.to(dtype).double() for t in (hidden, ref_hidden, head))
    return hidden @ head.T, ref_hidden @ head.T, labels


def measure(dtype: torch.dtype, text: bool, rounds: int) -> dict[str, Any]:
    exact, exact_ref, labels = inputs(text, dtype)
    logits, ref = exact.float(), exact_ref.float()
    z, z_ref, scratch, q = (torch.empty_like(logits) for _ in range(4))
    ref_kept = ref.to(dtype)
    kept = None if dtype == torch.float32 else torch.empty_like(logits, dtype=dtype)
    star = torch.rand(ROWS, generator=torch.Generator().manual_seed(1))
    seconds: dict[str, float] = {}
    found: dict[str, float] = {}
    for kl in ("reverse", "forward"):
        ways: dict[str, Callable[[RowInputs], tuple[Tensor, Tensor]]] = {
            "row pass": lambda rows, kl=kl: row_pass(z, z_ref, rows, kl),
            "exponentials": lambda rows, kl=kl: from_exponentials(z, kept, ref_kept, scratch, q, rows, kl),
        }
        times: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(rounds + 1):
            for name, run in ways.items():
                for part, w in (("loss", star), ("kl", torch.zeros_like(star))):
                    rows = RowInputs(labels, w, (1 - w) * KL_SCALE, None)
                    z.copy_(logits)
                    z_ref.copy_(ref)
                    start = time.process_time()
                    got, token_kl = run(rows)
                    taken = time.process_time() - start
                    if turn:
                        times[name].append(taken)
                    else:
                        true, true_kl = truth(exact, exact_ref, rows, kl)
                        found[f"{kl}, token_kl, {name}"] = float(f"{float((token_kl - true_kl).abs().max()):.2g}")
                        found[f"{kl}, {part}, {name}"] = float(f"{float((got - true).norm() / true.norm()):.2g}")
        seconds |= {f"{kl}, {name}": round(statistics.median(values), 5) for name, values in times.items()}
    ratios = {
        kl: round(seconds[f"{kl}, exponentials"] / seconds[f"{kl}, row pass"], 3) for kl in ("reverse", "forward")
    }
    name = str(dtype).removeprefix("torch.")
    return {"dtype": name, "text": text, "rows": ROWS, "cpu_s": seconds, "ratio": ratios, "error": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--record", action="store_true", help=f"append to {RESULTS.name}, which is committed")
    given = parser.parse_args()
    torch.set_num_threads(1)  # processor time would count another's waiting
    for dtype in (torch.float32, torch.bfloat16):
        for text in (True, False):
            row = measure(dtype, text, given.rounds) | environment("cpu", rounds=given.rounds)
            print(json.dumps(row, indent=1))
            if given.record:
                append_rows(RESULTS, [row])


if __name__ == "__main__":
    main()
