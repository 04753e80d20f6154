"""Streams of many conversations: one forward for all against one forward for each.

    python benchmarks/bench_streams.py                       # two shapes on a CPU, about three minutes
    python benchmarks/bench_streams.py --shape tiny-guard --streams 32

Generated conversations are written five words at a time, all at once, as a server's continuous batch does. The two ways
take turns in one process and must give the same scores. "tiny-guard" is the built-in guard; "smollm2-135m" has
SmolLM2's layers with random weights behind the built-in guard's tokenizer and a template of Llama Guard's length.
``cpu_s`` is processor time. One JSON line per shape and way, added to ``--out``.
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
from transformers import LlamaConfig, LlamaForCausalLM

from fastdss import Guard, GuardSpec
from fastdss.demo.conversations import training_conversations

TOGETHER, APART = "together", "one by one"
_RULES = "O1: Contact details. The answer must not say how a private person is reached, by phone, mail or at home. " * 3
TEMPLATE = (
    "Task: check whether the answer of the agent is safe by these rules.\n" + _RULES + "\n<BEGIN CONVERSATION>\n"
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}<END CONVERSATION>\n\n"
    "Give the verdict on the agent's last answer. The first line must read safe or unsafe. A second line may name the "
    "rule. Answer now.\n"
)


def make_guard(shape: str, layers: int) -> Guard:
    tiny = Guard.tiny()
    if shape == "tiny-guard":
        return tiny
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tiny.tokenizer), hidden_size=576, intermediate_size=1536, num_hidden_layers=layers or 30,
        num_attention_heads=9, num_key_value_heads=3, max_position_embeddings=8192,
    )  # fmt: skip
    spec = GuardSpec("benchmark", template=TEMPLATE, safe=tiny.spec.safe, unsafe=tiny.spec.unsafe, split_words=True)
    return Guard(LlamaForCausalLM(config).eval(), tiny.tokenizer, spec)


def pieces(text: str, words: int = 5) -> list[str]:
    split = text.split(" ")
    return [" ".join(split[k : k + words]) + " " for k in range(0, len(split), words)]


def together(guard: Guard, rows: list) -> list[list[float]]:
    streams = guard.streams()
    opened = [streams.open(row.prompt) for row in rows]
    written = [pieces(row.response) for row in rows]
    for step in range(max(map(len, written))):
        due = {s: w[step] for s, w in zip(opened, written, strict=True) if step < len(w)}
        streams.append(due, ended=[s for s, w in zip(opened, written, strict=True) if step == len(w) - 1])
    return [stream.scores for stream in opened]


def one_by_one(guard: Guard, rows: list) -> list[list[float]]:
    opened = [guard.stream(row.prompt) for row in rows]
    written = [pieces(row.response) for row in rows]
    for step in range(max(map(len, written))):
        for stream, text in zip(opened, written, strict=True):
            if step < len(text):
                stream.append(text[step])
            if step == len(text) - 1:
                stream.close()
    return [stream.scores for stream in opened]


def bench(args: argparse.Namespace, shape: str) -> list[dict]:
    guard = make_guard(shape, args.layers)
    guard.model.to(args.device)
    found = training_conversations(args.streams - args.streams // 2, args.streams // 2, seed=0)
    ways = {TOGETHER: together, APART: one_by_one}
    scores = {name: way(guard, found) for name, way in ways.items()}
    count = sum(map(len, scores[APART]))
    flat = [torch.tensor([x for row in rows for x in row]) for rows in scores.values()]
    if not (flat[0] - flat[1]).abs().max() <= 1e-5:
        raise SystemExit(f"{shape}: scores differ by {(flat[0] - flat[1]).abs().max():.3g}")
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(args.repeats):
        for name, way in ways.items():
            begun = time.perf_counter(), time.process_time()
            way(guard, found)
            times[name].append((time.perf_counter() - begun[0], time.process_time() - begun[1]))
    facts = environment(args.device, "transformers", shape=shape, layers=args.layers or "all")
    rows = []
    for name, both in times.items():
        wall, cpu = (statistics.median(pair[i] for pair in both) for i in (0, 1))
        row = {"way": name, "streams": args.streams, "scores": count, "median_s": wall, "cpu_s": cpu}
        rows.append(row | {"scores_per_s": count / wall} | facts)
    for row in rows:
        row |= {"speedup": rows[1]["median_s"] / row["median_s"], "speedup_cpu": rows[1]["cpu_s"] / row["cpu_s"]}
        print(json.dumps(row), flush=True)
    return rows


def main(argv: list[str]) -> list[dict]:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--shape", choices=["tiny-guard", "smollm2-135m"], action="append", help="default: both")
    p.add_argument("--layers", type=int, default=0, help="fewer layers than the shape has")
    p.add_argument("--streams", type=int, default=8)
    p.add_argument("--repeats", type=int, default=3)
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "streams.jsonl")
    args = p.parse_args(argv)
    rows = [row for shape in args.shape or ["tiny-guard", "smollm2-135m"] for row in bench(args, shape)]
    append_rows(args.out, rows)
    return rows


if __name__ == "__main__":
    main(sys.argv[1:])
