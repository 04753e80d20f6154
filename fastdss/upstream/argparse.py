"""Names of argparse that its documentation does not promise: how a parser keeps its options and its commands."""

from __future__ import annotations

import argparse
from collections.abc import Iterator


def options_of(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """The parser's options and positionals, then those of its commands; argparse can add them, but not list them."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from options_of(command)


def commands_of(parser: argparse.ArgumentParser) -> Iterator[tuple[argparse.ArgumentParser, str]]:
    """Each command's parser, and the line by which ``--help`` lists it, which argparse keeps elsewhere."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for entry in action._choices_actions:
                yield action.choices[entry.dest], entry.help or ""
