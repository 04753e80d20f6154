"""Chunks (Llama 4) and sinks (gpt-oss) in the tree, against transformers' own masks and against the definition."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import GptOssConfig, GptOssForCausalLM

import fastdss.prefix.attention
from fastdss import Guard, star_scores
from fastdss.guards import vendors
from fastdss.prefix.engine import Runner, reference_logits, tree_logits
from fastdss.prefix.tree import build_tree
from tests.support.builders import BATCH, MORE_ARCHITECTURES, make_guard, make_spec, make_tokenizer

from .test_choose_spec import LLAMA_1B
from .test_specs import make_tokenizer as make_guards_tokenizer

CHUNK = 24  # of the tiny Llama 4: a prompt of the test's template fills four


def differences(guard: Guard, **options) -> float:
    tree, apart = (star_scores(guard, BATCH, every=2, method=method, **options) for method in ("tree", "per_prefix"))
    return max((a - b).abs().max().item() for a, b in zip(tree.scores, apart.scores, strict=True))


@pytest.mark.parametrize("architecture", MORE_ARCHITECTURES)
def test_scores_are_those_of_transformers_own_masks(architecture: str) -> None:
    guard = make_guard(architecture)
    assert differences(guard) <= 1e-6
    assert differences(guard, budget=33) <= 1e-6
    stream = guard.stream(BATCH["prompt"][1])
    streamed = stream.append(BATCH["response"][1]) + stream.close()
    assert (torch.tensor(streamed) - star_scores(guard, BATCH).scores[1]).abs().max() <= 1e-6


@pytest.mark.parametrize("chunk", [7, CHUNK, 160, 8192])
def test_chunks_of_any_size(chunk: int) -> None:
    guard = make_guard("llama4_text")
    guard.model.config.attention_chunk_size = chunk
    assert differences(guard) <= 1e-6


def test_a_forgotten_chunk_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    guard = make_guard("llama4_text")
    monkeypatch.setattr(fastdss.prefix.engine, "_chunks", lambda config: {})
    assert differences(guard) > 1e-4


def test_a_temperature_by_the_place_in_the_pack_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Llama 4 scales queries by how far along they are, and counts that within a forward pass."""
    guard = make_guard("llama4_text")
    monkeypatch.setattr(fastdss.prefix.attention, "_temperatures", lambda *args: None)
    assert differences(guard) > 1e-4


def test_a_forgotten_sink_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    guard = make_guard("gpt_oss")
    real = fastdss.prefix.attention._softmax_attention
    monkeypatch.setattr(fastdss.prefix.attention, "_softmax_attention", lambda *args: real(*args[:-1], None))
    assert differences(guard) > 1e-4


def test_sinks_are_exact_in_double_precision() -> None:
    """Against the definition: sinks, a window, and experts that take double precision."""
    tokenizer = make_tokenizer()
    shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = GptOssConfig(
        vocab_size=len(tokenizer), num_key_value_heads=2, head_dim=8, num_local_experts=2, num_experts_per_tok=1,
        sliding_window=24, initializer_range=0.3, max_position_embeddings=1024, experts_implementation="eager", **shape,
    )  # fmt: skip
    torch.manual_seed(0)
    model = GptOssForCausalLM(config).eval().double()
    for name, parameter in model.named_parameters():
        if name.endswith("sinks"):
            torch.nn.init.normal_(parameter)
    guard = Guard(model, tokenizer, make_spec())
    rows = guard.encode_prefixes([{"role": "user", "content": "Hello"}], BATCH["response"][1], [3, 20, 41, 90])
    tree = tree_logits(model, guard.token_ids, [build_tree(rows)], [0])
    model.set_attn_implementation("fastdss_test_dense")
    truth = reference_logits(model, guard.token_ids, rows)
    assert (tree - truth).abs().max() <= 1e-12 * (1 + truth.abs().max())


def test_the_layers_that_are_chunked() -> None:
    guard = make_guard("llama4_text")
    assert Runner(guard.model, guard.token_ids).chunks == {0: CHUNK, 1: CHUNK}


def test_llama_guard_4_with_its_null_chunk_size_loads(tmp_path: Path) -> None:
    """transformers cannot build a mask of it; nothing is cut then."""
    from tests.support.builders import make_model

    tokenizer = make_guards_tokenizer(LLAMA_1B)
    make_model("llama4_text", len(tokenizer)).save_pretrained(tmp_path / "Llama-Guard-4-12B")
    tokenizer.save_pretrained(tmp_path / "Llama-Guard-4-12B")
    path = tmp_path / "Llama-Guard-4-12B" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"attention_chunk_size": None}))
    guard = Guard.from_pretrained(str(path.parent))
    assert guard.spec is vendors.LLAMA_GUARD_4
    assert guard.model.config.attention_chunk_size == 1024
    assert differences(guard) <= 1e-6
