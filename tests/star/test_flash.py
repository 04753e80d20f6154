"""The two calls of flash-attn and their merge, held by a stand-in with flash-attn's contract; on a GPU for real."""

from __future__ import annotations

import inspect
import math
import random

import pytest
import torch
from torch.nn.attention import varlen

import fastdss.prefix.flash_attention as flash
from fastdss import ScoringOptions, star_scores
from fastdss.prefix.attention import KVStore, PrefixPlan, attend_in_order
from fastdss.prefix.engine import reference_logits, tree_logits
from fastdss.prefix.packing import Segment
from fastdss.prefix.tree import build_tree
from tests.support.builders import BATCH, make_guard
from tests.support.flash import FlashStandIn

PLAIN = ("llama", "granite", "qwen3")  # grouped heads; Granite scales scores in its own way
VERSIONS = {"FA2": FlashStandIn, "FA3": lambda: FlashStandIn(-math.inf, tile=128)}


@pytest.fixture
def library(monkeypatch):
    """Puts a stand-in in torch's place."""

    def use(version: str = "FA2") -> FlashStandIn:
        made = VERSIONS[version]()
        monkeypatch.setattr(varlen, "varlen_attn", made)
        monkeypatch.setattr(flash, "flash_problem", lambda query, value: None)
        return made

    return use


def test_the_installed_torch_has_what_is_called() -> None:
    """Each keyword of both calls, and the stand-in takes no other."""
    real = inspect.signature(varlen.varlen_attn).parameters
    if torch.__version__ < "2.12":
        assert not set(real) >= flash._KEYWORDS  # and test_where_it_cannot_run_it_says_so
        return
    ours = inspect.signature(FlashStandIn.__call__).parameters
    assert set(ours) - {"self"} <= set(real)
    assert set(real) >= flash._KEYWORDS
    assert varlen.AuxRequest(lse=True).lse


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("architecture", PLAIN)
def test_fp32_scores_equal_one_forward_per_prefix(library, architecture: str, version: str) -> None:
    used = library(version)
    guard = make_guard(architecture)
    ours = star_scores(guard, BATCH, every=2, backend="flash", budget=90)
    naive = star_scores(guard, BATCH, every=2, method="per_prefix")
    for a, b in zip(ours.scores, naive.scores, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-6)
    assert {causal for _, causal in used.calls} == {True, False}


