"""Attention of one micro-batch of branches: the Triton kernel, FlexAttention, the loop over SDPA, and causal SDPA.

    python benchmarks/bench_prefix_attention.py                          # CPU: loop, FlexAttention, causal SDPA
    python benchmarks/bench_prefix_attention.py --shape llama-guard-8b   # GPU: the kernel too; bf16, 8192 tokens
    python benchmarks/bench_prefix_attention.py --tune                   # GPU: every configuration, every head width

Random queries, keys and values in a guard's shape; branches of ``--tail`` tokens after every fifth word. Every way must
agree with the loop in float64 before anything is timed. ``tflops`` counts only pairs of a query and a key that it sees;
for causal SDPA, on as many tokens in one row, likewise. FlexAttention's mask is built from the arrays and, like the
concatenation of store and pack that it needs, not timed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from bench_loss import timed
from environment import append_rows, environment
from fastdss.kernels.configs import PREFIX_ATTENTION_CANDIDATES, PrefixConfig
from fastdss.kernels.prefix_attention import architecture
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.nn.functional import scaled_dot_product_attention
from triton import OutOfResources

from fastdss.prefix.attention import KVStore, PrefixPlan, attend_in_order
from fastdss.prefix.packed_attention import PackedBatch, attend_by_kernel
from fastdss.prefix.packing import Segment, make_groups, micro_batches, schedule
from fastdss.prefix.tree import PrefixTree

SHAPES = {  # query heads, K/V heads, head dimension
    "tiny": (4, 2, 16),
    "smollm2-135m": (9, 3, 64),
    "granite-2b": (32, 8, 64),
    "llama-guard-8b": (32, 8, 128),
    "shieldgemma-9b": (16, 8, 256),
}
TUNED_SHAPES = ("granite-2b", "llama-guard-8b", "shieldgemma-9b")  # 64, 128 and 256 wide
HEAD, TOKENS_PER_WORD = 203, 1.14
BLOCK = 128  # of FlexAttention
HEAD_START = 2_000_000  # cycles, about a millisecond: launching takes as long as the kernel


def middle_batch(words: int, responses: int, tail: int, budget: int) -> tuple[list[Segment], int]:
    """The micro-batch in the middle of those with branches only, and the capacity of its store."""
    size, step = int(words * TOKENS_PER_WORD), 5 * TOKENS_PER_WORD
    starts = [HEAD + round(step * (k + 1)) for k in range(int(size / step))]
    trunk = list(range(HEAD + size + tail))
    trees = [PrefixTree(trunk, starts, [[0] * tail] * len(starts)) for _ in range(responses)]
    group = make_groups(trees, list(range(responses)), 2**31)[0]
    batches = [
        batch
        for batch in micro_batches(schedule(group, 0), budget, 512)
        if all(len(segment.ids) == tail and segment.start for segment in batch)
    ]
    if not batches:
        raise SystemExit("no micro-batch holds branches only: more words, or a smaller budget")
    return batches[len(batches) // 2], group.capacity


class Problem:
    """One micro-batch's tensors, a filled store, and the ways to attend."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.heads, self.kv_heads, self.dim = SHAPES[args.shape]
        self.segments, self.capacity = middle_batch(args.words, args.responses, args.tail, args.budget)
        self.tokens = sum(len(segment.ids) for segment in self.segments)
        self.options = (self.dim**-0.5, None, None)
        torch.manual_seed(0)
        dtype = getattr(torch, args.dtype)

        def random(heads: int, length: int) -> Tensor:
            return torch.randn(1, length, heads, self.dim, device=args.device).to(dtype).transpose(1, 2)

        self.new = [random(heads, self.tokens) for heads in (self.heads, self.kv_heads, self.kv_heads)]
        self.kept = [random(self.kv_heads, self.capacity)[0].contiguous() for _ in range(2)]
        pairs = sum(len(s.ids) * s.start + len(s.ids) * (len(s.ids) + 1) // 2 for s in self.segments)
        self.flop = 4 * pairs * self.heads * self.dim
        self.causal_flop = 2 * self.tokens * (self.tokens + 1) * self.heads * self.dim

    def plan(self, attend: Callable[..., Tensor], dtype: torch.dtype | None = None) -> PrefixPlan:
        store = KVStore(self.capacity)
        keys, values = (x.clone() if dtype is None else x.to(dtype) for x in self.kept)
        store.layers[0] = keys, values
        return PrefixPlan(self.segments, store, attend, {})

    def packed(self, attend: Callable[..., Tensor]) -> Callable[[], Tensor]:
        plan = self.plan(attend)
        query, key, value = self.new
        return lambda: attend(plan, 0, query, key, value, *self.options)

    def truth(self) -> Tensor:
        query, key, value = (x.double() for x in self.new)
        return attend_in_order(self.plan(attend_in_order, torch.float64), 0, query, key, value, *self.options)

    def flex(self) -> Callable[[], Tensor]:
        query, key, value = self.new
        room = -self.capacity % BLOCK
        keys, values = (
            torch.cat([kept[None], kept.new_zeros(1, self.kv_heads, room, self.dim), new], dim=2).contiguous()
            for kept, new in zip(self.kept, (key, value), strict=True)
        )
        mask = block_mask(PackedBatch.of(self.plan(attend_in_order)), self.capacity + room, query.device)
        compiled = torch.compile(flex_attention, dynamic=False)
        query = query.contiguous()

        def run() -> Tensor:
            out = compiled(query, keys, values, block_mask=mask, scale=self.options[0], enable_gqa=True)
            return out.transpose(1, 2)

        return run

    def causal(self) -> Callable[[], Tensor]:
        query, key, value = self.new
        return lambda: scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)


