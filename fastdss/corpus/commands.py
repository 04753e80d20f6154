"""``fastdss score``, ``fastdss check`` and ``fastdss merge``."""

from __future__ import annotations

import argparse
import shlex
import sys
from dataclasses import asdict, fields
from typing import Any

from fastdss.chat.boundaries import UNITS
from fastdss.chat.conversation import WHICH_TURNS
from fastdss.chat.formats import BY_NAME
from fastdss.chat.record import Columns
from fastdss.console.output import print_remark, print_result, quiet_libraries
from fastdss.console.threads import add_threads, use_threads
from fastdss.errors import UserError
from fastdss.guards.command import add_guard_options
from fastdss.optional import require
from fastdss.star.options import COMBINE, METHODS, ScoringOptions
from fastdss.star.promise import Promise

from .merge import FAILED
from .option_help import HELP
from .rows import DataOptions
from .understood import why_mostly_failed


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
    add("input", nargs="+", metavar="INPUT", help=f"{HELP['data']}; several: one after the other")
    add(
        "--guard",
        required=True,
        action="append",
        metavar="ID|PATH",
        help=f"{HELP['guard']}; several: give it several times",
    )
    add("--combine", choices=COMBINE, default=ScoringOptions.combine, help="how several guards' scores become one")
    add("--out", required=True, metavar="DIR", help="folder for the scores; finished parts in it are used")
    add("--every", type=int, default=ScoringOptions.every, help=HELP["every"])
    add("--unit", choices=UNITS, default=ScoringOptions.unit, help=HELP["unit"])
    add("--max-tokens", type=int, help=HELP["max_tokens"])
    add("--revision", help=HELP["revision"])
    add_guard_options(parser)
    add(
        "--method",
        choices=METHODS,
        default=ScoringOptions.method,
        help="per_prefix: one forward per prefix, for guards that the tree engine cannot run",
    )
    add("--dtype", default="auto", help="dtype of the guard's weights")
    add("--device", default="auto", help="where the guard runs: auto, cpu, cuda, ...")
    _add_approx(parser)
    add("--rescore", action="store_true", help="score rows again that already hold scores")
    add(
        "--shard-rows",
        type=int,
        help="rows per file; an interruption costs the work on one file (default: 16 at first, growing to 256)",
    )
    add_data_options(parser)
    add(
        "--engine",
        default="local",
        choices=("local", "datasets", "ranks", "ray"),
        help="what runs the guard: this process, processes of datasets, the ranks of torchrun, or actors of ray",
    )
    add("--workers", type=int, help="processes of datasets or actors of ray (default: what the machine has)")
    add_threads(parser)
    parser.set_defaults(run=_score)


def _add_approx(parser: argparse.ArgumentParser) -> None:
    """Add ``--approx`` and the options that only mean something beside it."""
    add = parser.add_argument
    add(
        "--approx",
        type=float,
        metavar="TOLERANCE",
        help="approximate scores by the guard's hidden states, where a random sample of rows shows that few rows are "
        "off by more than this anywhere; else all scores are computed exactly",
    )
    at_most = f"with --approx: share of rows that may be off (default: {Promise.at_most})"
    add("--at-most", type=float, metavar="SHARE", help=at_most)
    confidence = f"with --approx: how certain that share is (default: {Promise.confidence})"
    add("--confidence", type=float, metavar="P", help=confidence)
    add("--approx-seed", type=int, metavar="N", help="with --approx: seed of the random sample (default: 0)")


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how data is read, the same for every command that reads it."""
    add = parser.add_argument
    add("--format", default=DataOptions.format, choices=("auto", *BY_NAME), help=HELP["format"])
    add("--split", metavar="NAME", help=HELP["split"])
    add("--config", metavar="NAME", help=HELP["config"])
    add("--turns", choices=WHICH_TURNS, default=DataOptions.turns, help=HELP["turns"])
    for item in fields(Columns):
        add(f"--{item.name}-column", default=item.default, metavar="NAME", help=HELP[f"{item.name}_column"])
    add("--number-rows", action="store_true", help=HELP["number_rows"])
    add("--max-bytes", type=int, default=DataOptions.max_bytes, help=HELP["max_bytes"])


def data_options_of(args: argparse.Namespace) -> DataOptions:
    """The values of the options that ``add_data_options`` adds."""
    given_id = "" if args.number_rows else args.id_column
    columns = Columns(args.prompt_column, args.response_column, args.messages_column, given_id)
    return DataOptions(columns, args.format, args.split, args.config, args.turns, args.max_bytes)


def add_check(commands: Any) -> None:
    """Register ``check`` likewise."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "check",
        help="say in seconds how a data set is read, before anything is scored or trained",
        description="Reads the beginning of the data and says what was found: format, turns, what is judged and "
        "trained, columns that are not used, and the first conversation as the guard and the policy will see it.",
    )
    add = parser.add_argument
    add("input", nargs="+", metavar="DATA", help=f"{HELP['data']}; several: one after the other")
    add("--guard", metavar="ID|PATH", help="show the first conversation as this guard sees it")
    add("--model", metavar="ID|PATH", help="show the first conversation as this model is trained on it")
    add_guard_options(parser)
    add("--rows", type=int, default=10_000, metavar="N", help="how many rows to read at most")
    add_data_options(parser)
    parser.set_defaults(run=_check)


