"""A verdict that is not a number is never a score."""

from __future__ import annotations

import pytest
import torch

from fastdss import Guard, star_scores
from tests.support.builders import BATCH, make_guard, make_model, make_spec, make_tokenizer


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("place", [0, 1])
def test_a_logit_that_is_not_finite_gives_no_score(bad: float, place: int) -> None:
    """-inf for "unsafe" alone would otherwise be a score of exactly 1."""
    logits = torch.zeros(3, 2)
    logits[1, place] = bad
    scores = make_guard(check=False).scores(logits)
    assert scores.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("method", ["tree", "per_prefix"])
def test_one_prefix_without_a_score_fails_the_row_and_no_other(method: str) -> None:
    """A guard that computes NaN once it reads one token: before it there may be scores, yet the row has failed."""
    guard = make_guard(check=False)
    row = guard.tokenizer("🙂", add_special_tokens=False)["input_ids"][0]
    with torch.no_grad():
        guard.model.get_input_embeddings().weight[row] = torch.nan
    texts = ["all is well", "ok then, so be it 🙂 yes", "no more than that"]
    scores = star_scores(guard, {"prompt": ["a"] * 3, "response": texts}, every=2, method=method)
    assert ["failed" in flags for flags in scores.flags] == [False, True, False]
    assert scores.scores[1][-1].isnan()
    assert scores.final().isnan().tolist() == [False, True, False]
    assert all(scores.scores[i].isfinite().all() for i in (0, 2))
    if method == "per_prefix":
        assert scores.scores[1][0].isfinite(), "the flag must not wait for the first prefix"


def test_a_guard_whose_own_attention_drops_its_softcap_is_refused() -> None:
    """What transformers 5.17 does with Gemma2 unless told otherwise: its verdicts are those of another model."""
    tokenizer = make_tokenizer()
    model = make_model("gemma2", len(tokenizer))
    Guard(model, tokenizer, make_spec())
    model.config._attn_implementation = "sdpa"
    with pytest.raises(ValueError, match=r"sdpa, which ignores its attention softcap.*attn_implementation='eager'"):
        Guard(model, tokenizer, make_spec())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_guard_of_half_precision_with_one_bad_weight_fails_every_row(dtype: torch.dtype) -> None:
    guard = make_guard(dtype=dtype, check=False)
    with torch.no_grad():
        guard.model.model.layers[1].mlp.up_proj.weight[0, 0] = torch.nan
    scores = star_scores(guard, BATCH, method="tree")
    assert all("failed" in flags for flags in scores.flags)
    assert torch.cat(scores.scores).isnan().all()
    with pytest.raises(ValueError, match="the model's own verdict logits are not finite"):
        star_scores(guard, BATCH)  # which checks the guard first


@pytest.mark.parametrize("change", ["tied", "wider"])
def test_heads_of_another_make(change: str) -> None:
    """Embeddings that are the head's weight, and a vocabulary padded beyond the tokenizer's."""
    tokenizer = make_tokenizer()
    model = make_model("llama", len(tokenizer) + (777 if change == "wider" else 0))
    if change == "tied":
        model.config.tie_word_embeddings = True
        model.lm_head.weight = model.model.embed_tokens.weight
    guard = Guard(model, tokenizer, make_spec())
    tree, naive = (
        torch.cat(star_scores(guard, BATCH, every=1, method=method).scores) for method in ("tree", "per_prefix")
    )
    torch.testing.assert_close(tree, naive, rtol=0, atol=1e-6)
