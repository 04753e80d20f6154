"""Shortcuts: a branch's last tokens after the trunk's own end, against caches that are put together by hand."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence

import pytest
import torch
import transformers
from torch import Tensor
from transformers import DynamicCache

from fastdss import Guard
from fastdss.prefix.attention import using_prefix_attention
from fastdss.prefix.engine import Runner, tree_logits
from fastdss.prefix.tree import PrefixTree, build_tree
from tests.matrix.tiny import tiny_config
from tests.support.builders import make_guard

LENGTH = 2
CHAT = [{"role": "user", "content": "Hello"}]
TEXTS = ("Call her today, or call him.", "Why not call them by name?", "It is 555 0100, I am sure...")


class Listener:
    """A gate that hears every shortcut, and lets every branch through or none."""

    shortcut = LENGTH

    def __init__(self, passing: bool = True, wanted: Sequence[int] | None = None) -> None:
        self.passing, self.wanted, self.heard = passing, wanted, dict[int, Tensor]()

    def read(self, scores: list[int], states: Tensor) -> None:
        assert not self.heard.keys() & set(scores)  # trunks first

    def wants(self, score: int) -> bool:
        return self.wanted is None or score in self.wanted

    def hear(self, scores: list[int], logits: Tensor) -> None:
        self.heard |= dict(zip(scores, logits, strict=True))

    def asks(self, left: Collection[int]) -> Collection[int]:
        return left if self.passing else ()

    def told(self, scores: list[int], logits: Tensor) -> None:
        assert len(scores) == len(logits)


def trees_of(guard: Guard) -> list[PrefixTree]:
    return [build_tree(guard.encode_prefixes(CHAT, text, [4, 8, 14, 19, 26])) for text in TEXTS]


def turned(guard: Guard, layer: int, hidden: Tensor, places: Tensor) -> Tensor:
    """A layer's keys ``[1, Hkv, n, d]`` of the states ``[n, D]`` that go into it, as if they stood at ``places``."""
    module = guard.model.model.layers[layer]
    keys = module.self_attn.k_proj(module.input_layernorm(hidden)).unflatten(-1, (-1, module.self_attn.head_dim))
    keys = module.self_attn.k_norm(keys) if hasattr(module.self_attn, "k_norm") else keys
    keys = keys.transpose(0, 1)[None]
    rotate = sys.modules[type(guard.model).__module__].apply_rotary_pos_emb
    found: Tensor = rotate(keys, keys, *guard.model.model.rotary_emb(keys, places[None]))[1]
    return found


def by_hand(guard: Guard, tree: PrefixTree, k: int) -> Tensor:
    """The shortcut's verdict: one forward over a cache of the trunk's beginning, and its end at other places."""
    trunk, start, end = torch.tensor([tree.trunk]), tree.starts[k], tree.starts[k] + len(tree.tails[k])
    away = len(tree.trunk) - end
    cache, own = DynamicCache(), DynamicCache()
    states = guard.model(trunk, past_key_values=cache, output_hidden_states=True).hidden_states
    places = torch.arange(start, end - LENGTH)
    for layer, kept in enumerate(cache.layers):
        moved = turned(guard, layer, states[layer][0, places + away], places)
        keys = torch.cat([kept.keys[:, :, :start], moved], 2)
        values = torch.cat([kept.values[:, :, :start], kept.values[:, :, places + away]], 2)
        own.update(keys, values, layer)
    ids, at = torch.tensor([tree.tails[k][-LENGTH:]]), torch.arange(end - LENGTH, end)[None]
    logits: Tensor = guard.model(ids, past_key_values=own, position_ids=at).logits[0, -1, list(guard.token_ids)]
    return logits


@pytest.mark.parametrize("architecture", ["llama", "granite", "qwen3", "gemma2"])
def test_what_is_heard_is_a_forward_over_the_lent_keys(architecture: str) -> None:
    """Transformers rotates by angles in fp32, whatever the model's precision."""
    guard, listener = make_guard(architecture, dtype=torch.float64), Listener()
    trees = trees_of(guard)
    exact = tree_logits(guard.model, guard.token_ids, trees, [0, 0, 1], gate=listener)
    first = 0
    with torch.inference_mode():
        for tree in trees:
            branched = [k for k in range(tree.num_prefixes) if tree.tails[k]]
            assert len(branched) >= 4
            for k in branched:
                assert torch.allclose(listener.heard[first + k], by_hand(guard, tree, k), rtol=0, atol=1e-6)
                assert not torch.allclose(listener.heard[first + k], exact[first + k], rtol=0, atol=1e-4)
            first += tree.num_prefixes
    assert len(listener.heard) == first - sum(not tail for tree in trees for tail in tree.tails)


