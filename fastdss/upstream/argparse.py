"""Names of argparse that its documentation does not promise: where a parser keeps its options and its commands."""

from __future__ import annotations

import argparse
from collections.abc import Iterator


def options_of(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """The options and positionals of the parser and of its commands; argparse has no public way to list them."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from options_of(command)


def commands_of(parser: argparse.ArgumentParser) -> Iterator[tuple[argparse.ArgumentParser, str]]:
    """Each command's parser with the line that ``--help`` shows for it, which argparse does not keep on that parser."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for entry in action._choices_actions:
                yield action.choices[entry.dest], entry.help or ""
