"""Names of argparse that its documentation does not promise: where a parser keeps its options and its commands."""

from __future__ import annotations

import argparse
from collections.abc import Iterator


class HelpFormatter(argparse.HelpFormatter):
    """Adds an option's default to its help, where there is one and the help does not say it; keeps indented lines.

    argparse's own formatters that do either are documented, what they override is not.
    """

    def _get_help_string(self, action: argparse.Action) -> str | None:
        said = action.default in (None, False, [], argparse.SUPPRESS) or "(default" in (action.help or "")
        return action.help if said else f"{action.help} (default: %(default)s)"

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        kept = [line for line in text.splitlines() if line.startswith(" ")]
        told = super()._fill_text(" ".join(line for line in text.splitlines() if line not in kept), width, indent)
        return "\n".join([*([told] if told else []), *kept])


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
