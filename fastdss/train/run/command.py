"""``fastdss train``: its flags, and how a run is started from them."""

from __future__ import annotations

import argparse
import errno
import os
import shutil
import sys
import traceback
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from fastdss.console.output import print_result, quiet_libraries
from fastdss.errors import UserError

from .settings import CHOICES, TrainSettings, read_settings

_LEAST = 2**20  # bytes: a disk with fewer free is full, since what failed to be written may have left a little


def add_train(commands: Any) -> None:
    """Register ``train`` on the subparsers of ``argparse``; ``args.run(args)`` then runs it."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "train",
        help="score a file of conversations with a guard and fine-tune a model on it with dynamic safety shaping",
        description="Scores every chunk of every response with a guard model, fine-tunes a model with the DSS loss, "
        "and writes a report. Interrupted runs go on where they stopped: finished scores and reference values are "
        "kept in the output folder, --resume goes on from the last checkpoint. Several GPUs: "
        "accelerate launch -m fastdss train ...",
    )
    parser.add_argument("file", metavar="DATA", nargs="?", help="the same as --data DATA")
    parser.add_argument("--config", metavar="FILE", help="YAML file with settings of the same names; flags win over it")
    for item in fields(TrainSettings):
        flag, default = f"--{item.name.replace('_', '-')}", item.default
        text = item.metadata["help"] + (f" (default: {default})" if default not in ("", False) else "")
        if isinstance(default, bool):
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=text)
        else:
            parser.add_argument(flag, type=type(default), choices=CHOICES.get(item.name), help=text)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    from .checkpoints import what_is_kept
    from .run import run

    given = {item.name: getattr(args, item.name) for item in fields(TrainSettings)}
    if args.file is not None:
        if given["data"] is not None:
            raise UserError(f"data is given twice: {args.file} and --data {given['data']}")
        given["data"] = args.file
    settings = read_settings(given, args.config)
    try:
        with quiet_libraries(quiet=args.quiet):
            outcome = run(settings, progress=not args.quiet)
    except KeyboardInterrupt:
        print(f"\n{what_is_kept(Path(settings.out))}", file=sys.stderr)
        raise
    except (UserError, OSError):
        raise
    except Exception as error:  # it may come after hours, when nobody watches the terminal: a file keeps the traceback
        if shutil.disk_usage(settings.out).free < _LEAST:  # libraries that save models have errors of their own for it
            print(what_is_kept(Path(settings.out)), file=sys.stderr)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), settings.out) from error
        path = Path(settings.out) / "traceback.txt"
        path.write_text(traceback.format_exc(), encoding="utf-8")
        print(f"fastdss train: unexpected error; its traceback is kept in {path}", file=sys.stderr)
        raise
    if outcome:  # in a job of several processes only the first gets an outcome
        _print_outcome(args, outcome, Path(settings.out))


def _print_outcome(args: argparse.Namespace, outcome: Mapping[str, Any], out: Path) -> None:
    rows, before, after = outcome["rows"], outcome["before"], outcome["after"]
    unused = rows["read"] - rows["trained"] - rows["held_out"]
    lines: list[tuple[str, object]] = [
        ("rows", f"{rows['read']} read, {rows['trained']} trained, {rows['held_out']} held out, {unused} not used"),
        (
            "judged",
            f"{outcome['scores']['chunks']} chunks, {outcome['scores']['chunks_below_half']} of them below one half",
        ),
    ]
    if after:
        lines.append(("held-out loss", f"{before['eval_loss']:.4f} before, {after['eval_loss']:.4f} after"))
    paths = {"model": out / "model", "report": out / "report.html", "folder": out}
    print_result(args, dict(outcome) | paths, [*lines, *paths.items()])