@pytest.mark.parametrize("architecture", PLAIN)
def test_fp64_logits_equal_a_dense_fp64_forward(library, architecture: str) -> None:
    library("FA3")
    guard = make_guard(architecture, "unsplit", torch.float64)
    guard.model.set_attn_implementation("fastdss_test_dense")
    rows = [
        guard.encode_prefixes([{"role": "user", "content": prompt}], text, [2, len(text) // 2, len(text)])
        for prompt, text in zip(*BATCH.values(), strict=True)
    ]
    trees = [build_tree(row) for row in rows]
    ours = tree_logits(guard.model, guard.token_ids, trees, [0, 1, 1, 2], budget=100, attend=flash.attend_by_flash)
    expected = reference_logits(guard.model, guard.token_ids, [ids for row in rows for ids in row])
    assert (guard.scores(ours) - guard.scores(expected)).abs().max() <= 1e-12


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("seed", range(12))
def test_any_micro_batch_is_attended_as_in_order(library, version: str, seed: int) -> None:
    """Segments of three slots in any order, some with copies, some that begin a slot; and the store afterwards."""
    library(version)
    draw = random.Random(seed)
    bases, filled, segments = [0, 40, 80], [draw.choice([0, 3, 20]) for _ in range(3)], []
    for _ in range(draw.randint(1, 9)):
        slot = draw.randrange(3)
        start, n = draw.randint(0, filled[slot]), draw.randint(1, 6)
        copies = tuple(bases[i] for i in range(3) if i != slot and filled[i] >= start and draw.random() < 0.2)
        for i in (slot, *(bases.index(base) for base in copies)):
            filled[i] = max(filled[i], start + n)
        segments.append(Segment(bases[slot], start, [0] * n, copies=copies))
    torch.manual_seed(seed)
    size = sum(len(segment.ids) for segment in segments)
    new = [torch.randn(1, size, heads, 8, dtype=torch.float64).transpose(1, 2) for heads in (4, 2, 2)]
    kept = torch.randn(2, 2, 120, 8, dtype=torch.float64)
    found = []
    for attend in (flash.attend_by_flash, attend_in_order):
        store = KVStore(120)
        for target, source in zip(store.layer(0, new[1], new[2]), kept, strict=True):
            target.copy_(source)
        plan = PrefixPlan(segments, store, attend, {})
        found.append((attend(plan, 0, *new, 0.3, None, None), *store.layers[0]))
    for ours, theirs in zip(*found, strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-13)


def test_what_was_never_written_reaches_nobody(library, monkeypatch) -> None:
    """FA3 multiplies whole tiles: a store of anything but numbers would show."""
    library("FA3")
    guard = make_guard()
    whole = star_scores(guard, BATCH, backend="flash")
    assert all(torch.isfinite(row).all() for row in whole.scores)
    zeros = torch.Tensor.new_zeros
    monkeypatch.setattr(torch.Tensor, "new_zeros", lambda self, *size: zeros(self, *size).fill_(torch.nan))
    assert not all(torch.isfinite(row).all() for row in star_scores(make_guard(), BATCH, backend="flash").scores)


def test_the_merge_rounds_once() -> None:
    """bf16 halves of one softmax: as near to the float64 whole as rounding both halves and the whole allows."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(50, 2, 16) for _ in range(3))
    whole = (q.double().transpose(0, 1) @ k.double().permute(1, 2, 0)).softmax(-1) @ v.double().transpose(0, 1)
    halves = []
    for some in (slice(0, 20), slice(20, 50)):
        scores = q.transpose(0, 1) @ k[some].permute(1, 2, 0)
        halves += [(scores.softmax(-1) @ v[some].transpose(0, 1)).transpose(0, 1).bfloat16(), scores.logsumexp(-1)]
    found = flash.merge(*halves, None)
    assert found.dtype == torch.float32
    assert (found.transpose(0, 1).double() - whole).abs().max() <= 2**-8 * v.abs().max()
    kept, kept_lse, own, own_lse = (x.double() for x in halves)
    weights = torch.stack([kept_lse, own_lse]).softmax(0)[..., None].transpose(1, 2)
    assert (found.double() - (weights[0] * kept + weights[1] * own)).abs().max() <= 1e-6


@pytest.mark.parametrize("lse", [math.inf, -math.inf, math.nan])
def test_a_token_with_an_empty_slot_keeps_its_own(lse: float) -> None:
    own, garbage = torch.randn(3, 2, 8), torch.full((3, 2, 8), math.nan)
    kept_lse, own_lse = torch.full((2, 3), lse), torch.randn(2, 3)
    assert torch.equal(flash.merge(garbage, kept_lse, own, own_lse, torch.ones(3, 1, 1, dtype=torch.bool)), own)


@pytest.mark.parametrize(
    ("architecture", "what"),
    [("gemma2", "softcap"), ("mistral", "window"), ("gpt_oss", "sinks"), ("llama4_text", "chunks")],
)
def test_what_it_does_not_know_is_refused(library, architecture: str, what: str) -> None:
    library()
    with pytest.raises(ValueError, match=f"flash knows no {what}.*use backend='triton'"):
        star_scores(make_guard(architecture), BATCH, backend="flash")


def test_a_window_that_hides_nothing_is_none(library) -> None:
    library()
    guard = make_guard("mistral")
    guard.model.config.sliding_window = 1000
    for layer in guard.model.model.layers:
        layer.self_attn.sliding_window = 1000
    ours, naive = star_scores(guard, BATCH, backend="flash"), star_scores(guard, BATCH, method="per_prefix")
    for a, b in zip(ours.scores, naive.scores, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-6)


def test_where_it_cannot_run_it_says_so() -> None:
    with pytest.raises(
        ValueError, match=r"backend: flash needs a (GPU and a model in bf|torch whose).*use backend='triton'"
    ):
        star_scores(make_guard(), BATCH, backend="flash")
    with pytest.raises(ValueError, match=r"per_prefix.*got 'flash'"):
        ScoringOptions(backend="flash", method="per_prefix")


def test_an_older_torch_is_named(monkeypatch) -> None:
    monkeypatch.setattr(varlen, "varlen_attn", lambda query, key, value, *, return_aux=None, scale=None: None)
    rows = torch.zeros(1, 1, 1, 8)
    assert "knows enable_gqa, seqused_k, window_size, got torch" in flash.flash_problem(rows, rows)


def test_auto_never_takes_it(library) -> None:
    """Not before a GPU has shown where it wins."""
    used = library()
    star_scores(make_guard(), BATCH)
    assert used.calls == []
