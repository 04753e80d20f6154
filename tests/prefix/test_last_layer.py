"""The last layer is left after its attention, but for the verdicts; where that cannot be, the log says so."""

from __future__ import annotations

import logging

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import fastdss.prefix.engine
from fastdss import Guard, star_scores
from fastdss.prefix.last_layer import find_last_layer
from tests.support.builders import ARCHITECTURES, BATCH, make_guard, make_spec, make_tokenizer


def rows_of_mlps(guard) -> tuple[list[int], list[torch.Tensor]]:
    """How many tokens went through each layer's MLP, and the scores."""
    layers, counts = guard.model.model.layers, [0] * len(guard.model.model.layers)

    def count(index: int):
        def hook(module, args) -> None:
            counts[index] += args[0].shape[-2]

        return hook

    hooks = [layer.mlp.register_forward_pre_hook(count(i)) for i, layer in enumerate(layers)]
    try:
        return counts, star_scores(guard, BATCH, every=3).scores
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_last_mlp_sees_little_more_than_the_verdicts(architecture, monkeypatch):
    """A forward without a verdict, such as a template's head, finishes one token."""
    (*others, last), scores = rows_of_mlps(make_guard(architecture))
    verdicts = sum(map(len, scores))
    assert verdicts <= last < min(others) / 4
    monkeypatch.setattr(fastdss.prefix.engine, "find_last_layer", lambda body, count: None)
    (*others, last), whole = rows_of_mlps(make_guard(architecture))
    assert last == others[0]
    assert max((a - b).abs().max().item() for a, b in zip(scores, whole, strict=True)) <= 1e-6


def test_a_last_layer_with_hooks_runs_whole_and_the_log_says_so(caplog):
    """What hangs on it (accelerate's offloading, a user's probe) must see the run that it would see."""
    expected = star_scores(make_guard("llama"), BATCH, every=3).scores
    guard, seen = make_guard("llama"), []
    hook = guard.model.model.layers[-1].register_forward_hook(lambda layer, args, out: seen.append(out))
    with caplog.at_level(logging.INFO, logger="fastdss.prefix.last_layer"):
        scores = star_scores(guard, BATCH, every=3).scores
    hook.remove()
    assert "the last layer is computed for all tokens" in caplog.text
    assert seen
    assert max((a - b).abs().max().item() for a, b in zip(scores, expected, strict=True)) <= 1e-6


def test_a_last_layer_given_what_has_no_known_rows_runs_whole_and_the_log_says_so_once(caplog, monkeypatch):
    """A list of tensors may hold anything: rows of it are not to be guessed."""
    expected = star_scores(make_guard("llama"), BATCH, every=3).scores
    guard = make_guard("llama", check=False)
    rotary = guard.model.model.rotary_emb
    monkeypatch.setattr(rotary, "forward", lambda *args, whole=rotary.forward, **names: list(whole(*args, **names)))
    with caplog.at_level(logging.INFO, logger="fastdss.prefix.last_layer"):
        (*others, last), scores = rows_of_mlps(guard)
        star_scores(guard, BATCH, every=3)
    assert last == others[0]
    assert caplog.text.count("LlamaDecoderLayer: the last layer is computed for all tokens") == 1
    assert max((a - b).abs().max().item() for a, b in zip(scores, expected, strict=True)) <= 1e-6


@pytest.mark.parametrize("kind", ["gpt2", "gpt_bigcode"])
def test_a_backbone_that_gives_its_result_the_shape_of_its_input(kind):
    """It has one row for every token, finished or not."""
    tokenizer = make_tokenizer()
    sizes = {"vocab_size": len(tokenizer), "n_embd": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.18}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes)).eval()
    guard = Guard(model, tokenizer, make_spec())
    assert find_last_layer(model.transformer, 2) is model.transformer.h[-1]
    tree, naive = (star_scores(guard, BATCH, every=3, method=method).scores for method in ("tree", "per_prefix"))
    assert max((a - b).abs().max().item() for a, b in zip(tree, naive, strict=True)) <= 1e-6