def test_tails_of_several_lengths_lend_as_many_keys_as_each_has() -> None:
    """As where a tokenizer joins the response's last characters with the template's first ones."""
    guard, listener = make_guard(dtype=torch.float64), Listener()
    tail = list(range(60, 82))
    tree = PrefixTree(list(range(9, 40)) + tail, [10, 15, 20], [tail, tail[-17:], tail[-20:]])
    tree_logits(guard.model, guard.token_ids, [tree], [0], gate=listener)
    with torch.inference_mode():
        for k in range(3):
            assert torch.allclose(listener.heard[k], by_hand(guard, tree, k), rtol=0, atol=1e-6)


@pytest.mark.parametrize("budget", [1, 9, 5000])
def test_branches_are_the_same_after_shortcuts(budget: int) -> None:
    guard = make_guard(dtype=torch.float64)
    trees, listener = trees_of(guard), Listener()
    before = tree_logits(guard.model, guard.token_ids, trees, [0, 0, 1])
    after = tree_logits(guard.model, guard.token_ids, trees, [0, 0, 1], gate=listener, budget=budget)
    assert torch.allclose(before, after, rtol=0, atol=1e-12)
    whole = Listener(passing=False)
    tree_logits(guard.model, guard.token_ids, trees, [0, 0, 1], gate=whole)
    assert whole.heard.keys() == listener.heard.keys()
    assert all(torch.allclose(whole.heard[k], listener.heard[k], rtol=0, atol=1e-12) for k in whole.heard)


def test_only_what_is_wanted_and_long_enough_is_heard() -> None:
    guard = make_guard()
    listener = Listener(wanted=[1, 2])
    tree_logits(guard.model, guard.token_ids, trees_of(guard), [0, 0, 1], gate=listener)
    assert sorted(listener.heard) == [1, 2]
    short, listener = PrefixTree(list(range(9, 40)), [10, 15], [list(range(50, 65)), list(range(50, 66))]), Listener()
    tree_logits(guard.model, guard.token_ids, [short], [0], gate=listener)
    assert sorted(listener.heard) == [1]  # 15 tokens are fewer than eight times two


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("architecture", "known"),
    [("qwen2", True), ("mistral", True), ("gpt_oss", True), ("llama4_text", False), ("gemma3_text", False)],
)
def test_keys_are_moved_where_every_layer_rotates_them_so(architecture: str, known: bool, dtype: torch.dtype) -> None:
    """Llama 4 rotates in some layers only, Gemma 3 in two ways."""
    guard = make_guard(architecture, dtype=dtype)
    with using_prefix_attention(guard.model):
        assert (Runner(guard.model, guard.token_ids).of_shortcuts() is not None) is known
    listener = Listener()
    logits = tree_logits(guard.model, guard.token_ids, trees_of(guard), [0, 0, 1], gate=listener)
    assert bool(torch.isfinite(logits).all())
    assert bool(listener.heard) is known


@pytest.mark.parametrize(
    ("name", "known"), [("PhiForCausalLM", True), ("JetMoeForCausalLM", True), ("DeepseekV3ForCausalLM", False)]
)
def test_keys_that_a_model_rotates_in_part(name: str, known: bool) -> None:
    """Phi rotates the first half of each key; DeepSeek V3 rotates a part before it puts the key together. JetMoe takes
    only what attention returns in one piece."""
    torch.manual_seed(0)
    model = getattr(transformers, name)(tiny_config(name)).eval()
    with using_prefix_attention(model), torch.inference_mode():
        assert (Runner(model, [5, 6]).of_shortcuts() is not None) is known


def test_a_layer_that_rotates_otherwise_is_noticed() -> None:
    """Its keys come out of the last layer only, whatever the function of the model says."""
    guard = make_guard()
    last = guard.model.model.layers[-1].self_attn
    plain = last.forward
    last.forward = lambda hidden_states, position_embeddings, **rest: plain(
        hidden_states, tuple(part.roll(1, -1) for part in position_embeddings), **rest
    )
    with using_prefix_attention(guard.model):
        assert Runner(guard.model, guard.token_ids).of_shortcuts() is None
