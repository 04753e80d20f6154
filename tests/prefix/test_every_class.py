"""Every causal LM of transformers through the tree: exact, refused by name, or so wrong that a short probe tells.

What must not be is a class that passes the probe made at a guard's construction and is wrong beyond it: a window, a
chunk, a temperature or frequencies that begin to matter only in longer texts. So the rules are made short here, and the
texts are longer than all of them. The ordinary tests take a share, ``pytest -m slow`` all classes.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
import transformers

from fastdss.models.causal_lm import ignores_softcap
from fastdss.prefix.engine import check_supported, reference_logits, tree_logits
from fastdss.prefix.tree import PrefixTree, build_tree
from tests.matrix.tiny import fields_of, text_classes, tiny_model, words

VERDICT = [5, 6, 7]
PROBE, LONG = 24, 60  # tokens; a construction's probe is as short, beside what real models have for rules
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16}
RULES: dict[str, dict[str, Any]] = {
    "as they are": {},
    "windows": {"sliding_window": 7, "use_sliding_window": True, "attention_window": 7, "window_size": 7},
    "chunks": {"attention_chunk_size": 8, "floor_scale": 8},
    "scaled": {"rope_parameters": YARN},
    "dynamic": {"rope_parameters": YARN | {"rope_type": "dynamic"}},
}
SHARE = words(
    "AfmoeForCausalLM BartForCausalLM BertLMHeadModel BloomForCausalLM Cohere2ForCausalLM DeepseekV3ForCausalLM "
    "DogeForCausalLM GPT2LMHeadModel Gemma2ForCausalLM GptOssForCausalLM GraniteSWAForCausalLM JetMoeForCausalLM "
    "Lfm2MoeForCausalLM Llama4ForCausalLM MellumForCausalLM MiMoV2FlashForCausalLM Olmo3ForCausalLM "
    "PersimmonForCausalLM Qwen2ForCausalLM Qwen3NextForCausalLM SmolLM3ForCausalLM"
)
MORE = {  # what a configuration's defaults leave out
    "shared keys and values": ("Gemma3nForCausalLM", {"num_hidden_layers": 10, "num_kv_shared_layers": 5}),
    "shared keys, values and widths": ("Gemma4ForCausalLM", {"num_hidden_layers": 12, "num_kv_shared_layers": 6}),
    "temperatures of all layers": ("Ministral3ForCausalLM", {"rope_parameters": YARN | {"llama_4_scaling_beta": 0.5}}),
    "temperatures and latent keys": ("Mistral4ForCausalLM", {"rope_parameters": YARN | {"llama_4_scaling_beta": 0.5}}),
    "temperatures without rotation": (
        "Llama4ForCausalLM",
        {"floor_scale": 8, "attention_chunk_size": 8, "num_hidden_layers": 4, "no_rope_layers": [1, 1, 1, 0]},
    ),
    "layers without positions": ("SmolLM3ForCausalLM", {"num_hidden_layers": 4, "no_rope_layers": [1, 0, 1, 0]}),
    "norms of queries and keys": ("CohereForCausalLM", {"use_qk_norm": True}),
    "biases of positions": ("FalconForCausalLM", {"alibi": True}),
}


def make_trees(longest: int) -> list[PrefixTree]:
    chosen, trees = random.Random(0), []
    for length in (longest, longest - 5):
        trunk, tail = ([chosen.randrange(3, 90) for _ in range(n)] for n in (length, 9))
        trees.append(build_tree([trunk[:k] + tail for k in (length // 3, length // 2, 2 * length // 3, length)]))
    return trees


def error(model: Any, longest: int) -> float:
    """How far the tree's logits are from those of one forward per prefix, relative to the largest."""
    trees = make_trees(longest)
    check_supported(model, max(len(tree.trunk) for tree in trees))
    found = tree_logits(model, VERDICT, trees, [0, 1], budget=37)
    truth = reference_logits(model, VERDICT, [tree.rendering(k) for tree in trees for k in range(tree.num_prefixes)])
    assert truth.std() > 1e-3
    return ((found - truth).abs().max() / (1 + truth.abs().max())).item()


def verdict(name: str, changes: dict[str, Any]) -> str:
    try:
        model = tiny_model(name, torch.float64, **changes)
        if ignores_softcap(model):  # a guard is loaded with another attention then
            model.set_attn_implementation("eager")
        reference_logits(model, VERDICT, [[1, 2, 3]])
    except Exception as reason:  # transformers itself cannot make or run it in this size
        return f"not tried: {type(reason).__name__}"
    for parameter_name, parameter in model.named_parameters():
        if "sink" in parameter_name:
            parameter.data.normal_(generator=torch.Generator().manual_seed(0))
    try:
        if error(model, LONG) <= 1e-6:  # some models round their softmax to fp32
            return "exact"
        return "told by the probe" if error(model, PROBE) > 1e-3 else "wrong in silence"
    except ValueError as reason:
        return "refused" if "per_prefix" in str(reason) else f"refused without a way out: {reason}"
    except RuntimeError as reason:  # a head that is more than one layer
        return f"told by the probe: {type(reason).__name__}"


def changes_of(name: str, rule: str) -> dict[str, Any] | None:
    """The rule's fields that the class has; None where it has none of them."""
    fields = fields_of(getattr(transformers, name).config_class)
    found = {field: value for field, value in RULES[rule].items() if field in fields}
    return found if found or not RULES[rule] else None


def check(name: str, rule: str) -> None:
    changes = changes_of(name, rule)
    if changes is None:
        return
    found = verdict(name, changes)
    assert found.startswith(("exact", "refused", "told by the probe", "not tried")), found
    assert "without a way out" not in found, found


@pytest.mark.parametrize("name", SHARE)
def test_a_share(name: str) -> None:
    if not hasattr(transformers, name):
        pytest.skip(f"this transformers has no {name}")
    for rule in RULES:
        check(name, rule)


@pytest.mark.slow
@pytest.mark.parametrize("name", text_classes())
def test_every_class(name: str) -> None:
    for rule in RULES:
        check(name, rule)


@pytest.mark.parametrize(("name", "changes"), MORE.values(), ids=MORE)
def test_what_defaults_leave_out(name: str, changes: dict[str, Any]) -> None:
    if not hasattr(transformers, name):
        pytest.skip(f"this transformers has no {name}")
    assert verdict(name, changes) == ("refused" if "alibi" in changes else "exact")


def test_classes_that_guards_are_made_of_are_exact() -> None:
    """So that the tests above do not pass by refusing everything."""
    exact = {name: verdict(name, {}) for name in ("GPT2LMHeadModel", "DeepseekV3ForCausalLM", "GptOssForCausalLM")}
    assert set(exact.values()) == {"exact"}
    assert verdict("BartForCausalLM", {}) == "told by the probe"
    assert verdict("Lfm2MoeForCausalLM", {}) == "refused"
