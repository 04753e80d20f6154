"""``fastdss score`` and ``fastdss merge``."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from fastdss.chat.boundaries import UNITS
from fastdss.guards.command import add_guard_options
from fastdss.optional import require
from fastdss.star.options import COMBINE, METHODS, TURNS


def add_score(commands: Any) -> None:
    """Register ``score`` on the subparsers of ``argparse``; ``args.run(args)`` then runs it."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "score",
        help="score every chunk of every response in a data set with a guard model",
        description="Writes a guard's P(safe) for every prefix of every response. Whatever interrupts it, the same "
        "command goes on where it stopped; rows that cannot be scored are recorded with the reason and never count as "
        "safe. Several GPUs: torchrun --nproc-per-node N -m fastdss score ... --engine ranks; a cluster: --engine ray "
        "and Ray's address in RAY_ADDRESS.",
    )
    add = parser.add_argument
    add("input", nargs="+", metavar="INPUT", help="JSONL, Parquet or CSV files, or folders of datasets or such files")
    add(
        "--guard",
        required=True,
        action="append",
        metavar="ID|PATH",
        help="guard model: a Hub id, a folder, or 'tiny' (contact details); several: give it several times",
    )
    add("--combine", choices=COMBINE, default="mean", help="how several guards' scores become one")
    add(
        "--turns",
        choices=TURNS,
        default="last",
        help="judge the last turn, or every assistant's as row ID#TURN",
    )
    add("--out", required=True, metavar="DIR", help="folder for the scores; finished parts in it are used")
    add("--every", type=int, default=5, help="units per scored chunk")
    add("--unit", choices=UNITS, default="word", help="what a chunk counts")
    add("--max-tokens", type=int, help="score what fits instead of failing rows longer than the guard's context")
    add("--revision", help="commit, tag or branch of a guard on the Hub")
    add_guard_options(parser)
    add(
        "--method", choices=METHODS, default="auto", help="per_prefix: one forward per prefix, for guards no tree takes"
    )
    add("--dtype", default="auto", help="of the guard's weights")
    add("--device", default="auto", help="auto, cpu, cuda, ...")
    for column in ("prompt", "response", "messages", "id"):
        add(f"--{column}-column", default=column, metavar="NAME", help=f"where the input has its {column}")
    add("--shard-rows", type=int, default=256, help="rows per file, and what an interruption can cost")
    add("--max-bytes", type=int, default=8 << 20, help="longest row; longer ones fail")
    add("--engine", default="local", choices=("local", "datasets", "ranks", "ray"), help="who scores")
    add("--workers", type=int, help="processes of datasets or actors of ray (default: what the machine has)")
    add("--quiet", action="store_true", help="no progress bars")
    add("--traceback", action="store_true", help="show the traceback of an error")
    parser.set_defaults(run=_score)


def add_merge(commands: Any) -> None:
    """Register ``merge`` likewise."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "merge",
        help="join scores and conversations to one file to train on",
        description="Writes conversations with their scores to one Parquet or JSONL file, as prepare_dss_dataset reads "
        "it. Raises an error if the input was edited since it was scored.",
    )
    parser.add_argument("folder", metavar="DIR", help="what fastdss score wrote")
    parser.add_argument("--out", required=True, metavar="FILE", help="a .parquet or .jsonl file")
    parser.add_argument(
        "--failed", choices=("drop", "zero"), default="drop", help="rows without scores: out, or weight 0"
    )
    parser.add_argument("--input", nargs="+", metavar="INPUT", help="the scored input, where it lies elsewhere now")
    parser.add_argument("--traceback", action="store_true", help="show the traceback of an error")
    parser.set_defaults(run=_merge)


def _score(args: argparse.Namespace) -> None:
    require("fastdss score", "score", "pyarrow")
    from transformers.utils import logging

    from fastdss.guards.options import parse_options

    from .rows import Columns
    from .run import score_dataset
    from .scorer import StarScorer

    if args.quiet:
        logging.disable_progress_bar()  # the one of loading a guard
    scorer = StarScorer(
        args.guard,
        combine=args.combine,
        every=args.every,
        unit=args.unit,
        max_tokens=args.max_tokens,
        spec=args.spec,
        guard_options=parse_options(args.guard_option),
        method=args.method,
        revision=args.revision,
        dtype=args.dtype,
        device=args.device,
    )
    try:
        manifest = score_dataset(
            args.input,
            args.out,
            scorer,
            engine=args.engine,
            columns=Columns(args.prompt_column, args.response_column, args.messages_column, args.id_column),
            turns=args.turns,
            shard_rows=args.shard_rows,
            max_bytes=args.max_bytes,
            workers=args.workers,
            progress=not args.quiet,
        )
    except KeyboardInterrupt:
        print(f"\nFinished parts are in {args.out}; the same command goes on from there.", file=sys.stderr)
        raise
    if manifest["finished"]:
        counts = manifest["counts"]
        print(f"{args.out}: {counts['scored']} rows scored, {counts['failed']} failed; see fastdss report {args.out}")
    else:
        print(f"{args.out}: this rank is done, others are not yet")


def _merge(args: argparse.Namespace) -> None:
    require("fastdss merge", "score", "pyarrow")
    from .merge import merge

    done = merge(args.folder, args.out, failed=args.failed, sources=args.input)
    print(f"{args.out}: {done.rows} rows, {done.dropped} without scores left out")