def _check(args: argparse.Namespace) -> int:
    from fastdss.guards.options import parse_options

    from .check import check

    require("fastdss check", "score", "pyarrow")
    found = check(
        args.input,
        data_options_of(args),
        guard=args.guard,
        spec=args.spec,
        guard_options=parse_options(args.guard_option),
        model=args.model,
        limit=args.rows,
    )
    if args.json:
        print_result(args, {"usable": found.usable, "rows": found.understood.rows, "lines": found.lines}, [])
    else:
        print("\n".join(found.lines))
    return 0 if found.usable else 1


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
        "--failed", choices=FAILED, default="drop", help="rows without scores: leave them out, or give them weight 0"
    )
    parser.add_argument("--input", nargs="+", metavar="INPUT", help="the scored input, if it was moved since")
    parser.set_defaults(run=_merge)


def _score(args: argparse.Namespace) -> int:
    require("fastdss score", "score", "pyarrow")
    from fastdss.guards.options import parse_options

    from .run import finished_parts, score_dataset
    from .scorer import StarScorer
    from .understood import summary

    use_threads(args.threads)
    promise = _promise(args)
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
        with quiet_libraries(quiet=args.quiet):
            manifest = score_dataset(
                args.input,
                args.out,
                scorer,
                engine=args.engine,
                data=data_options_of(args),
                shard_rows=args.shard_rows,
                workers=args.workers,
                rescore=args.rescore,
                approx=promise,
                approx_seed=args.approx_seed or 0,
                tell=lambda understood: print_remark(args, "\n".join(understood.lines())),
                progress=not args.quiet,
            )
    except KeyboardInterrupt:
        print(f"\n{finished_parts(args.out)}", file=sys.stderr)
        raise
    if not manifest["finished"]:
        print_remark(args, f"{args.out}: this rank is done, others are not yet")
        return 0
    counts = manifest["counts"]
    mostly = why_mostly_failed(counts)
    if mostly is not None:
        print(f"fastdss score: {mostly}", file=sys.stderr)
    lines: list[tuple[str, object]] = [("scored", summary(counts)), ("scores", args.out)]
    out = shlex.quote(args.out)
    lines += [("next", f"fastdss report {out}, fastdss merge {out} --out training.parquet")]
    if "approx" in manifest:
        lines.append(("approximated", manifest["approx"]["words"]))
    print_result(args, {"folder": args.out, "counts": counts, "approx": manifest.get("approx")}, lines)
    return 0 if mostly is None else 1


def _promise(args: argparse.Namespace) -> Promise | None:
    """The promise that ``--approx``, ``--at-most`` and ``--confidence`` ask for; None without ``--approx``."""
    options = {"at_most": args.at_most, "confidence": args.confidence, "approx_seed": args.approx_seed}
    given = {name: value for name, value in options.items() if value is not None}
    if args.approx is None:
        if given:
            raise UserError(f"--{next(iter(given)).replace('_', '-')}: expected --approx TOLERANCE beside it, got none")
        return None
    given.pop("approx_seed", None)
    return Promise(args.approx, **given)


def _merge(args: argparse.Namespace) -> None:
    require("fastdss merge", "score", "pyarrow")
    from .merge import merge

    done = merge(args.folder, args.out, failed=args.failed, sources=args.input)
    left = [f"{done.dropped} without scores"] if done.dropped or not done.left_out else []
    left += [f"{done.left_out} with nothing to train"] if done.left_out else []
    left += [f"of the others {done.turns_dropped} turns without scores"] if done.turns_dropped else []
    lines: list[tuple[str, object]] = [("conversations", done.rows), ("left out", ", ".join(left))]
    print_result(args, asdict(done) | {"file": args.out}, [*lines, ("file", args.out)])
