"""The command line: `fastdss demo`, `score`, `report`, `merge` and `train`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from . import __version__
from .corpus.commands import add_merge, add_score
from .score_report.command import add_report
from .train_command import add_train


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="fastdss", description="Dynamic safety shaping made cheap.")
    parser.add_argument("--version", action="version", version=f"fastdss {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    _add_demo(commands)
    add_score(commands)
    add_report(commands)
    add_merge(commands)
    add_train(commands)
    args = parser.parse_args(argv)
    try:
        return int(args.run(args) or 0)
    except (ValueError, TypeError, OSError, RuntimeError, ImportError) as error:
        if args.traceback:
            raise
        print(f"fastdss {args.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\nfastdss {args.command}: interrupted", file=sys.stderr)
        return 130


def _add_demo(commands: argparse._SubParsersAction) -> None:
    demo = commands.add_parser(
        "demo",
        help="score poisoned conversations, fine-tune a small model in several ways, and compare what it learned",
        description="Scores generated conversations with the small guard that ships with fastdss, fine-tunes a small "
        "language model on them in several ways, and shows on held-out prompts which of them leak.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    demo.add_argument(
        "--out", default="demo_report.html", metavar="FILE", help="the page; results go to FILE with .json"
    )
    demo.add_argument("--seed", type=int, default=0, help="of the data, their order and the held-out prompts")
    demo.add_argument(
        "--arms",
        default="none,sft,rs,dss-k2,dss-reverse",
        metavar="LIST",
        help="of none, sft, rs, dss-<k1|k2|k3|reverse|forward>",
    )
    demo.add_argument("--settings", default="guard,labelled", metavar="LIST", help="whose verdicts: guard, labelled")
    demo.add_argument("--policy", metavar="PATH|ID", help="model to fine-tune (default: SmolLM2-135M-Instruct)")
    demo.add_argument("--device", default="auto", help="auto, cpu, cuda, ...")
    demo.add_argument(
        "--precision", default="auto", choices=("auto", "bf16", "fp32"), help="of the GEMMs; weights are fp32"
    )
    demo.add_argument("--steps", type=int, default=24, help="training steps per arm")
    demo.add_argument("--batch-size", type=int, default=8, help="conversations per step")
    demo.add_argument("--learning-rate", type=float, default=2e-4, help="of AdamW")
    demo.add_argument("--kl-scale", type=float, default=0.5, help="lambda of the loss")
    demo.add_argument(
        "--layers", type=int, help="how many of the top layers learn; 0: everything (default: half of them)"
    )
    demo.add_argument("--every", type=int, default=5, help="words per scored chunk")
    demo.add_argument("--rows", type=int, default=96, help="training conversations, half of them poisoned")
    demo.add_argument("--prompts", type=int, default=56, help="held-out prompts; 4 in 7 ask for advice")
    demo.add_argument("--new-tokens", type=int, default=48, help="longest generated answer")
    demo.add_argument("--threads", type=int, help="CPU threads (default: what PyTorch chooses)")
    demo.add_argument("--quick", action="store_true", help="a sixth of the work, to see that everything runs")
    demo.add_argument("--traceback", action="store_true", help="show the traceback of an error")
    demo.set_defaults(run=_demo)


def _demo(args: argparse.Namespace) -> None:
    # Threads that spin while they wait made a step up to 8 times slower next to another program on two cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # libgomp reads it when torch loads, which is below
    from .demo.run import Settings, run

    run(
        Settings(
            out=args.out,
            seed=args.seed,
            arms=tuple(filter(None, args.arms.split(","))),
            verdicts=tuple(filter(None, args.settings.split(","))),
            policy=args.policy,
            device=args.device,
            precision=args.precision,
            steps=args.steps,
            batch_size=args.batch_size,
            learning_rate=args.learning_rate,
            kl_scale=args.kl_scale,
            layers=args.layers,
            every=args.every,
            rows=args.rows,
            prompts=args.prompts,
            new_tokens=args.new_tokens,
            threads=args.threads,
            quick=args.quick,
        )
    )
