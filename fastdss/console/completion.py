"""Completion by the Tab key: a script for the shell, printed once, that starts no Python while one types."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from fastdss.upstream.argparse import commands_of, options_of

SHELLS = ("bash", "zsh", "fish")


class PrintCompletion(argparse.Action):
    """``--print-completion SHELL``: print the script and end, as ``--version`` does."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        import shtab

        for option in options_of(parser):
            if option.type in (None, str) and option.choices is None and option.nargs != 0:
                option.complete = shtab.FILE  # type: ignore[attr-defined]  # shtab reads it there
        for command, line in commands_of(parser):
            command.description = line  # a menu has no room for more
        print(shtab.complete(parser, shell=str(values)))
        parser.exit()
