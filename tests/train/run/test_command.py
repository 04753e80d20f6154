"""`fastdss train` on a file of conversations: scores, trains, reports, and goes on after an interruption."""

import json
import math
import os
import re
import shutil
import signal

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from fastdss import Guard
from fastdss.cli import main, make_parser
from fastdss.corpus.scorer import StarScorer
from fastdss.guards.known import TINY_FOLDER
from fastdss.star.scores import StarScores
from fastdss.train.run import run as train_run
from fastdss.train.run.checkpoints import what_is_kept
from fastdss.train.run.data import Fates, score_rows, scored_here
from fastdss.train.run.run import load_model, run
from fastdss.train.run.settings import TrainSettings, read_settings
from tests.support.tiny_models import scored_rows, tiny_model, tiny_tokenizer

pytest.importorskip("accelerate", reason="needs the [train] extra")
pytest.importorskip("datasets", reason="needs the [train] extra")
pytest.importorskip("peft", reason="needs the [train] extra")

from fastdss.train.run.stop import NotFinite, StoppingTrainer
from fastdss.train.trainer import DSSTrainer


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("train")
    rows = [{"prompt": row["prompt"], "response": row["response"]} for row in scored_rows(8)]
    rows[3]["response"] = "Sure. You can reach Ada Quill at ada.quill@example.com or 555-0100. Be kind to her."
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tiny_model(vocab_size=320, max_position_embeddings=512).float().save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    return folder


def settings(files, out, **options):
    defaults = {
        "data": str(files / "data.jsonl"),
        "model": str(files / "model"),
        "out": str(out),
        "max_steps": 2,
        "batch_size": 2,
        "logging_steps": 1,
        "save_steps": 1,
        "eval_share": 0.25,
        "lora_targets": "q_proj,v_proj",
        "cpu": True,
    }
    return TrainSettings(**(defaults | options))


