"""What ``--help`` and a mistyped option print: one form for all commands, no screen of usage before an error."""

import os
import subprocess
import sys

import pytest

from fastdss.cli import parse
from fastdss.console.help import EXAMPLES

COMMANDS = [name for name in EXAMPLES if name]


def said(capsys, *words):
    with pytest.raises(SystemExit) as ended:
        parse(words)
    told = capsys.readouterr()
    return ended.value.code, told.out, told.err


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_every_command_has_one_form(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = said(capsys, name, "--help")
    assert code == 0
    assert out.startswith(f"usage: fastdss {name} ")
    assert out.splitlines()[1] == ""  # the usage is one line
    assert "[options]" in out.splitlines()[0]
    assert "(default: [])" not in out
    assert "(default: False)" not in out
    assert "--traceback" in out
    examples = out[out.index("\nexamples:\n") :].splitlines()[2:]
    assert examples == [f"  {line}" for line in EXAMPLES[name]]


@pytest.mark.parametrize("line", [line for lines in EXAMPLES.values() for line in lines])
def test_an_example_is_a_command_that_exists(line):
    assert parse(line.split()[1:]).run


def test_a_mistyped_option_is_told_in_two_lines_with_the_one_that_was_meant(capsys):
    code, _, err = said(capsys, "train", "chats.jsonl", "--modle", "smollm2")
    assert code == 2
    assert err.splitlines() == [
        "usage: fastdss train [DATA] [options]",
        "fastdss train: error: expected options that fastdss train --help lists, got --modle smollm2; "
        "did you mean --model?",
    ]
    _, _, err = said(capsys, "score", "chats.jsonl", "--guard", "tiny", "--out", "scores", "--evry=3")
    assert "got --evry=3; did you mean --every?" in err


def test_required_options_stand_in_the_usage(capsys):
    _, _, err = said(capsys, "score", "chats.jsonl")
    assert err.startswith("usage: fastdss score INPUT [INPUT ...] --guard ID|PATH --out DIR [options]\n")
    assert "--guard, --out" in err


def test_the_list_of_commands_says_what_the_method_is():
    done = subprocess.run(
        [sys.executable, "-m", "fastdss", "--help"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "COLUMNS": "80"},
    )
    assert "a guard model scores every prefix" in " ".join(done.stdout.split())
    assert done.stderr == ""
