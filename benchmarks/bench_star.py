"""Cost of a guard's score for every prefix of a response: fastdss against the usual ways.

    python benchmarks/bench_star.py                     # a few minutes on two CPU cores
    python benchmarks/bench_star.py --device cuda --dtype bfloat16 --shape granite-2b --responses 100 --case 150:30

Random weights in a real model's shape and random tokens in a guard's layout (head, prompt and response, tail), so
nothing is downloaded. Every way must give the same logits before anything is timed. Slow ways run on every n-th prefix
(``sampled``) and their time is scaled by tokens. ``cpu_s`` is processor time, which a busy machine distorts less.
One JSON line per way and case; ``--plot`` draws them.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers
from torch import Tensor
from transformers import DynamicCache, GraniteConfig, GraniteForCausalLM, LlamaConfig, LlamaForCausalLM

from fastdss.cpu_linear import eligible_layers
from fastdss.engine import reference_logits, tree_logits
from fastdss.prefix_tree import PrefixTree, build_tree, shared_length

HEAD, TAIL, TOKENS_PER_WORD = 203, 68, 1.14  # a Llama-Guard-like template and a prompt, with SmolLM2's tokenizer
VERDICTS = [3, 5]
BASE, PLAIN = "one forward per prefix", "plain causal forward"


def _config(d: int, ffn: int, layers: int, heads: int, kv: int, **more) -> dict:
    return {
        "hidden_size": d, "intermediate_size": ffn, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv, "max_position_embeddings": 8192, "vocab_size": 49152, **more,
    }  # fmt: skip


SHAPES = {
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


def by_prefix(model, renderings: list[list[int]]) -> Tensor:
    return reference_logits(model, VERDICTS, renderings)


def by_sorted_batches(model, renderings: list[list[int]], tokens: int = 2048) -> Tensor:
    """Prefixes of similar length in one right-padded batch."""
    device = next(model.parameters()).device
    order = sorted(range(len(renderings)), key=lambda i: len(renderings[i]))
    out = torch.empty(len(renderings), len(VERDICTS))
    while order:
        size = max(1, tokens // len(renderings[order[0]]))
        rows, order = order[:size], order[size:]
        longest = max(len(renderings[i]) for i in rows)
        ids = torch.tensor([renderings[i] + [0] * (longest - len(renderings[i])) for i in rows], device=device)
        lengths = torch.tensor([len(renderings[i]) for i in rows], device=device)
        mask = torch.arange(longest, device=device)[None] < lengths[:, None]
        with torch.inference_mode():
            hidden = model.model(input_ids=ids, attention_mask=mask.long(), use_cache=False).last_hidden_state
            last = hidden[torch.arange(len(rows), device=device), lengths - 1]
            out[rows] = (last @ model.lm_head.weight[VERDICTS].T).float().cpu() / scaling(model)
    return out


def by_generate(model, renderings: list[list[int]]) -> Tensor:
    """As the paper's released code does it: ``generate`` on every chunk, the scores of the first new token."""
    device = next(model.parameters()).device
    rows = []
    for ids in renderings:
        made = model.generate(
            torch.tensor([ids], device=device), attention_mask=torch.ones(1, len(ids), device=device),
            max_new_tokens=1, do_sample=False, output_scores=True, return_dict_in_generate=True, pad_token_id=0,
        )  # fmt: skip
        rows.append(made.scores[0][0, VERDICTS].float().cpu())
    return torch.stack(rows)