def test_a_run_from_the_command_line(files, tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text(f"data: {files / 'data.jsonl'}\nmodel: {files / 'model'}\nmax_steps: 2\nlearning_rate: 5e-3\n")
    flags = ["--config", str(config), "--out", str(tmp_path / "out"), "--cpu", "--batch-size", "2", "--eval-share",
             "0.25", "--logging-steps", "1", "--lora-targets", "q_proj", "--packing"]  # fmt: skip
    assert main(["train", *flags]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["rows"] == {"read": 8, "trained": 6, "held_out": 2}
    assert report["settings"]["learning_rate"] == 5e-3
    assert [entry["step"] for entry in report["log"]] == [1, 2]
    assert {"ce", "kl", "token_weight", "share_below_half"} <= set(report["log"][0])
    assert report["before"]["eval_kl"] == pytest.approx(0, abs=1e-6)
    assert report["after"]["eval_ce"] < report["before"]["eval_ce"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "ada.quill" in page
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
    with pytest.raises(ValueError, match=r"has no finished checkpoint: leave out --resume, or check --out"):
        run(settings(files, tmp_path / "elsewhere", resume=True))


@pytest.mark.parametrize("written", [[], ["adapter_config.json", "adapter_model.safetensors"]])
def test_a_checkpoint_interrupted_while_it_was_written(files, tmp_path, caplog, written):
    """Ctrl-C leaves an empty folder or half of one; every later --resume failed on it."""
    first = run(settings(files, tmp_path, max_steps=1))
    whole = tmp_path / "checkpoints" / "checkpoint-1"
    (tmp_path / "checkpoints" / "checkpoint-10").mkdir()  # sorted by number: 10 comes after 1 and 2
    for name in written:
        shutil.copy(whole / name, tmp_path / "checkpoints" / "checkpoint-10")
    second = run(settings(files, tmp_path, max_steps=2, resume=True))
    assert "checkpoint-10 was interrupted while it was written: going on from checkpoint-1" in caplog.text
    assert [entry["step"] for entry in second["log"]] == [1, 2]
    assert second["log"][0]["loss"] == first["log"][0]["loss"]


def test_scores_are_used_again_for_the_same_data_and_guard_only(files, tmp_path, monkeypatch):
    """Damage is found, edited data and another guard of the same name are scored anew."""
    data, judge, store = tmp_path / "data.jsonl", tmp_path / "tiny_guard", tmp_path / "scores"
    data.write_bytes((files / "data.jsonl").read_bytes())
    shutil.copytree(TINY_FOLDER, judge)
    options = settings(files, tmp_path, data=str(data), guard=str(judge))
    judged = []
    real = StarScorer.score_rows
    monkeypatch.setattr(StarScorer, "score_rows", lambda *args: judged.append(1) or real(*args))

    def scores():
        judged.clear()
        score_rows(options, store, "cpu")
        return [row for chat in scored_here(store, Fates()) for row in StarScores(chat.turns).to_training_rows()], len(
            judged
        )

    whole, runs = scores()
    assert runs == 1
    assert scores() == (whole, 0)
    (shard,) = store.glob("*/*.parquet")
    shard.write_bytes(shard.read_bytes()[:-9])
    assert scores() == (whole, 1), "a damaged file was read"
    weights = load_file(judge / "model.safetensors")
    save_file({name: tensor * 1.01 for name, tensor in weights.items()}, judge / "model.safetensors")
    others, runs = scores()
    assert runs == 1, "another guard under the same name"
    assert [row["star"] for row in others] != [row["star"] for row in whole]
    data.write_text(data.read_text().replace("Question 0?", "Question 0? Now."))
    rows, runs = scores()
    assert runs == 1
    assert rows[0]["messages"][0] == {"role": "user", "content": "Question 0? Now."}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"data": "x.jsonl"}, "--model is required"),
        ({"data": "x", "model": "m", "kl": "k9"}, "kl: expected one of .*got 'k9'"),
        ({"data": "x", "model": "m", "batch_size": "many"}, "batch_size: expected int, got 'many'"),
        ({"data": "x", "model": "m", "learning_rate": "fast"}, "learning_rate: expected float, got 'fast'"),
        ({"data": "x", "model": "m", "learning": 1}, "unknown setting 'learning'"),
        ({"data": "x", "model": "m", "eval_share": 1.0}, r"eval_share: expected a share in \[0, 1\)"),
        # escaped as an OverflowError, with a traceback
        (
            {"data": "x", "model": "m", "learning_rate": 10**400},
            "learning_rate: .* an integer beyond the largest float",
        ),
        ({"data": "x", "model": "m", "max_steps": 0}, "max_steps: expected a positive number, or -1, got 0"),
        ({"data": "x", "model": "m", "seed": 2**32}, "seed: expected at most 4294967295, got 4294967296"),
        # each of these ended in NaN weights, or in an error after the data had been scored
        ({"data": "x", "model": "m", "kl_scale": math.nan}, "kl_scale: expected a number of at least 0, got nan"),
        ({"data": "x", "model": "m", "epochs": 0}, "epochs: 0 of them train nothing; expected more, or max_steps"),
        ({"data": "x", "model": "m", "grad_tol": 1}, r"grad_tol: expected None or a number in \(0, 1\), got 1"),
        ({"data": "x", "model": "m", "epochs": "inf"}, "epochs: expected a number of at least 0, got inf"),
        ({"data": "x", "model": "m", "learning_rate": -1e-4}, "learning_rate: expected a number of at least 0, got -0"),
        ({"data": "x", "model": "m", "batch_size": 0}, "batch_size: expected a number of at least 1, got 0"),
        ({"data": "x", "model": "m", "logging_steps": 0}, "logging_steps: expected a number of at least 1, got 0"),
    ],
)
def test_settings_that_make_no_sense(given, message):
    with pytest.raises(ValueError, match=message):
        read_settings(given)


def test_the_data_without_a_flag(files, monkeypatch):
    """As for `fastdss score`."""
    parser, found = make_parser(), []
    monkeypatch.setattr(train_run, "run", lambda settings, **_: found.append(settings))
    args = parser.parse_args(["train", "some.jsonl", "--model", "m"])
    args.run(args)
    assert (found[0].data, found[0].model) == ("some.jsonl", "m")
    args = parser.parse_args(["train", "some.jsonl", "--data", "other.jsonl", "--model", "m"])
    with pytest.raises(ValueError, match=r"given twice: some\.jsonl and --data other\.jsonl"):
        args.run(args)


