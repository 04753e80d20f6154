"""`fastdss demo`: its errors come before any model loads, and a short run writes a page and its numbers."""

import json
import os
import re
import subprocess
import sys

import pytest

from fastdss.cli import main
from fastdss.demo import run
from fastdss.demo.policy import load_policy
from fastdss.errors import UserError

from .test_report import assert_self_contained


@pytest.fixture
def no_models(monkeypatch):
    """Any attempt to load a model fails the test."""

    def fail(*args, **kwargs):
        raise AssertionError("a model was about to load")

    monkeypatch.setattr(run.Guard, "tiny", fail)
    monkeypatch.setattr(run, "load_policy", fail)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--arms", "sft,dss-k9"], "got dss-k9"),
        (["--settings", "oracle"], "settings: expected some of guard, labelled, got oracle"),
        (["--arms", ","], "got none of them"),
        (["--steps", "0"], "steps: expected a number of at least 1, got 0"),
        (["--batch-size", "1"], "batch_size: expected a number of at least 2"),
        (["--learning-rate", "nan"], "learning_rate: expected a positive number"),
        (["--device", "tpu9"], "got 'tpu9'"),
        (["--layers", "-1"], "layers: expected a number of at least 0"),
        (["--kl-scale", "-1"], "kl_scale: expected a number of at least 0"),
        (["--kl-scale", "inf"], "kl_scale: expected a number of at least 0, got inf"),
    ],
)
def test_bad_arguments_end_in_one_line(arguments, message, tmp_path, capsys, no_models):
    assert main(["demo", "--out", str(tmp_path / "page.html"), *arguments]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


def test_unwritable_output_is_found_before_models_load(tmp_path, capsys, no_models):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    for out in (tmp_path, blocked / "page.html", tmp_path / "page.json", "/proc/nowhere/page.html"):
        assert main(["demo", "--out", str(out)]) == 1
        assert str(out) in capsys.readouterr().err
    assert blocked.read_text() == "not a folder"


def test_checking_the_output_leaves_an_old_page_alone(tmp_path):
    page = tmp_path / "new" / "page.html"
    run.check_writable(str(page))
    assert not page.exists()
    page.write_text("old")
    run.check_writable(str(page))
    assert page.read_text() == "old"


def test_a_policy_that_cannot_load_is_named(tmp_path):
    with pytest.raises(UserError, match=re.escape(str(tmp_path))):
        load_policy(str(tmp_path), "cpu")


def test_unknown_command_lists_demo():
    done = subprocess.run([sys.executable, "-m", "fastdss", "dmeo"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "demo" in done.stderr


def test_short_run_writes_page_and_numbers(tiny_policy, tmp_path, capsys):
    page = tmp_path / "page.html"
    few = ["--steps", "2", "--batch-size", "4", "--rows", "6", "--prompts", "4", "--new-tokens", "6", "--layers", "1"]
    arguments = ["demo", "--out", str(page), "--policy", tiny_policy, "--device", "cpu", "--seed", "3", *few]
    assert main([*arguments, "--arms", "none,sft,rs,dss-k2,dss-reverse,dss-forward"]) == 0
    shown = capsys.readouterr().out
    numbers = json.loads(page.with_suffix(".json").read_text())
    names = [arm["name"] for arm in numbers["arms"]]
    assert names[:2] == ["none", "sft"]
    assert len(names) == 10
    assert sorted(os.listdir(tmp_path)) == ["page.html", "page.json", "page.jsonl"]
    html = page.read_text()
    assert_self_contained(html)
    for title in ("plain SFT", "static filter (RS)", "STAR-DSS, k2 (paper)", "STAR-DSS, reverse KL"):
        assert title in shown
        assert title in html
    assert str(page) in shown
    rows = [json.loads(line) for line in page.with_suffix(".jsonl").read_text().splitlines()]
    assert [set(row) for row in rows] == [{"prompt", "response"}] * 6
    assert f"fastdss train {page.with_suffix('.jsonl')} --model {tiny_policy}" in shown
    for arm in numbers["arms"]:
        assert arm["counts"]["leak"]["total"] == 2
        assert arm["counts"]["benign_correct"]["total"] == 2
        assert len(arm["answers"]) == 4
        trained = arm["method"] not in ("none", "rs")
        assert (len(arm["curves"]["loss"]) == 2) == trained or arm["method"] == "rs"
        if trained:
            assert set(arm["curves"]["values"]) == {"benign", "advice", "disclosure", "ending"}
    assert numbers["settings"]["seed"] == 3
    assert numbers["versions"]["torch"]
    assert len(numbers["scores"]["guard"]) == 6