def by_cropped_cache(model, renderings: list[list[int]]) -> Tensor:
    """One growing ``DynamicCache``; each prefix crops the last one's tail and adds its own."""
    device = next(model.parameters()).device
    cache, cached, rows = DynamicCache(), np.empty(0, dtype=np.int64), []
    with torch.inference_mode():
        for ids in map(np.asarray, renderings):
            keep = min(shared_length(cached, ids), len(ids) - 1)
            if len(cached) > keep:
                cache.crop(keep - len(cached))
            new = torch.as_tensor(ids[keep:], device=device)[None]
            logits = model(new, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
            rows.append(logits[0, -1, VERDICTS].float().cpu())
            cached = ids
    return torch.stack(rows)


def plain_forward(model, tokens: int, length: int) -> None:
    """Causal forwards over ``tokens`` tokens in texts of ``length``: the bar."""
    device = next(model.parameters()).device
    with torch.inference_mode():
        for left in range(0, tokens, length):
            ids = torch.zeros(1, min(length, tokens - left), dtype=torch.long, device=device)
            model.model(input_ids=ids, use_cache=False)


def scaling(model) -> float:
    return getattr(model.config, "logits_scaling", 1.0)


@dataclass
class Way:
    name: str
    run: Callable[[], Tensor | None]
    tokens: int
    scale: float = 1.0
    sampled: int = 1


def ways(model, trees: list[PrefixTree], sample: int, budget: int | None) -> list[Way]:
    """Everything that is timed on one case."""
    whole = [tree.rendering(k) for tree in trees for k in range(tree.num_prefixes)]
    some, naive = whole[::sample], sum(map(len, whole))
    scale = naive / sum(map(len, some))
    distinct = sum(tree.num_tokens for tree in trees)

    def fast(gemm: str) -> Callable[[], Tensor]:
        return lambda: tree_logits(model, VERDICTS, trees, list(range(len(trees))), budget=budget, gemm=gemm)

    return [
        Way(BASE, lambda: by_prefix(model, some), naive, scale, sample),
        Way("length-sorted batches", lambda: by_sorted_batches(model, some), naive, scale, sample),
        Way("generate per prefix", lambda: by_generate(model, some), naive, scale, sample),
        Way("cropped DynamicCache", lambda: by_cropped_cache(model, whole), distinct),
        Way(PLAIN, lambda: plain_forward(model, distinct, len(trees[0].trunk)), distinct),
        Way("fastdss", fast("default"), distinct),
        *([Way("fastdss, oneDNN", fast("onednn"), distinct)] if eligible_layers(model) else []),
    ]


def check(todo: list[Way], tolerance: float) -> dict[str, float]:
    """Largest difference of P(safe) between each way and one forward per prefix; an error if it is too large."""
    expected = todo[0].run().softmax(-1)[:, 0]
    errors = {}
    for way in todo[1:]:
        logits = way.run()
        if logits is not None:
            step = todo[0].sampled // way.sampled
            errors[way.name] = (logits.softmax(-1)[::step, 0] - expected).abs().max().item()
            if not errors[way.name] <= tolerance:
                raise SystemExit(f"{way.name}: scores differ by {errors[way.name]:.3g}, more than {tolerance}")
    return errors


def measure(way: Way, device: str, repeats: int) -> dict:
    wall, cpu = [], []
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for _ in range(repeats):
        begun = time.perf_counter(), time.process_time()
        way.run()
        if device == "cuda":
            torch.cuda.synchronize()
        wall.append((time.perf_counter() - begun[0]) * way.scale)
        cpu.append((time.process_time() - begun[1]) * way.scale)
    p20, p80 = np.percentile(wall, [20, 80]).tolist()
    memory = {"peak_bytes": torch.cuda.max_memory_allocated()} if device == "cuda" else {}
    return {"median_s": statistics.median(wall), "p20_s": p20, "p80_s": p80, "cpu_s": statistics.median(cpu), **memory}


def environment(args: argparse.Namespace) -> dict:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    chip = torch.cuda.get_device_name() if args.device == "cuda" else platform.processor() or platform.machine()
    return {
        "shape": args.shape, "layers": args.layers or "all", "dtype": args.dtype, "device": args.device, "chip": chip,
        "threads": torch.get_num_threads(), "commit": commit.stdout.strip(),
        "torch": torch.__version__, "transformers": transformers.__version__,
    }  # fmt: skip


def bench(args: argparse.Namespace) -> list[dict]:
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = SHAPES[args.shape](args.layers).to(args.device, getattr(torch, args.dtype)).eval()
    rows = []
    for words, boundaries in args.case:
        trees = make_trees(words, boundaries, args.responses, model.config.vocab_size)
        todo = ways(model, trees, max(1, boundaries // args.sampled), args.budget)
        todo = [way for way in todo if way.name in (BASE, PLAIN) or not args.ways or way.name in args.ways]
        errors = check(todo, 1e-5 if args.dtype == "float32" else 2e-2)
        for way in todo:
            row = {"words": words, "boundaries": boundaries, "responses": args.responses, "way": way.name}
            row |= {"tokens": way.tokens, "sampled": way.sampled, "max_error": errors.get(way.name)}
            rows.append(row | measure(way, args.device, args.repeats) | environment(args))
        base, plain = (next(r for r in rows[-len(todo) :] if r["way"] == name) for name in (BASE, PLAIN))
        for row in rows[-len(todo) :]:
            row |= {f"speedup{key[:-2]}": base[key] / row[key] for key in ("median_s", "cpu_s")}
            row |= {f"of_plain{key[:-2]}": row[key] / plain[key] for key in ("median_s", "cpu_s")}
            print(json.dumps(row), flush=True)
    return rows


def plot(rows: list[dict], path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    cases = sorted({(row["words"], row["boundaries"]) for row in rows})
    figure, axes = pyplot.subplots(1, len(cases), figsize=(6 * len(cases), 3.5), squeeze=False)
    for axis, case in zip(axes[0], cases, strict=True):
        shown = [row for row in rows if (row["words"], row["boundaries"]) == case]
        axis.barh([row["way"] for row in shown], [row["cpu_s"] for row in shown])
        axis.set(title=f"{case[0]} words, {case[1]} boundaries", xlabel="processor seconds")
    figure.tight_layout()
    figure.savefig(path)


def case(text: str) -> tuple[int, int]:
    words, boundaries = map(int, text.split(":"))
    return words, boundaries


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--shape", choices=SHAPES, default="smollm2-135m")
    p.add_argument("--layers", type=int, default=0, help="fewer layers than the shape has: the same ratios, sooner")
    p.add_argument("--case", type=case, action="append", help="words:boundaries; default 200:40 and 800:160")
    p.add_argument("--responses", type=int, default=1)
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--dtype", default="float32")
    p.add_argument("--threads", type=int, default=0)
    p.add_argument("--budget", type=int, help="tokens per forward of fastdss")
    p.add_argument("--sampled", type=int, default=10, help="prefixes that the slow ways run, spread over all")
    p.add_argument("--ways", nargs="*", help="names of the ways to run; default all")
    p.add_argument("--repeats", type=int, default=3)
    p.add_argument("--out", type=Path, help="append the JSON lines to this file")
    p.add_argument("--plot", type=Path, help="draw the rows")
    return p


def main(argv: list[str]) -> list[dict]:
    args = parser().parse_args(argv)
    args.case = args.case or [(200, 40), (800, 160)]
    rows = bench(args)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        with args.out.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    if args.plot:
        plot(rows, args.plot)
    return rows


if __name__ == "__main__":
    main(sys.argv[1:])