def block_mask(batch: PackedBatch, offset: int, device: torch.device) -> BlockMask:
    """FlexAttention's mask of a micro-batch whose packed keys follow ``offset`` store positions; no dense mask."""
    runs = batch.runs
    lengths = [run.right - run.left for run in runs]
    base, limit, left = (
        np.repeat([value(run) for run in runs], lengths)
        for value in (lambda run: run.bases[0], lambda run: run.start, lambda run: run.left)
    )
    token = np.arange(len(base))
    edges = np.arange(0, offset + len(token), BLOCK)
    seen = np.zeros((len(token), len(edges)), dtype=np.int64)
    for first, end in ((base, base + limit), (offset + left, offset + token + 1)):
        inside = np.minimum(end[:, None], edges + BLOCK) - np.maximum(first[:, None], edges)
        seen += np.maximum(inside, 0)
    count = np.add.reduceat(seen, np.arange(0, len(token), BLOCK), axis=0)
    rows = np.minimum(BLOCK, len(token) - np.arange(0, len(token), BLOCK))[:, None]
    full = count == rows * BLOCK
    tables = []
    for kind in ((count > 0) & ~full, full):
        numbers = kind.sum(1), np.argsort(~kind, axis=1, kind="stable")
        tables += [torch.tensor(x, dtype=torch.int32, device=device)[None, None] for x in numbers]
    bases, limits, lefts = (torch.tensor(x, device=device) for x in (base, limit, left))

    def mask_mod(b: Tensor, h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
        in_store = (kv >= bases[q]) & (kv < bases[q] + limits[q])
        return in_store | ((kv >= offset + lefts[q]) & (kv <= offset + q))

    partial_count, partial, full_count, whole = tables
    lengths_of = (len(token), offset + len(token))
    return BlockMask.from_kv_blocks(
        partial_count, partial, full_count, whole, BLOCK_SIZE=BLOCK, mask_mod=mask_mod, seq_lengths=lengths_of
    )


def ways(problem: Problem, device: str, names: list[str] | None) -> dict[str, Callable[[], Tensor]]:
    makers = {
        "loop": lambda: problem.packed(attend_in_order),
        "kernel": lambda: problem.packed(attend_by_kernel),
        "flex": problem.flex,
        "sdpa-causal": problem.causal,
    }
    if device == "cpu":
        del makers["kernel"]
    if names and (unknown := set(names) - makers.keys()):
        raise SystemExit(f"no such way on {device}: {sorted(unknown)}")
    return {name: make() for name, make in makers.items() if not names or name in names}


def check(problem: Problem, todo: dict[str, Callable[[], Tensor]]) -> dict[str, float]:
    """Largest error of each way; in 16 bits at most twice the loop's own."""
    truth = problem.truth()
    errors = {name: (run().double() - truth).abs().max().item() for name, run in todo.items() if name != "sdpa-causal"}
    own = (problem.packed(attend_in_order)().double() - truth).abs().max().item()
    allowed = 1e-5 if problem.new[0].dtype == torch.float32 else 2 * own
    for name, error in errors.items():
        if not error <= allowed:
            raise SystemExit(f"{name}: differs by {error:.3g}, more than {allowed:.3g}")
    return errors


def measure(run: Callable[[], Tensor], device: str, repeats: int) -> dict:
    """Seconds: between two events on a GPU, whose L2 cache is overwritten before the first; processor time on a CPU."""
    times = []
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        flush = torch.empty(64 << 20, dtype=torch.int8, device=device)
    for _ in range(repeats):
        if device == "cuda":
            flush.zero_()
            times.append(timed(run, cuda=True, head_start=HEAD_START)[0])
        else:
            start = time.process_time()
            run()
            times.append(time.process_time() - start)
    p20, p80 = np.percentile(times, [20, 80]).tolist()
    memory = {"peak_bytes": torch.cuda.max_memory_allocated()} if device == "cuda" else {}
    return {"median_s": statistics.median(times), "p20_s": p20, "p80_s": p80, **memory}


def facts_of(args: argparse.Namespace) -> dict:
    return environment(args.device, "triton", shape=args.shape, dtype=args.dtype)


def parser() -> argparse.ArgumentParser:
    on_gpu = torch.cuda.is_available()
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--shape", choices=SHAPES, default="llama-guard-8b" if on_gpu else "smollm2-135m")
    p.add_argument("--words", type=int, default=800)
    p.add_argument("--responses", type=int, default=1)
    p.add_argument("--tail", type=int, default=68)
    p.add_argument("--budget", type=int, default=8192 if on_gpu else 400, help="tokens of a micro-batch")
    p.add_argument("--device", default="cuda" if on_gpu else "cpu")
    p.add_argument("--dtype", default="bfloat16" if on_gpu else "float32")
    p.add_argument("--ways", nargs="*", help="names of the ways to run; default all")
    p.add_argument("--repeats", type=int, default=50 if on_gpu else 10)
    p.add_argument("--tune", action="store_true", help="time all candidates for kernels/configs.py")
    p.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "prefix_attention.jsonl")
    return p


