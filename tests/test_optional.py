"""After a plain installation everything can be listed and looked up, and what is missing says what brings it."""

from __future__ import annotations

import subprocess
import sys

import pytest

WITHOUT = "import sys\nfor name in {missing}: sys.modules[name] = None\n"
EXTRAS = ["datasets", "trl", "peft", "accelerate", "pyarrow", "matplotlib", "ray"]


def run(code: str, missing: list[str] = EXTRAS) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WITHOUT.format(missing=missing) + code]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)


def test_everything_is_there_by_star_and_by_help() -> None:
    done = run("from fastdss import *\nimport fastdss\nassert set(fastdss.__all__) <= globals().keys()\nhelp(fastdss)")
    assert done.returncode == 0, done.stderr
    assert "DSSSFTTrainer" in done.stdout
    assert "weighted_ce" in done.stdout


@pytest.mark.parametrize(
    ("use", "extra"),
    [
        ("fastdss.DSSSFTTrainer('model')", "train"),
        ("type('Mine', (), {})\nclass Mine(fastdss.DSSSFTTrainer): pass", "train"),
        ("fastdss.prepare_dss_dataset([], None)", "train"),
        ("fastdss.add_reference_logprobs([], None)", "train"),
        ("fastdss.score_dataset([], '.', None)", "score"),
    ],
)
def test_using_what_is_missing_names_its_extra(use: str, extra: str) -> None:
    done = run(f"import fastdss\n{use}")
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert "MissingExtraError" in last
    assert f"fastdss[{extra}]" in last


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        (["score", "x.jsonl", "--guard", "tiny", "--out", "o"], "score"),
        (["merge", "o", "--out", "f.jsonl"], "score"),
        (["report", "o"], "score"),
        (["train", "x.jsonl", "--model", "m"], "train"),
    ],
)
def test_commands_name_the_extra_in_one_line(arguments: list[str], extra: str) -> None:
    done = run(f"from fastdss.cli import main\nsys.exit(main({arguments}))")
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith(f"fastdss {arguments[0]}: fastdss {arguments[0]} needs packages that are not installed")
    assert f"pip install 'fastdss[{extra}]'" in line


def test_what_is_broken_is_not_taken_for_an_absent_extra() -> None:
    done = run("import fastdss\nfastdss.Guard", missing=["tokenizers"])
    assert done.returncode == 1
    assert "tokenizers" in done.stderr
    assert "fastdss[" not in done.stderr
