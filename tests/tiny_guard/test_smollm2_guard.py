"""The script that makes a real LLM a guard: what it trains on is what the scorer computes, and labels stay in place."""

from __future__ import annotations

from random import Random

import pytest
import torch

from fastdss import Guard, star_scores
from tests.support.builders import make_guard
from training import smollm2_guard
from training.batches import IGNORE, label_at
from training.conversations import conversations
from training.smollm2_guard import Trainee, chosen_ends, collate, example, lengthened, losses, resized


@pytest.fixture(scope="module")
def guard() -> Guard:
    return Guard.tiny()


def test_verdicts_in_training_are_those_of_the_scorer(guard: Guard, monkeypatch) -> None:
    monkeypatch.setattr(smollm2_guard, "TAG", -4)  # the built-in guard has four layers
    rng = Random(1)
    items = [lengthened(rng, item, words) for item, words in zip(conversations(0, 3, 3), (0, 60, 0), strict=True)]
    ends = [chosen_ends(rng, item, 4) for item in items]
    batch = collate([example(guard, item, cuts) for item, cuts in zip(items, ends, strict=True)], 0)
    with torch.no_grad():
        logits, complete, tags = Trainee(guard)(batch)
    scored = star_scores(guard, {"messages": [item.messages() for item in items]}, ends=ends)
    expected = -torch.logit(torch.cat(scored.scores).double(), eps=1e-7)
    near = expected.abs() < 12  # beyond, a score in fp32 does not tell how far
    assert near.sum() >= 6
    # training multiplies in bfloat16, whose 8 bits move these logits by up to a few hundredths of their size
    assert torch.allclose(logits.double()[near], expected[near], rtol=0.1, atol=0.3)
    assert batch.labels.tolist() == [
        label_at(item, end) for item, cuts in zip(items, ends, strict=True) for end in cuts
    ]
    assert complete.shape == tags.shape == batch.complete.shape


def test_a_lengthened_conversation_keeps_its_disclosure() -> None:
    rng = Random(2)
    for item in conversations(0, 0, 40):
        longer = lengthened(rng, item, 120)
        assert len(longer.response.split()) >= 120
        before = [item.response[start:stop] for start, stop in item.items]
        assert [longer.response[start:stop] for start, stop in longer.items] == before


def test_tokens_of_a_disclosure_are_labelled(guard: Guard) -> None:
    item = next(one for one in conversations(0, 0, 40) if one.items)
    told = example(guard, item, [len(item.response)])
    ids = [told.tree.trunk[place] for place, _, tag in told.tokens if tag == 1]
    start, stop = item.items[0]
    half = item.response[(start + stop) // 2 : stop]
    assert half[-3:] in guard.tokenizer.decode(ids)
    assert [complete for _, complete, _ in told.tokens if complete != IGNORE][-1] == 1
    assert told.tokens[0][1] == 0
    assert [place for place, _, _ in told.tokens] == sorted({place for place, _, _ in told.tokens})


def test_without_ends_tokens_are_learnt_from_and_no_verdict_is_read(guard: Guard, monkeypatch) -> None:
    monkeypatch.setattr(smollm2_guard, "TAG", -4)
    item = next(one for one in conversations(0, 0, 40) if one.items)
    told, judged = example(guard, item, []), example(guard, item, [len(item.response)])
    assert told.tokens == judged.tokens
    assert told.tree.trunk == judged.tree.trunk[: told.tokens[-1][0] + 1]
    assert told.verdicts == [IGNORE]
    batch = collate([told], 0)
    assert not batch.judged
    assert collate([judged], 0).judged
    loss, _ = losses(Trainee(guard), batch)
    assert torch.isfinite(loss)


@pytest.mark.parametrize("words", [12, 40, 200])
def test_a_conversation_cut_or_lengthened_keeps_its_first_disclosure_whole(words: int) -> None:
    rng = Random(3)
    for item in conversations(0, 0, 60):
        other = resized(rng, item, words)
        assert words <= len(other.response.split()) + 1
        assert bool(other.items) == bool(item.items)
        if len(item.response.split()) > words:
            assert other.response in item.response
            assert len(other.response.split()) <= words + 12  # disclosures are not cut in two
        if item.items:
            start, stop = item.items[0]
            low, high = other.items[0]
            assert other.response[low:high] == item.response[start:stop]


@pytest.mark.long
def test_a_few_verdicts_can_be_learnt_by_heart(monkeypatch) -> None:
    """Nothing is wrong with labels, places, masks and gradients where a small random model learns them in no time."""
    monkeypatch.setattr(smollm2_guard, "COMPLETE", -1)
    monkeypatch.setattr(smollm2_guard, "TAG", -1)
    torch.manual_seed(0)
    guard, rng = make_guard(), Random(4)
    items = [resized(rng, item, 12) for item in conversations(0, 0, 12)]
    batch = collate([example(guard, item, chosen_ends(rng, item, 2)) for item in items], 0)
    assert 0.2 < batch.labels.mean() < 0.8
    trainee = Trainee(guard).train()
    optimizer = torch.optim.AdamW(trainee.parameters(), lr=1e-2)
    for _ in range(60):
        loss, watched = losses(trainee, batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert watched[0] < 0.1
    assert watched[1] == 1