def tune(args: argparse.Namespace, candidates: Sequence[PrefixConfig]) -> list[dict]:
    """Time every candidate that fits the chip and is right, for each head width; print the table for configs.py."""
    rows = []
    for args.shape in TUNED_SHAPES:
        problem = Problem(args)
        truth = problem.truth()
        own = (problem.packed(attend_in_order)().double() - truth).abs().max().item()
        timed: dict[PrefixConfig, float] = {}
        for config in candidates:
            run = problem.packed(partial(attend_by_kernel, config=config))
            try:
                error = (run().double() - truth).abs().max().item()
            except OutOfResources:
                continue
            if not error <= max(2 * own, 1e-5):
                raise SystemExit(f"{args.shape} {config}: differs by {error:.3g}, more than {max(2 * own, 1e-5):.3g}")
            times = measure(run, args.device, args.repeats)
            timed[config] = times["median_s"]
            rows.append({"way": "kernel", "config": config._asdict(), "max_error": error} | times | facts_of(args))
            rows[-1]["tflops"] = problem.flop / times["median_s"] / 1e12
            append_rows(args.out, rows[-1:])  # at once: the command may be ended before all candidates had their turn
            print(json.dumps(rows[-1]), flush=True)
        best = min(timed, key=timed.__getitem__)
        print(f'    ("{architecture(torch.device(args.device))}", {problem.dim}): {best},')
    return rows


@torch.inference_mode()
def main(argv: list[str]) -> list[dict]:
    args = parser().parse_args(argv)
    if args.tune:
        if args.device == "cpu":
            raise SystemExit("--tune needs a GPU")
        return tune(args, PREFIX_ATTENTION_CANDIDATES)
    problem = Problem(args)
    todo = ways(problem, args.device, args.ways)
    errors = check(problem, todo)
    rows = []
    for name, run in todo.items():
        run()
        row = {"way": name, "tokens": problem.tokens, "store": problem.capacity, "branches": len(problem.segments)}
        times = measure(run, args.device, args.repeats)
        flop = problem.causal_flop if name == "sdpa-causal" else problem.flop
        rate = {"max_error": errors.get(name), "tflops": flop / times["median_s"] / 1e12}
        rows.append(row | rate | times | facts_of(args))
        append_rows(args.out, rows[-1:])
        print(json.dumps(rows[-1]), flush=True)
    return rows


if __name__ == "__main__":
    main(sys.argv[1:])
