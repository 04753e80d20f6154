"""A run of `fastdss train` that was interrupted goes on where it was, and on the same rows."""

import json
import os
import shutil
import signal
from itertools import product

import pytest

from fastdss.cli import main
from fastdss.corpus.scorer import StarScorer
from fastdss.train.run import run as train_run
from fastdss.train.run.checkpoints import starting_point, what_is_kept
from fastdss.train.run.run import run
from tests.support.train_runs import report_of, settings

pytest.importorskip("accelerate", reason="needs the [train] extra")
pytest.importorskip("datasets", reason="needs the [train] extra")
pytest.importorskip("peft", reason="needs the [train] extra")

from fastdss.train.run.stop import StoppingTrainer


def test_resuming_uses_what_is_there(files, tmp_path, monkeypatch):
    first = run(settings(files, tmp_path, max_steps=1))
    assert first["log"][-1]["step"] == 1
    monkeypatch.setattr(StarScorer, "score_rows", lambda *_: pytest.fail("scored again"))
    second = run(settings(files, tmp_path, max_steps=2, resume=True))
    assert [entry["step"] for entry in second["log"]] == [1, 2]
    assert second["log"][0]["loss"] == first["log"][0]["loss"]


def test_steps_of_another_run_are_neither_resumed_nor_lost(files, tmp_path, monkeypatch):
    """A shorter run over a longer one left both runs' checkpoints, of which --resume then took the older run's."""
    run(settings(files, tmp_path, max_steps=2))
    monkeypatch.setattr(train_run, "score_rows", lambda *_: pytest.fail("scored first"))
    with pytest.raises(ValueError, match=r"checkpoints has checkpoints of an earlier run: --resume goes on"):
        run(settings(files, tmp_path, max_steps=1))
    with pytest.raises(ValueError, match=r"were made with learning_rate = 0\.0002, got 0\.1"):
        run(settings(files, tmp_path, max_steps=3, learning_rate=0.1, resume=True))
    with pytest.raises(ValueError, match=r"has no checkpoint: leave out --resume, or check --out"):
        run(settings(files, tmp_path / "elsewhere", resume=True))


