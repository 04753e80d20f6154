"""However a model was set up before it becomes a guard, its scores are those of one plain forward for each prefix."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from fastdss import Guard, star_scores
from fastdss.errors import UserError
from tests.support.builders import _SHAPE, TEMPLATE, make_model, make_spec, make_tokenizer

# Longer than the windows (24) and the native lengths (64) below.
PROMPT, RESPONSE = "Hello there.", "You can call her on 555 0100. Mail anna, mix the flour and the eggs. " * 5
BATCH = {"prompt": [PROMPT], "response": [RESPONSE]}
Setting = Callable[[Any, Any], Any]  # changes a model and a tokenizer, and returns the model that becomes the guard


def plain(model: Any, guard: Guard, ends: list[int]) -> torch.Tensor:
    """By transformers alone: its template, its tokens, its logits, one text at a time."""
    tokenizer, found = make_tokenizer(), []
    for end in ends:
        turns = [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": RESPONSE[:end]}]
        text = tokenizer.apply_chat_template(turns, chat_template=TEMPLATE, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text + "\n\n", add_special_tokens=False, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            logits = copy.deepcopy(model).eval()(input_ids=ids, use_cache=False).logits[0, -1]
        found.append(logits[tokenizer.convert_tokens_to_ids(["safe", "unsafe"])].double().softmax(-1)[0])
    return torch.stack(found).float()


def cache(kind: str) -> Setting:
    def set_(model: Any, tokenizer: Any) -> Any:
        model.generation_config.cache_implementation = kind
        return model

    return set_


def attention(name: str) -> Setting:
    def set_(model: Any, tokenizer: Any) -> Any:
        model.set_attn_implementation(name)
        return model

    return set_


def attribute(name: str, value: Any) -> Setting:
    def set_(model: Any, tokenizer: Any) -> Any:
        setattr(tokenizer, name, value)
        return model

    return set_


def truncating(model: Any, tokenizer: Any) -> Any:
    tokenizer.backend_tokenizer.enable_truncation(30)
    return model


def padding(model: Any, tokenizer: Any) -> Any:
    tokenizer.backend_tokenizer.enable_padding(length=600, pad_id=2, pad_token="<pad>")
    return model


def compiled(model: Any, tokenizer: Any) -> Any:
    return torch.compile(model, backend="eager")


def dropping(model: Any, tokenizer: Any) -> Any:
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    return model.train()


SETTINGS = {
    "static cache": cache("static"), "quantised cache": cache("quantized"), "eager": attention("eager"),
    "flex": attention("flex_attention"), "compiled": compiled, "dropout": dropping, "truncating": truncating,
    "padding": padding, "short": attribute("model_max_length", 40), "left": attribute("padding_side", "left"),
    "cut left": attribute("truncation_side", "left"), "splitting": attribute("split_special_tokens", True),
    "no padding": attribute("pad_token", None),
}  # fmt: skip


@pytest.mark.parametrize("name", SETTINGS)
def test_what_a_user_may_have_set(name: str) -> None:
    tokenizer = copy.deepcopy(make_tokenizer())
    untouched = make_model("llama", len(tokenizer))
    guard = Guard(SETTINGS[name](copy.deepcopy(untouched), tokenizer), tokenizer, make_spec())
    assert_right(guard, untouched)


@pytest.mark.parametrize("kind", ["mistral", "gemma2", "gemma3_text", "gpt_oss", "llama4_text"])
def test_windows_and_chunks_shorter_than_the_response(kind: str) -> None:
    model = make_model(kind, len(make_tokenizer()))
    assert_right(Guard(copy.deepcopy(model), make_tokenizer(), make_spec()), model)


ROPES = {
    "linear": {"factor": 4.0},
    "yarn": {"factor": 16.0, "original_max_position_embeddings": 64},
    "llama3": {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64},
    "longrope": {"factor": 4.0, "short_factor": [1.0] * 4, "long_factor": [1.5, 2.0, 3.0, 4.0],
                 "original_max_position_embeddings": 64},
}  # fmt: skip


@pytest.mark.parametrize("kind", ROPES)
def test_every_kind_of_rotary_scaling_beyond_its_native_length(kind: str) -> None:
    """The frequencies of the last depend on the length of the text: it is told to take one forward for each prefix."""
    rules = {"rope_type": kind, "rope_theta": 10000.0, **ROPES[kind]}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(make_tokenizer()), rope_parameters=rules, **_SHAPE)).eval()
    guard = Guard(copy.deepcopy(model), make_tokenizer(), make_spec(), check=False)
    if kind == "longrope":
        with pytest.raises(UserError, match="beyond 64 tokens its rotary frequencies depend on the length"):
            star_scores(guard, BATCH)
        apart = star_scores(guard, BATCH, method="per_prefix")
        assert (apart.scores[0] - plain(model, guard, apart.ends[0])).abs().max() <= 1e-6
    else:
        assert_right(guard, model)


def assert_right(guard: Guard, model: Any) -> None:
    tree, apart = (star_scores(guard, BATCH, method=method) for method in ("auto", "per_prefix"))
    right = plain(model, guard, tree.ends[0])
    assert right.std() > 1e-3  # else the test shows nothing
    stream = guard.stream(PROMPT)
    streamed = torch.tensor(stream.append(RESPONSE) + stream.close())
    for found in (tree.scores[0], apart.scores[0], streamed):
        assert (found - right).abs().max() <= 1e-6


def test_an_adapter_switched_in_the_midst_of_a_stream() -> None:
    peft = pytest.importorskip("peft")
    how: dict[str, Any] = {"r": 4, "task_type": "CAUSAL_LM"}
    model = peft.get_peft_model(
        make_model("llama", len(make_tokenizer())), peft.LoraConfig(target_modules=["up_proj"], **how)
    )
    model.add_adapter("second", peft.LoraConfig(target_modules=["v_proj", "k_proj"], use_dora=True, **how))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(0))
    guard, found = Guard(model, make_tokenizer(), make_spec()), {}
    stream = guard.stream(PROMPT)
    for name, part in (("default", RESPONSE[:150]), ("second", RESPONSE[150:250]), ("default", RESPONSE[250:])):
        model.set_adapter(name)
        ends = star_scores(guard, BATCH).ends[0]
        found[name] = plain(model, guard, ends)
        assert (star_scores(guard, BATCH).scores[0] - found[name]).abs().max() <= 1e-6
        begun, new = len(stream.scores), stream.append(part)
        assert (torch.tensor(new) - found[name][begun : begun + len(new)]).abs().max() <= 1e-6
    assert (found["default"] - found["second"]).abs().max() > 1e-3


def test_guards_of_several_dtypes_are_averaged_as_they_score_alone() -> None:
    vocabulary, tokenizer = len(make_tokenizer()), make_tokenizer()
    kinds = (("llama", torch.float32), ("qwen3", torch.float64), ("granite", torch.bfloat16))
    guards = [Guard(make_model(kind, vocabulary, dtype), tokenizer, make_spec()) for kind, dtype in kinds]
    alone = torch.stack([star_scores(guard, BATCH).scores[0] for guard in guards])
    assert torch.allclose(star_scores(guards, BATCH).scores[0], alone.mean(0), rtol=0, atol=1e-6)
    assert torch.equal(star_scores(guards, BATCH, combine="min").scores[0], alone.amin(0))
