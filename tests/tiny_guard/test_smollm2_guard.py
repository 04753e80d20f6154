"""The script that makes a real LLM a guard: what it trains on is what the scorer computes, and labels stay in place."""

from __future__ import annotations

from random import Random

import pytest
import torch

from fastdss import Guard, star_scores
from training import smollm2_guard
from training.batches import IGNORE, label_at
from training.conversations import conversations
from training.smollm2_guard import Trainee, chosen_ends, collate, example, lengthened


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