@pytest.mark.parametrize("written", [[], ["adapter_config.json", "adapter_model.safetensors"]])
def test_a_checkpoint_interrupted_while_it_was_written(files, tmp_path, caplog, written):
    """Ctrl-C leaves an empty folder or half of one; every later --resume failed on it."""
    first = run(settings(files, tmp_path, max_steps=1))
    whole = tmp_path / "checkpoints" / "checkpoint-1"
    (tmp_path / "checkpoints" / "checkpoint-10").mkdir()  # sorted by number: 10 comes after 1 and 2
    for name in written:
        content = (whole / name).read_bytes()
        (tmp_path / "checkpoints" / "checkpoint-10" / name).write_bytes(content[: len(content) // 2])
    second = run(settings(files, tmp_path, max_steps=2, resume=True))
    assert (
        "checkpoint-10 was interrupted while it was written (it has no trainer_state.json): going on from"
        in caplog.text
    )
    assert [entry["step"] for entry in second["log"]] == [1, 2]
    assert second["log"][0]["loss"] == first["log"][0]["loss"]


@pytest.fixture(scope="module")
def two_steps(files, tmp_path_factory):
    """A run that kept each of its steps, and its log."""
    folder = tmp_path_factory.mktemp("steps")
    return folder, run(settings(files, folder, max_steps=3))["log"]


DAMAGES = {
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "zeros": lambda content: bytes(len(content)),
    "garbled": lambda content: content[: len(content) // 3] + b"\xff" * 99 + content[len(content) // 3 + 99 :],
    "missing": None,
}
KEPT = ["trainer_state.json", "optimizer.pt", "scheduler.pt", "rng_state.pth", "adapter_model.safetensors"]


def damage(path, how):
    if DAMAGES[how] is None:
        path.unlink()
    else:
        path.write_bytes(DAMAGES[how](path.read_bytes()))


# Nobody can tell garbled tensors of safetensors, which has no checksum.
@pytest.mark.parametrize(
    ("name", "how"), [case for case in product(KEPT, DAMAGES) if case != ("adapter_model.safetensors", "garbled")]
)
def test_a_damaged_checkpoint_is_passed_over_by_name(files, tmp_path, two_steps, caplog, name, how):
    checkpoints = tmp_path / "checkpoints"
    shutil.copytree(two_steps[0] / "checkpoints", checkpoints)
    damage(checkpoints / "checkpoint-3" / name, how)
    resumed = settings(files, tmp_path, max_steps=3, resume=True)
    assert starting_point(resumed, checkpoints) == str(checkpoints / "checkpoint-2")
    assert "checkpoint-3" in caplog.text
    assert name in caplog.text or how == "missing"
    assert f"Step 2 is kept in {checkpoints}" in what_is_kept(tmp_path)
    for step in (1, 2):
        damage(checkpoints / f"checkpoint-{step}" / name, how)
    with pytest.raises(ValueError, match=r"no checkpoint in .* is whole: checkpoint-3 .*; checkpoint-1 .*: bring"):
        starting_point(resumed, checkpoints)


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(files, tmp_path, two_steps, caplog):
    folder, log = two_steps
    shutil.copytree(folder, tmp_path / "out")
    damage(tmp_path / "out" / "checkpoints" / "checkpoint-3" / "trainer_state.json", "cut")
    resumed = run(settings(files, tmp_path / "out", max_steps=3, resume=True))
    assert "has a damaged trainer_state.json" in caplog.text
    assert [(entry["step"], entry["loss"]) for entry in resumed["log"]] == [(e["step"], e["loss"]) for e in log]
    state = tmp_path / "out" / "checkpoints" / "checkpoint-3" / "trainer_state.json"
    assert json.loads(state.read_text())["global_step"] == 3


def test_a_shard_that_is_away_is_noticed(files, tmp_path, two_steps):
    checkpoints = tmp_path / "checkpoints"
    shutil.copytree(two_steps[0] / "checkpoints", checkpoints)
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    newest = checkpoints / "checkpoint-3"
    (newest / "model.safetensors.index.json").write_text(json.dumps(index))
    shutil.move(newest / "adapter_model.safetensors", newest / "model-00001-of-00002.safetensors")
    assert starting_point(settings(files, tmp_path, resume=True, max_steps=3), checkpoints).endswith("checkpoint-2")
    shutil.copy(newest / "model-00001-of-00002.safetensors", newest / "model-00002-of-00002.safetensors")
    assert starting_point(settings(files, tmp_path, resume=True, max_steps=3), checkpoints).endswith("checkpoint-3")


@pytest.mark.parametrize("change", ["an answer", "the order"])
def test_resuming_on_other_rows_is_refused(files, tmp_path, change):
    """It trained on a mixture of both in silence."""
    data = tmp_path / "data.jsonl"
    lines = (files / "data.jsonl").read_text().splitlines(keepends=True)
    data.write_text("".join(lines))
    options = {"data": str(data), "eval_share": 0.0}
    run(settings(files, tmp_path, max_steps=1, **options))
    data.write_text("".join(lines).replace("breath", "break") if change == "an answer" else "".join(lines[::-1]))
    with pytest.raises(ValueError, match=r"resume: .* were trained on other rows"):
        run(settings(files, tmp_path, max_steps=2, resume=True, **options))
    data.write_text("".join(lines))
    assert run(settings(files, tmp_path, max_steps=2, resume=True, **options))["log"][-1]["step"] == 2


def interrupted_at(monkeypatch, step):
    """Ctrl-C while this step runs."""
    real = StoppingTrainer.training_step

    def training_step(self, *args, **kwargs):
        if self.state.global_step + 1 == step:
            os.kill(os.getpid(), signal.SIGINT)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(StoppingTrainer, "training_step", training_step)


def test_ctrl_c_saves_the_step_that_runs_and_says_how_to_go_on(files, tmp_path, capsys, monkeypatch):
    """A whole first epoch was lost, and nothing was said of what is kept. No checkpoint is due before the end here, for
    at the end of an epoch, which a stop is too, Trainer would save one by itself."""
    given = ["train", str(files / "data.jsonl"), "--model", str(files / "model"), "--cpu", "--batch-size", "2",
             "--max-steps", "4", "--save-steps", "100", "--logging-steps", "1", "--lora-targets", "q_proj"]  # fmt: skip
    assert main([*given, "--out", str(tmp_path / "whole")]) == 0
    with monkeypatch.context() as patch:
        interrupted_at(patch, 2)
        assert main([*given, "--out", str(tmp_path / "out")]) == 130
    told = capsys.readouterr().err
    assert "stopping after this step, and saving it; Ctrl-C again stops at once" in told
    assert f"Step 2 is kept in {tmp_path}/out/checkpoints/checkpoint-2: the same command with --resume" in told
    assert not (tmp_path / "out" / "report.json").exists()
    assert main([*given, "--out", str(tmp_path / "out"), "--resume"]) == 0
    whole, resumed = (report_of(tmp_path / name)["log"] for name in ("whole", "out"))
    assert [entry["step"] for entry in resumed] == [1, 2, 3, 4]
    assert [entry["loss"] for entry in resumed] == [entry["loss"] for entry in whole]


def test_what_is_kept_before_the_first_step(tmp_path):
    assert what_is_kept(tmp_path) == f"Nothing is kept in {tmp_path} yet: the same command starts anew."
    (tmp_path / "scores").mkdir()
    assert what_is_kept(tmp_path) == f"Nothing is kept in {tmp_path} yet: the same command starts anew."
    (tmp_path / "scores" / "manifest.json").write_text("{}")
    assert f"No step is saved yet; scores in {tmp_path} are kept" in what_is_kept(tmp_path)
    (tmp_path / "checkpoints" / "checkpoint-7").mkdir(parents=True)  # written by half
    assert "No step is saved yet" in what_is_kept(tmp_path)


def test_checkpoints_are_due_by_the_clock_too(files, tmp_path):
    run(settings(files, tmp_path, max_steps=2, save_steps=100, save_minutes=1e-6))
    assert (tmp_path / "checkpoints" / "checkpoint-1" / "trainer_state.json").exists()
    run(settings(files, tmp_path / "seldom", max_steps=2, save_steps=100, save_minutes=60.0))
    assert [path.name for path in (tmp_path / "seldom" / "checkpoints").glob("checkpoint-*")] == ["checkpoint-2"]
