"""`fastdss train` on a file of conversations: scores, trains, reports, and says what it did."""

import json
import re
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from fastdss import UserError, load_model
from fastdss.cli import main
from fastdss.train.run import run as train_run
from fastdss.train.run.run import run
from fastdss.train.run.settings import read_settings
from tests.support.train_runs import report_of, settings

pytest.importorskip("accelerate", reason="needs the [train] extra")
pytest.importorskip("datasets", reason="needs the [train] extra")
pytest.importorskip("peft", reason="needs the [train] extra")


def test_a_run_from_the_command_line(files, tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text(f"data: {files / 'data.jsonl'}\nmodel: {files / 'model'}\nmax_steps: 2\nlearning_rate: 5e-3\n")
    flags = ["--config", str(config), "--out", str(tmp_path / "out"), "--cpu", "--batch-size", "2", "--eval-share",
             "0.25", "--lora-targets", "q_proj", "--packing"]  # fmt: skip
    assert main(["train", *flags]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["rows"] == {"read": 8, "trained": 6, "held_out": 2}
    assert report["settings"]["learning_rate"] == 5e-3
    assert [entry["step"] for entry in report["log"]] == [1, 2]  # short runs log each step, or there is no chart
    assert {"ce", "kl", "token_weight", "share_below_half"} <= set(report["log"][0])
    assert report["before"]["eval_kl"] == pytest.approx(0, abs=1e-6)
    assert report["after"]["eval_ce"] < report["before"]["eval_ce"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "ada.quill" in page
    assert f"on {files / 'data.jsonl'}, judged by tiny" in page
    assert "http" not in page
    assert (tmp_path / "out" / "model" / "adapter_model.safetensors").exists()


@pytest.mark.parametrize(
    ("method", "kl"), [("full", "k3"), ("full", "reverse"), ("lora", "reverse"), ("lora", "forward")]
)
def test_every_kind_of_reference(files, tmp_path, method, kl):
    found = run(settings(files, tmp_path, method=method, kl=kl))
    assert found["before"]["eval_kl"] == pytest.approx(0, abs=1e-6)
    assert found["after"]["eval_kl"] > 0
    assert (tmp_path / "model").is_dir()
    assert (tmp_path / "reference").exists() == (kl in ("k3", "forward"))


@pytest.mark.parametrize("option", [{"grad_tol": 0.5}, {"csft_beta": 2.0, "kl_scale": 0.0}], ids=str)
def test_options_reach_the_loss(files, tmp_path, option):
    run(settings(files, tmp_path / "plain", method="full", max_steps=1, warmup_steps=0.0))
    run(settings(files, tmp_path / "other", method="full", max_steps=1, warmup_steps=0.0, **option))
    plain, other = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("plain", "other"))
    assert any(not torch.equal(plain[name], other[name]) for name in plain)


def test_no_reference_is_computed_that_no_term_compares_with(files, tmp_path):
    found = run(settings(files, tmp_path, kl_scale=0.0, max_steps=1))
    assert found["after"]["eval_kl"] == 0
    assert not (tmp_path / "reference").exists()


def test_an_unexpected_error_keeps_its_traceback(tmp_path, monkeypatch, capsys):
    """What fastdss refuses is one line; anything else, hours into a run, must be found again."""

    def fails(settings, progress):
        (tmp_path / "out").mkdir()
        raise KeyError("a bug")

    monkeypatch.setattr(train_run, "run", fails)
    given = ["train", "data.jsonl", "--model", "m", "--out", str(tmp_path / "out")]
    with pytest.raises(KeyError, match="a bug"):
        main(given)
    kept = (tmp_path / "out" / "traceback.txt").read_text()
    assert kept.startswith("Traceback")
    assert "in fails" in kept
    assert str(tmp_path / "out" / "traceback.txt") in capsys.readouterr().err
    monkeypatch.setattr(train_run, "run", lambda settings, progress: read_settings({"data": "x"}))
    assert main(given) == 1
    assert capsys.readouterr().err == "fastdss train: --model is required, by flag or in the YAML file\n"


def test_an_error_during_training_is_the_last_line(files, tmp_path, monkeypatch, capsys):
    def fails(*_):
        raise UserError("row: expected 1, got 2")

    monkeypatch.setattr("fastdss.train.run.stop.StoppingTrainer.training_step", fails)
    given = ["train", str(files / "data.jsonl"), "--model", str(files / "model"), "--out", str(tmp_path / "out")]
    assert main([*given, "--max-steps", "1", "--lora-targets", "q_proj", "--cpu"]) == 1
    told = capsys.readouterr().err.splitlines()
    assert any("training   0% 0/1 steps" in line for line in told)
    assert told[-1] == "fastdss train: row: expected 1, got 2"


def test_a_disk_that_is_full_is_told_whatever_library_met_it(tmp_path, monkeypatch, capsys):
    """safetensors and torch raise errors of their own, and the traceback had no place either."""

    def fails(settings, progress):
        (tmp_path / "out" / "scores").mkdir(parents=True)
        (tmp_path / "out" / "scores" / "manifest.json").write_text("{}")
        raise RuntimeError("unexpected pos 64 vs 0")

    monkeypatch.setattr(train_run, "run", fails)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=4096))
    assert main(["train", "data.jsonl", "--model", "m", "--out", str(tmp_path / "out")]) == 1
    kept, told = capsys.readouterr().err.splitlines()
    assert kept.startswith("No step is saved yet; scores in ")
    assert told == f"fastdss train: {tmp_path / 'out'}: no space left on device"
    assert not (tmp_path / "out" / "traceback.txt").exists()


