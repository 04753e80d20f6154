"""Answers as trees of tokens: several spellings, words of several tokens, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fastdss import AnswerField, Guard, GuardSpec, star_scores
from fastdss.prefix.engine import reference_logits
from tests.support.builders import BATCH, make_model

from .test_specs import JUDGED, make_tokenizer

SPEC = GuardSpec("g", template=JUDGED, answer_prefix="Safety:", safe=" Safe", unsafe=" Unsafe")


def make(**changes) -> Guard:
    tokenizer = make_tokenizer(JUDGED)
    return Guard(make_model("llama", len(tokenizer)), tokenizer, replace(SPEC, **changes))


def test_every_spelling_is_summed() -> None:
    """Each token that spells a word counts with its share of all that do."""
    guard = make(safe=" no", unsafe=" yes", any_spelling=True)
    spelled = {guard.tokenizer.decode([token]): worth for token, worth in guard.answers.root.options.items()}
    assert {text: worth for text, worth in spelled.items() if text.strip().lower() == "no"}.keys() >= {" no", "No"}
    assert all((text.strip().lower() == "no") == (worth == 1) for text, worth in spelled.items())
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    (ids,) = guard.encode([chat])
    logits = reference_logits(guard.model, guard.token_ids, [ids])
    shares = logits.double().softmax(-1)[0]
    expected = sum(share for share, worth in zip(shares, guard.answers.root.options.values(), strict=True) if worth)
    assert guard.scores(logits).item() == pytest.approx(expected.item(), abs=1e-6)


def test_words_of_several_tokens_multiply() -> None:
    """P(word) is the product of its tokens' shares among those that continue one of the words."""
    guard = make(safe=(" elephant", " elevator"), unsafe=" elegy", split_words=True)
    (ids,) = guard.encode_prefixes([{"role": "user", "content": "Hi"}], "You can.", [8])[: guard.readouts][:1]
    base = ids[: len(ids) - len(guard.answers.tails[0])]
    words = {w: guard.tokenizer("Safety:" + w, add_special_tokens=False)["input_ids"] for w in (
        " elephant", " elevator", " elegy")}  # fmt: skip
    start = len(guard.tokenizer("Safety:", add_special_tokens=False)["input_ids"])
    words = {word: tuple(tokens[start:]) for word, tokens in words.items()}

    def probability(word: str) -> float:
        total = 1.0
        for depth in range(len(words[word])):
            begun = words[word][:depth]
            following = sorted({w[depth] for w in words.values() if w[:depth] == begun and len(w) > depth})
            shares = reference_logits(guard.model, following, [[*base, *begun]])[0].softmax(-1)
            total *= shares[following.index(words[word][depth])].item()
        return total

    found = star_scores(guard, {"prompt": ["Hi"], "response": ["You can."]}).scores[0].item()
    assert found == pytest.approx(probability(" elephant") + probability(" elevator"), abs=1e-6)
    assert sum(map(probability, words)) == pytest.approx(1, abs=1e-6)


def test_a_place_is_read_only_where_answers_part() -> None:
    guard = make(split_words=True, safe=" Safe", unsafe=" Controversial")
    assert guard.readouts == 1
    assert len(guard.token_ids) == 2


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"safe": " elephant"}, r"' elephant' is not one token after 'Safety:'.*split_words=True"),
        ({"safe": ""}, "is not one token"),
        ({"safe": (" Safe", " Unsafe")}, "two verdict words are the same token"),
        ({"safe": "S1", "unsafe": "S10", "split_words": True}, "is how another begins; add what follows it"),
        ({"fields": (AnswerField("Kind:", (" no", " no")),)}, "two values of 'Kind:' are the same token"),
        ({"fields": (AnswerField("Kind:", (" no", " elephant")),)}, "not one token after 'Kind:'"),
    ],
)
def test_what_is_refused(changes: dict, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        make(**changes)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"unsafe": ()}, "needs a safe and an unsafe verdict"),
        ({"other_weight": 1.5}, "other_weight"),
        ({"head": "tail"}, "head: expected one of words, token, sequence"),
        ({"independent": True}, "only of a head's classes"),
    ],
)
def test_specs_that_say_nothing(changes: dict, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        replace(SPEC, **changes)


def test_rounded_shares_never_pass_one() -> None:
    guard = make(safe=(" Safe", " no"), unsafe=" Unsafe")
    logits = torch.tensor([[60.0, 60.0, -60.0]]).repeat(64, 1) + torch.randn(64, 1)
    assert (guard.scores(logits) <= 1).all()
    assert star_scores(guard, BATCH).scores[0].max() <= 1
