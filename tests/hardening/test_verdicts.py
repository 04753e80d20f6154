"""A verdict that is not a number is never a score."""

from __future__ import annotations

import pytest
import torch
from star.builders import make_guard, make_model, make_spec, make_tokenizer

from fastdss import Guard, star_scores


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("place", [0, 1])
def test_a_logit_that_is_not_finite_gives_no_score(bad: float, place: int) -> None:
    """-inf for "unsafe" alone would otherwise be a score of exactly 1."""
    logits = torch.zeros(3, 2)
    logits[1, place] = bad
    scores = make_guard(check=False).scores(logits)
    assert scores.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("impl", ["tree", "reference"])
def test_one_prefix_without_a_score_fails_the_row_and_no_other(impl: str) -> None:
    """A guard that computes NaN once it reads one token: before it there may be scores, yet the row has failed."""
    guard = make_guard(check=False)
    row = guard.tokenizer("🙂", add_special_tokens=False)["input_ids"][0]
    with torch.no_grad():
        guard.model.get_input_embeddings().weight[row] = torch.nan
    texts = ["all is well", "ok then, so be it 🙂 yes", "no more than that"]
    scores = star_scores(guard, {"prompt": ["a"] * 3, "response": texts}, every=2, impl=impl)
    assert ["failed" in flags for flags in scores.flags] == [False, True, False]
    assert scores.scores[1][-1].isnan()
    assert scores.final().isnan().tolist() == [False, True, False]
    assert all(scores.scores[i].isfinite().all() for i in (0, 2))
    if impl == "reference":
        assert scores.scores[1][0].isfinite(), "the flag must not wait for the first prefix"


def test_a_guard_whose_own_attention_drops_its_softcap_is_refused() -> None:
    """What transformers 5.17 does with Gemma2 unless told otherwise: its verdicts are those of another model."""
    tokenizer = make_tokenizer()
    model = make_model("gemma2", len(tokenizer))
    Guard(model, tokenizer, make_spec())
    model.config._attn_implementation = "sdpa"
    with pytest.raises(ValueError, match=r"sdpa, which ignores its attention softcap.*attn_implementation='eager'"):
        Guard(model, tokenizer, make_spec())
