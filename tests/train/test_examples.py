"""Every example runs as it stands, on a tiny model from a folder and the guard that ships with fastdss."""

import os

import pytest
import torch

from tests.support.example_scripts import DATA, main_of
from tests.support.tiny_models import tiny_model, tiny_tokenizer

for extra in ("accelerate", "datasets", "peft", "trl"):
    pytest.importorskip(extra, reason="needs the [train] extra")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_model(vocab_size=320, max_position_embeddings=1024).float().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return ["--model", str(folder)]


def test_custom_loop(model):
    losses = main_of("custom_loop")([*model, *DATA, "--steps", "4"])
    assert len(losses) == 4
    assert all(torch.tensor(losses).isfinite())


def test_hf_trainer(model, tmp_path):
    metrics = main_of("hf_trainer")([*model, *DATA, "--steps", "3", "--out", str(tmp_path)])
    assert metrics["eval_loss"] == pytest.approx(metrics["eval_ce"] + metrics["eval_kl"], rel=0.1)  # means of means
    assert metrics["eval_kl"] > 0
    assert (tmp_path / "model.safetensors").exists()


def test_trl_lora(model, tmp_path):
    log = main_of("trl_lora")([*model, *DATA, "--steps", "3", "--out", str(tmp_path)])
    assert [entry["step"] for entry in log] == [1, 2, 3]
    assert log[0]["kl"] == pytest.approx(0, abs=1e-5)
    assert log[-1]["kl"] > log[0]["kl"]
    assert (tmp_path / "adapter_model.safetensors").exists()


def test_paper(model, tmp_path):
    options = ["--guard", "tiny", "--epochs", "1", "--batch-size", "12", "--out", str(tmp_path)]
    metrics = main_of("paper")([*model, *DATA, *options])
    assert metrics["train_loss"] > 0
    assert (tmp_path / "model.safetensors").exists()


def test_fsdp2(model, tmp_path, monkeypatch):
    # one process here; two processes and their gradients are test_distributed's
    for name, value in {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("MASTER_PORT", str(20000 + os.getpid() % 20000))
    losses = main_of("fsdp2")([*model, *DATA, "--steps", "3", "--out", str(tmp_path / "state.pt")])
    assert len(losses) == 3
    state = torch.load(tmp_path / "state.pt")
    assert state["lm_head.weight"].shape == (320, 32)