def test_the_end_names_what_there_is_and_the_card_says_what_it_was(files, tmp_path, capsys):
    """It ended under other libraries' bars, and the card was PEFT's empty one."""
    out = tmp_path / "out"
    given = ["train", str(files / "data.jsonl"), "--model", str(files / "model"), "--out", str(out), "--max-steps", "2"]
    given += ["--batch-size", "2", "--eval-share", "0.25", "--lora-targets", "q_proj", "--cpu"]
    assert main(given) == 0
    shown = capsys.readouterr()
    for name, path in (("model", out / "model"), ("report", out / "report.html"), ("folder", out)):
        assert re.search(rf"^{name} +{re.escape(str(path))}$", shown.out, re.MULTILINE)
        assert path.exists()
    assert re.search(r"^rows +8 read, 6 trained, 2 held out, 0 not used$", shown.out, re.MULTILINE)
    assert "Warning" not in shown.err
    assert "training" in shown.err
    card = (out / "model" / "README.md").read_text()
    for said in ("More Information Needed", "[optional]"):
        assert said not in card
    report = report_of(out)
    for said in (str(files / "data.jsonl"), "`tiny`", "learning_rate: 0.0002", f"{report['after']['eval_ce']:.4f}",
                 f"| chunks below half | {report['scores']['chunks_below_half']} |", "library_name: peft"):  # fmt: skip
        assert said in card


def test_an_adapter_finds_its_model_from_any_folder(files, tmp_path, monkeypatch):
    """PEFT keeps the model's name as it was given, a path relative to where the training ran."""
    monkeypatch.chdir(files)
    given = ["train", "data.jsonl", "--model", "model", "--out", str(tmp_path / "out"), "--max-steps", "1", "--cpu"]
    assert main([*given, "--lora-targets", "q_proj", "--eval-share", "0"]) == 0
    monkeypatch.chdir(tmp_path / "out")
    for model in (load_model("model")[0], AutoModelForCausalLM.from_pretrained("model")):
        assert any("lora" in name for name, _ in model.named_parameters())


def test_quiet_and_json(files, tmp_path, capsys):
    given = ["train", str(files / "data.jsonl"), "--model", str(files / "model"), "--out", str(tmp_path / "out")]
    given += ["--batch-size", "2", "--max-steps", "1", "--method", "full", "--quiet", "--json", "--cpu"]
    assert main(given) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    found = json.loads(shown.out)
    assert found["rows"]["trained"] + found["rows"]["held_out"] == 8
    assert found["model"] == str(tmp_path / "out" / "model")
