"""Completion by the Tab key.

``fastdss --print-completion SHELL`` prints a script that the shell loads once. Pressing Tab then starts no Python
process, which would need seconds to import torch.
"""

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
                option.complete = shtab.FILE  # type: ignore[attr-defined]  # where shtab looks for it
        for command, line in commands_of(parser):
            command.description = line  # the shell's menu shows the description, and has room for one line only
        print(shtab.complete(parser, shell=str(values)))
        parser.exit()
