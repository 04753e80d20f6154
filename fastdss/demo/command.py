"""The command line of the demonstration: `fastdss demo`."""

from __future__ import annotations

import argparse
from dataclasses import fields
from typing import Any

from fastdss.console.output import print_result
from fastdss.console.threads import add_threads

from .settings import Settings


def add_demo(commands: argparse._SubParsersAction[Any]) -> None:
    demo = commands.add_parser(
        "demo",
        help="score poisoned conversations, fine-tune a small model in several ways, and compare what it learned",
        description="Scores generated conversations with the small guard that ships with fastdss, fine-tunes a small "
        "language model on them in several ways, and shows on held-out prompts which of them leak.",
    )
    demo.add_argument(
        "--out",
        default=Settings.out,
        metavar="FILE",
        help="the page; results go to FILE with .json, the rows with .jsonl",
    )
    demo.add_argument(
        "--seed", type=int, default=Settings.seed, help="seed of the data, their order and the held-out prompts"
    )
    demo.add_argument(
        "--arms",
        default=",".join(Settings.arms),
        metavar="LIST",
        help="what is compared: none, sft, rs, dft, constrained, dss-<k1|k2|k3|reverse|forward>",
    )
    demo.add_argument(
        "--settings",
        dest="verdicts",
        default=",".join(Settings.verdicts),
        metavar="LIST",
        help="whose verdicts: guard, labelled",
    )
    demo.add_argument(
        "--model",
        "--policy",
        dest="policy",
        metavar="NAME",
        help="the model to fine-tune: smollm2 (the default), a folder, a GGUF file, a Hub id",
    )
    demo.add_argument("--device", default=Settings.device, help="where to compute: auto, cpu, cuda, ...")
    demo.add_argument(
        "--precision",
        default=Settings.precision,
        choices=("auto", "bf16", "fp32"),
        help="precision of matrix products; weights are fp32",
    )
    demo.add_argument("--steps", type=int, default=Settings.steps, help="training steps per arm")
    demo.add_argument("--batch-size", type=int, default=Settings.batch_size, help="conversations per step")
    demo.add_argument("--learning-rate", type=float, default=Settings.learning_rate, help="learning rate of AdamW")
    demo.add_argument("--kl-scale", type=float, default=Settings.kl_scale, help="factor of the KL term")
    demo.add_argument(
        "--layers", type=int, help="how many of the top layers are trained; 0: everything (default: half of them)"
    )
    demo.add_argument("--every", type=int, default=Settings.every, help="words per scored chunk")
    demo.add_argument("--rows", type=int, default=Settings.rows, help="training conversations, half of them poisoned")
    demo.add_argument("--prompts", type=int, default=Settings.prompts, help="held-out prompts; 4 in 7 ask for advice")
    demo.add_argument(
        "--new-tokens", type=int, default=Settings.new_tokens, help="tokens of the longest generated answer"
    )
    add_threads(demo)
    demo.add_argument("--quick", action="store_true", help="a sixth of the work, to see that everything runs")
    demo.set_defaults(run=_demo)


def _demo(args: argparse.Namespace) -> None:
    from .page import as_json, as_text
    from .run import run

    given = {item.name: getattr(args, item.name) for item in fields(Settings)}
    lists = {name: tuple(filter(None, given[name].split(","))) for name in ("arms", "verdicts")}
    outcome, paths = run(Settings(**given | lists), progress=not args.quiet)
    if args.json:
        print_result(args, as_json(outcome), [])
        return
    print(f"{as_text(outcome)}\n")
    print_result(args, {}, paths)
