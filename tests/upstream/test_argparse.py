"""Names of argparse that fastdss uses, on a parser with a command."""

from __future__ import annotations

import argparse

from fastdss.upstream.argparse import HelpFormatter, commands_of, options_of

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


def test_help_says_defaults_and_keeps_indented_lines():
    parser = argparse.ArgumentParser(formatter_class=HelpFormatter, epilog="examples:\n  one\n  two")
    parser.add_argument("--every", default=5, help="units")
    parser.add_argument("--option", default=[], help="several")
    told = parser.format_help()
    assert "units (default: 5)" in told, gone("argparse", "_get_help_string", "defaults in the help")
    assert "several (" not in told
    assert told.endswith("examples:\n  one\n  two\n"), gone("argparse", "_fill_text", "lines of the epilog")