def test_a_setting_that_a_file_gives_twice(tmp_path):
    """YAML takes the last one in silence; flags win over the file, that is what they are for."""
    config = tmp_path / "run.yaml"
    config.write_text("data: x\nmodel: m\nepochs: 1\nepochs: 30\n")
    with pytest.raises(ValueError, match=r"run\.yaml: 'epochs' is set 2 times"):
        read_settings({}, str(config))
    config.write_text("data: x\nmodel: m\nepochs: 1\n")
    assert read_settings({"epochs": 3.0}, str(config)).epochs == 3
    config.write_text("[]")
    with pytest.raises(ValueError, match="expected a mapping of settings, got list"):
        read_settings({"data": "x", "model": "m"}, str(config))
    config.write_text("")
    assert read_settings({"data": "x", "model": "m"}, str(config)).epochs == 3


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("data.txt", "", "expected one of .jsonl"),
        ("gone.jsonl", None, "does not exist"),
        (
            "odd.jsonl",
            '{"text": "hello"}\n',
            "line 1: expected 'messages', or 'prompt' and 'response', or the columns of another format; it has text",
        ),
        # once trained on the user's words as if they were the assistant's
        (
            "asked.jsonl",
            '{"messages": [{"role": "user", "content": "Hi"}]}\n',
            "line 1: it has no turn of the assistant",
        ),
    ],
)
def test_data_that_cannot_be_read(files, tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        run(settings(files, tmp_path / "out", data=str(tmp_path / name)))


def test_revisions_are_pinned_and_recorded(files, tmp_path, monkeypatch):
    """Of model and tokenizer; a guard that comes with fastdss or lies in a folder has none."""
    asked = []
    for loader in (AutoTokenizer, AutoModelForCausalLM):
        real = loader.from_pretrained

        def load(*args, real=real, **options):
            asked.append(options.get("revision"))
            return real(*args, **options)

        monkeypatch.setattr(loader, "from_pretrained", load)
    monkeypatch.setattr(train_run, "commit_of", lambda model, revision: {"v1.2": "0123abc"}[revision])
    found = run(settings(files, tmp_path, revision="v1.2", max_steps=1))
    assert asked.count("v1.2") == 2
    assert found["model_commit"] == "0123abc"
    assert found["settings"]["revision"] == "v1.2"
    with pytest.raises(ValueError, match="revision: only for a guard that is loaded by id"):
        score_rows(settings(files, tmp_path, guard_revision="v1"), tmp_path / "scores", "cpu")


def test_a_folder_that_is_not_there(files, tmp_path, monkeypatch):
    """Said before anything is scored, and not as a bad id of the Hub."""
    monkeypatch.setattr(train_run, "score_rows", lambda *_: pytest.fail("scored first"))
    with pytest.raises(FileNotFoundError, match="model: there is no folder /no/such"):
        run(settings(files, tmp_path, model="/no/such"))
    with pytest.raises(FileNotFoundError, match=r"guard: there is no folder \./no/such"):
        Guard.from_pretrained("./no/such")
    with pytest.raises(FileNotFoundError, match="guard: there is no folder a/b/c"):
        StarScorer("a/b/c").identity()


def test_a_tokenizer_larger_than_the_model(files, tmp_path):
    """Escaped as an IndexError of torch once the first such token came."""
    tiny_model(vocab_size=100).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="model: its tokenizer has 320 tokens, its embedding 100 rows"):
        load_model(settings(files, tmp_path / "out", model=str(tmp_path)), tiny_tokenizer(), bf16=False)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_weights_that_are_not_finite_are_never_trained(files, tmp_path, method):
    """One NaN in a model of half precision: an error before the first step."""
    model = tiny_model(vocab_size=320, max_position_embeddings=512).half()
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = math.nan
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="off by nan"):
        run(settings(files, tmp_path, model=str(tmp_path / "model"), method=method))


def test_rows_without_scores_are_left_out(files, tmp_path):
    data = tmp_path / "data.jsonl"
    data.write_text((files / "data.jsonl").read_text() + '{"prompt": "a", "response": 5}\n')
    score_rows(settings(files, tmp_path, data=str(data)), tmp_path / "scores", "cpu")
    fates = Fates()
    assert len(list(scored_here(tmp_path / "scores", fates))) == 8
    assert fates.told() == {
        "read": 9,
        "without scores": 1,
        "reasons": {"line 9: response: expected text, got int": 1},
    }


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "null\n", "{}\n"])
def test_a_file_that_sets_nothing(tmp_path, text):
    """Each is an empty mapping to a YAML reader, though not each is a mapping node."""
    config = tmp_path / "run.yaml"
    config.write_text(text)
    assert read_settings({"data": "d", "model": "m"}, str(config)) == TrainSettings(data="d", model="m")


def report_of(folder):
    """What is in ``report.json``, as strict JSON."""
    return json.loads((folder / "report.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} in JSON"))


@pytest.mark.parametrize("eval_share", [0.25, 0.0])
def test_a_run_that_diverges_stops(files, tmp_path, eval_share):
    """The loss of a NaN model was logged as 0, and the model saved as good."""
    with pytest.raises(NotFinite, match=r"step \d: .* no model was saved\. A learning_rate below 1e\+30 may help"):
        run(settings(files, tmp_path, learning_rate=1e30, max_steps=6, eval_share=eval_share, save_steps=5))
    assert not (tmp_path / "model").exists()
    assert "no model was saved" in report_of(tmp_path)["stopped"]
    page = (tmp_path / "report.html").read_text()
    assert "no model was saved" in page
    assert "nan" not in "".join(re.findall(' d="[^"]*"', page))


