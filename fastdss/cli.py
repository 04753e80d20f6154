"""The command line: `fastdss demo`, `check`, `score`, `report`, `merge`, `guards` and `train`."""

from __future__ import annotations

import argparse
import io
import signal
import sys
from collections.abc import Sequence
from difflib import get_close_matches

from .console.completion import SHELLS, PrintCompletion
from .console.help import shape
from .console.interrupts import noticing_interrupts, stdout_is_lost
from .console.output import add_output_options, silence_import_logs
from .console.threads import wait_without_spinning
from .errors import UserError
from .upstream.argparse import commands_of, options_of
from .version import __version__


def make_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line. The commands are imported here, since that loads torch."""
    from .corpus.commands import add_check, add_merge, add_score
    from .demo.command import add_demo
    from .guards.command import add_guards
    from .score_report.command import add_report
    from .train.run.command import add_train

    parser = argparse.ArgumentParser(
        prog="fastdss",
        description="Fine-tunes language models with dynamic safety shaping (STAR-DSS): a guard model scores every "
        "prefix of each answer, and training learns the safe stretches and holds the unsafe ones to the model before "
        "training.",
    )
    parser.add_argument("--version", action="version", version=f"fastdss {__version__}")
    parser.add_argument(
        "--print-completion",
        action=PrintCompletion,
        choices=SHELLS,
        metavar="SHELL",
        help="print what makes the Tab key complete commands and options: for bash, zsh or fish",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for add in (add_demo, add_check, add_score, add_report, add_merge, add_guards, add_train):
        add(commands)
    shape(parser)
    for name, command in commands.choices.items():
        add_output_options(command)
        shape(command, name)
    return parser


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The parsed command line; ends the process with a message where the command has no such option."""
    parser = make_parser()
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        command = next(command for command, _ in commands_of(parser) if command.prog.endswith(f" {args.command}"))
        known = [name for option in options_of(command) for name in option.option_strings]
        meant = [near[0] for word in unknown if (near := get_close_matches(word.partition("=")[0], known, 1))]
        did_you_mean = f"; did you mean {' '.join(meant)}?" if meant else ""
        command.error(f"expected options that {command.prog} --help lists, got {' '.join(unknown)}{did_you_mean}")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    wait_without_spinning()
    silence_import_logs()
    # Python's default for stderr: a path may hold characters that the terminal's encoding lacks.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    args = argparse.Namespace(command="", traceback=False)  # until it is known
    with noticing_interrupts() as interrupts:
        try:
            args = parse(argv)
            code = int(args.run(args) or 0)
            sys.stdout.flush()  # here, where it can be told that it failed
            return code
        except KeyboardInterrupt:
            return _interrupted(args)
        except Exception as error:
            if interrupts:
                return _interrupted(args)
            nameless = isinstance(error, OSError) and not error.filename
            if nameless and stdout_is_lost() and isinstance(error, BrokenPipeError):
                return 128 + signal.SIGPIPE  # as of `| head`, which has what it wanted
            if args.traceback or not isinstance(error, UserError | OSError):
                raise
            # The message of an OSError names the file and the reason.
            print(f"fastdss {args.command}: {_one_line(error)}", file=sys.stderr)
            return 1


def _interrupted(args: argparse.Namespace) -> int:
    print(f"\n{f'fastdss {args.command}'.strip()}: interrupted", file=sys.stderr)
    return 128 + signal.SIGINT


def _one_line(error: Exception) -> str:
    """The error as one line. An error of the operating system becomes its file and reason, without the errno."""
    if isinstance(error, OSError) and error.strerror:
        reason = error.strerror[0].lower() + error.strerror[1:]
        return f"{error.filename}: {reason}" if error.filename else reason
    return str(error)
