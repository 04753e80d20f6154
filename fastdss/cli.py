"""The command line: `fastdss demo`, `check`, `score`, `report`, `merge`, `guards` and `train`."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence

from .console.completion import SHELLS, PrintCompletion
from .console.output import add_output_options, silence_import_logs
from .console.threads import wait_without_spinning
from .errors import UserError
from .version import __version__


class _Defaults(argparse.ArgumentDefaultsHelpFormatter):
    """Adds the default to an option's help, unless there is none or the help text states it."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        nothing_to_add = action.default is None or action.default is False or "(default" in (action.help or "")
        return action.help if nothing_to_add else super()._get_help_string(action)


def make_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line. The commands are imported here, since that loads torch."""
    from .corpus.commands import add_check, add_merge, add_score
    from .demo.command import add_demo
    from .guards.command import add_guards
    from .score_report.command import add_report
    from .train.run.command import add_train

    parser = argparse.ArgumentParser(prog="fastdss", description="Dynamic safety shaping made cheap.")
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
    for command in commands.choices.values():
        command.formatter_class = _Defaults
        add_output_options(command)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    wait_without_spinning()
    silence_import_logs()
    args = make_parser().parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # As on stderr: the encoding of a terminal may lack characters of a path.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        return int(args.run(args) or 0)
    except (UserError, OSError) as error:  # the message of an OSError names the file and the reason
        if args.traceback:
            raise
        print(f"fastdss {args.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\nfastdss {args.command}: interrupted", file=sys.stderr)
        return 130
