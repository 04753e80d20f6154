"""What `fastdss train` may be told, and how it says no before anything is scored."""

import math

import pytest

from fastdss import DSSConfig
from fastdss.cli import make_parser
from fastdss.errors import UserError
from fastdss.train.run import run as train_run
from fastdss.train.run.run import load_model, run
from fastdss.train.run.settings import TrainSettings, read_settings
from tests.support.tiny_models import tiny_tokenizer
from tests.support.train_runs import settings

pytest.importorskip("accelerate", reason="needs the [train] extra")
pytest.importorskip("datasets", reason="needs the [train] extra")
pytest.importorskip("peft", reason="needs the [train] extra")


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
        ({"data": "x", "model": "m", "csft_beta": -1}, "csft_beta: expected a number of at least 0, got -1"),
        ({"data": "x", "model": "m", "csft_beta": 1, "dft": True}, "csft_beta makes another first term"),
        ({"data": "x", "model": "m", "csft_beta": 1, "kl": "reverse"}, "csft_beta .* k1, k2, k3, got 'reverse'"),
        ({"data": "x", "model": "m", "epochs": "inf"}, "epochs: expected a number of at least 0, got inf"),
        ({"data": "x", "model": "m", "learning_rate": -1e-4}, "learning_rate: expected a number of at least 0, got -0"),
        ({"data": "x", "model": "m", "batch_size": 0}, "batch_size: expected a number of at least 1, got 0"),
        ({"data": "x", "model": "m", "logging_steps": -1}, "logging_steps: expected a number of at least 0, got -1"),
    ],
)
def test_settings_that_make_no_sense(given, message):
    with pytest.raises(UserError, match=message):
        read_settings(given)


def test_the_losses_options_by_flags(monkeypatch):
    parser, found = make_parser(), []
    monkeypatch.setattr(train_run, "run", lambda settings, **_: found.append(settings.dss))
    for flags in ([], ["--csft-beta", "0.1", "--kl", "k3"], ["--dft", "--grad-tol", "0.01"]):
        args = parser.parse_args(["train", "some.jsonl", "--model", "m", *flags])
        args.run(args)
    assert found == [DSSConfig(), DSSConfig("k3", csft_beta=0.1), DSSConfig(dft=True, grad_tol=0.01)]


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


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "null\n", "{}\n"])
def test_a_file_that_sets_nothing(tmp_path, text):
    """Each is an empty mapping to a YAML reader, though not each is a mapping node."""
    config = tmp_path / "run.yaml"
    config.write_text(text)
    assert read_settings({"data": "d", "model": "m"}, str(config)) == TrainSettings(data="d", model="m")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"report_to": "nope"}, "report_to: nope is not supported"),
        ({"scheduler": "warmup_stable_decay"}, "scheduler: .* options that cannot be set here: .*num_decay_steps"),
        ({"scheduler": "cosine_with_min_lr"}, "scheduler: .* options that cannot be set here: .*min_lr"),
        ({"lora_targets": "nope"}, "lora_targets: expected names of the model's modules, got 'nope'"),
        ({"lora_targets": "q_proj,nope"}, "lora_targets: .*, got 'nope'"),  # was left out in silence
        ({"lora_targets": "proj"}, "lora_targets: expected names of the model's modules, got 'proj'"),
    ],
)
def test_settings_that_fit_nothing_are_refused_before_anything_is_scored(
    files, tmp_path, monkeypatch, options, message
):
    monkeypatch.setattr(train_run, "score_rows", lambda *_: pytest.fail("scored first"))
    with pytest.raises(ValueError, match=message):
        run(settings(files, tmp_path, **options))


def test_spaces_between_the_modules_with_adapters(files, tmp_path):
    """The second of "q_proj, v_proj" matched nothing and stayed frozen."""
    model = load_model(settings(files, tmp_path, lora_targets="q_proj, v_proj"), tiny_tokenizer(), bf16=False)
    assert {name.split(".")[-1] for name in model.targeted_module_names} == {"q_proj", "v_proj"}
