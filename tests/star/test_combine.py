"""Several guards, temperatures, and the static verdict."""

from __future__ import annotations

import pytest
import torch

from fastdss import star_scores
from tests.support.builders import BATCH, TEMPLATE, make_guard, make_spec, make_tokenizer


def test_several_guards_are_averaged_or_the_strictest_decides():
    guards = [make_guard("llama", seed=0), make_guard("qwen3", "gpt2", seed=1)]
    alone = [star_scores(guard, BATCH) for guard in guards]
    for combine in ("mean", "min"):
        both = star_scores(guards, BATCH, combine=combine)
        for i, scores in enumerate(both.scores):
            pair = torch.stack([a.scores[i] for a in alone])
            expected = pair.mean(0) if combine == "mean" else pair.amin(0)
            assert torch.allclose(scores, expected, rtol=0, atol=1e-6)
    with pytest.raises(TypeError, match="non-empty sequence of Guards"):
        star_scores([], BATCH)


def test_guards_with_different_contexts_keep_the_prefixes_that_all_saw():
    guards = [make_guard(), make_guard(spec=make_spec(template=TEMPLATE.replace("Task:", "Task: " + "word " * 60)))]
    batch = {"prompt": ["Hello"], "response": ["You can call her. " * 60]}
    both, long = (star_scores(g, batch, max_tokens=400) for g in (guards, guards[1]))
    assert both.ends == long.ends
    assert len(star_scores(guards[0], batch, max_tokens=400).ends[0]) > len(both.ends[0])


def test_a_plain_model_needs_tokenizer_and_spec():
    guard = make_guard()
    scores = star_scores(guard.model, BATCH, tokenizer=make_tokenizer(), spec=make_spec())
    assert torch.equal(scores.scores[0], star_scores(guard, BATCH).scores[0])
    with pytest.raises(ValueError, match="no GuardSpec is known"):
        star_scores(guard.model, BATCH, tokenizer=make_tokenizer())


def test_sharpening_divides_the_logits():
    guard = make_guard()
    plain, sharp = (star_scores(guard, BATCH, sharpen=t).scores[0] for t in (1.0, 0.25))
    assert torch.allclose(torch.logit(sharp), torch.logit(plain) * 4, rtol=1e-4, atol=1e-4)


def test_the_papers_preset_gives_the_released_codes_scores():
    """Raw scores and what the released code's sampling settings made of them."""
    from fastdss.star.scoring import sharpened

    guard = make_guard()
    raw = torch.tensor([0.36, 0.38, 0.50, 0.62, 0.64], dtype=torch.float64)
    logits = torch.stack([torch.logit(raw), torch.zeros_like(raw)], dim=-1)
    released = sharpened(guard, logits, "paper")
    assert released.tolist() == pytest.approx([0.0, 0.115, 0.5, 0.885, 1.0], abs=1e-3)


def test_the_static_verdict_is_the_last_score():
    scores = star_scores(make_guard(), BATCH)
    assert scores.final().tolist() == [row[-1].item() for row in scores.scores]


def test_every_assistant_turn_can_be_judged():
    chat = [
        {"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello there. How are you today?"},
        {"role": "user", "content": "How do I reach Anna?"},
        {"role": "assistant", "content": "You can call her on 555 0100."},
    ]  # fmt: skip
    guard = make_guard()
    short = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "No."}]
    every = star_scores(guard, {"messages": [chat, short]}, turns="all")
    assert every.rows == [0, 0, 1]
    assert every.responses == [chat[2]["content"], chat[4]["content"], "No."]
    for i, messages in enumerate((chat[:3], chat, short)):
        last = star_scores(guard, {"messages": [messages]})
        assert last.rows == [0]
        assert torch.allclose(every.scores[i], last.scores[0], rtol=0, atol=1e-6)
    assert len(every.token_weights(make_tokenizer())) == 2  # a conversation is one training row
