"""Names of argparse that fastdss uses, on a parser with a command."""

from __future__ import annotations

import argparse

from fastdss.upstream.argparse import commands_of, options_of

from .canary import gone


def test_options_and_commands_are_listed():
    parser = argparse.ArgumentParser()
    parser.add_argument("--version", action="store_true")
    command = parser.add_subparsers(dest="command").add_parser("score", help="one line", description="three lines")
    command.add_argument("input")
    named = [option.dest for option in options_of(parser)]
    assert named == ["help", "version", "command", "help", "input"], gone("argparse", "_actions", "a parser's options")
    listed = list(commands_of(parser))
    assert listed == [(command, "one line")], gone("argparse", "_choices_actions", "the commands' lines of help")