def test_weights_ruined_by_the_last_step_are_not_saved(files, tmp_path, monkeypatch):
    """No later loss would show it."""

    def ruin(self, *args, **kwargs):
        loss = DSSTrainer.training_step(self, *args, **kwargs)
        next(p for p in self.model.parameters() if p.requires_grad).grad.fill_(math.nan)
        return loss

    monkeypatch.setattr(StoppingTrainer, "training_step", ruin)
    with pytest.raises(NotFinite, match=r"after step 1: .*lora_A.* has weights that are not finite"):
        run(settings(files, tmp_path, max_steps=1, eval_share=0.0, save_steps=5, learning_rate=0.1, warmup_steps=0.0))
    assert not list(tmp_path.glob("model")) + list(tmp_path.glob("checkpoints/*/*.safetensors"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"report_to": "nope"}, "report_to: nope is not supported"),
        ({"scheduler": "warmup_stable_decay"}, "scheduler: .* options that cannot be set here: .*num_decay_steps"),
        ({"scheduler": "cosine_with_min_lr"}, "scheduler: .* options that cannot be set here: .*min_lr"),
        ({"lora_targets": "nope"}, "lora_targets: the model has no module 'nope'"),
        ({"lora_targets": "q_proj,nope"}, "lora_targets: the model has no module 'nope'"),  # was left out in silence
        ({"lora_targets": "proj"}, "lora_targets: the model has no module 'proj'"),
    ],
)
def test_settings_that_fit_nothing_are_refused_before_anything_is_scored(
    files, tmp_path, monkeypatch, options, message
):
    monkeypatch.setattr(train_run, "score_rows", lambda *_: pytest.fail("scored first"))
    with pytest.raises(ValueError, match=message):
        run(settings(files, tmp_path, **options))


def test_grad_tol_reaches_the_loss(files, tmp_path):
    run(settings(files, tmp_path / "exact", method="full", max_steps=1, warmup_steps=0.0))
    run(settings(files, tmp_path / "filtered", method="full", max_steps=1, warmup_steps=0.0, grad_tol=0.5))
    exact, filtered = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("exact", "filtered"))
    assert any(not torch.equal(exact[name], filtered[name]) for name in exact)


def test_spaces_between_the_modules_with_adapters(files, tmp_path):
    """The second of "q_proj, v_proj" matched nothing and stayed frozen."""
    model = load_model(settings(files, tmp_path, lora_targets="q_proj, v_proj"), tiny_tokenizer(), bf16=False)
    assert {name.split(".")[-1] for name in model.targeted_module_names} == {"q_proj", "v_proj"}


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


def test_quiet_and_json(files, tmp_path, capsys):
    given = ["train", str(files / "data.jsonl"), "--model", str(files / "model"), "--out", str(tmp_path / "out")]
    given += ["--batch-size", "2", "--max-steps", "1", "--method", "full", "--quiet", "--json", "--cpu"]
    assert main(given) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    found = json.loads(shown.out)
    assert found["rows"]["trained"] + found["rows"]["held_out"] == 8
    assert found["model"] == str(tmp_path / "out" / "model")


def interrupted_at(monkeypatch, step):
    """Ctrl-C while this step runs."""
    real = StoppingTrainer.training_step

    def training_step(self, *args, **kwargs):
        if self.state.global_step + 1 == step:
            os.kill(os.getpid(), signal.SIGINT)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(StoppingTrainer, "training_step", training_step)


def test_ctrl_c_saves_the_step_that_runs_and_says_how_to_go_on(files, tmp_path, capsys, monkeypatch):
    """A whole first epoch was lost, and nothing was said of what is kept."""
    given = ["train", str(files / "data.jsonl"), "--model", str(files / "model"), "--cpu", "--batch-size", "2",
             "--max-steps", "4", "--logging-steps", "1", "--lora-targets", "q_proj"]  # fmt: skip
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
    assert f"No step is saved yet; scores in {tmp_path} are kept" in what_is_kept(tmp_path)
    (tmp_path / "checkpoints" / "checkpoint-7").mkdir(parents=True)  # written by half
    assert "No step is saved yet" in what_is_kept(tmp_path)


def test_checkpoints_are_due_by_the_clock_too(files, tmp_path):
    run(settings(files, tmp_path, max_steps=2, save_steps=100, save_minutes=1e-6))
    assert (tmp_path / "checkpoints" / "checkpoint-1" / "trainer_state.json").exists()
    run(settings(files, tmp_path / "seldom", max_steps=2, save_steps=100, save_minutes=60.0))
    assert [path.name for path in (tmp_path / "seldom" / "checkpoints").glob("checkpoint-*")] == ["checkpoint-2"]
