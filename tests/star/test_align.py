"""Chunk scores reach the policy's tokens by character offsets, whatever tokenizer and template it has."""

from __future__ import annotations

import pytest
import torch

from fastdss import StarScores, star_scores
from fastdss.star.align import pad_rows
from tests.support.builders import BATCH, TOKENIZERS, make_guard, make_tokenizer
from tests.support.scored import by_fields

TRIM = "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|end|>{% endfor %}"
NO_END = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"


def scored(response: str, ends: list[int], scores: list[float], flags=()) -> StarScores:
    history = [{"role": "user", "content": "Hello there."}]
    return by_fields([scores], [ends], [history], [response], [flags])


def pieces(tokenizer, row) -> list[tuple[str, float]]:
    """The response's tokens as text, and their weights."""
    return [
        (tokenizer.decode([i]), w)
        for i, label, w in zip(row["input_ids"], row["labels"], row["token_weights"], strict=True)
        if label != -100
    ]


def by_characters(response, ends, scores) -> list[float]:
    """Each character's score, straight from the definition: that of the first prefix that contains it."""
    return [next((s for e, s in zip(ends, scores, strict=True) if e > c), scores[-1]) for c in range(len(response))]


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("template", [None, TRIM])
@pytest.mark.parametrize("response", BATCH["response"])
def test_every_token_has_the_score_of_its_last_character(kind, template, response):
    tokenizer = make_tokenizer(kind)
    scores = star_scores(make_guard(), {"prompt": ["Hello"], "response": [response]}, every=2)
    values = scores.scores[0].tolist()
    row = scores.token_weights(tokenizer, template=template)[0]
    labelled = [t for t, label in enumerate(row["labels"]) if label != -100]
    assert labelled == list(range(labelled[0], labelled[-1] + 1))
    *body, end = labelled
    assert tokenizer.convert_ids_to_tokens(row["input_ids"][end]) == "<|end|>"
    assert row["token_weights"][end] == pytest.approx(values[-1])
    shown = response.strip() if template else response
    expected = by_characters(response, scores.ends[0], values)[response.index(shown) :]
    text = tokenizer.decode([row["input_ids"][t] for t in body], clean_up_tokenization_spaces=False)
    assert text.strip("\n ") == shown.strip("\n ")
    read = 0
    for t in body:  # a token's text is known once the bytes before it are: decode growing prefixes
        done = tokenizer.decode([row["input_ids"][s] for s in body if s <= t], clean_up_tokenization_spaces=False)
        if "\ufffd" in done:
            continue  # in the middle of a character
        read = len(done.lstrip(" \n")) + len(shown) - len(shown.lstrip(" \n"))
        if done.strip() and not done[-1].isspace():
            assert row["token_weights"][t] == pytest.approx(expected[read - 1]), (t, done)
    assert [w for t, w in enumerate(row["token_weights"]) if t not in labelled] == [0.0] * (
        len(row["labels"]) - len(labelled)
    )


@pytest.mark.parametrize(("across", "expected"), [("last", 0.9), ("min", 0.2), ("mean", (0.8 + 0.2 + 0.9) / 3)])
def test_a_token_across_chunks(across, expected):
    """Boundaries after each letter of one token "safe"."""
    tokenizer = make_tokenizer()
    scores = scored("safe", [2, 3, 4], [0.8, 0.2, 0.9])
    ((text, weight), _) = pieces(tokenizer, scores.token_weights(tokenizer, across=across)[0])
    assert text == "safe"
    assert weight == pytest.approx(expected)


def test_without_an_end_of_turn_token_only_the_text_counts():
    tokenizer = make_tokenizer()
    scores = scored("You can wait.", [3, 13], [0.25, 0.75])
    row = scores.token_weights(tokenizer, template=NO_END)[0]
    assert pieces(tokenizer, row)[-1][1] == 0.75
    assert "".join(text for text, _ in pieces(tokenizer, row)).strip() == "You can wait."
    row = scores.token_weights(tokenizer, end_of_turn=False)[0]
    assert pieces(tokenizer, row)[-1][0] == "."


def test_an_empty_response_does_not_teach_to_end_at_once():
    tokenizer = make_tokenizer()
    row = scored("", [0], [0.5], ["empty"]).token_weights(tokenizer)[0]
    assert pieces(tokenizer, row) == []


def test_unseen_text_gets_weight_zero():
    tokenizer = make_tokenizer()
    row = scored("You can call her.", [7], [0.5], ["truncated"]).token_weights(tokenizer)[0]
    seen, text = [], ""
    for piece, weight in pieces(tokenizer, row):
        text += piece
        seen.append((len(text) <= 7, weight))
    assert {True, False} == {inside for inside, _ in seen}
    assert all(weight == (0.5 if inside else 0.0) for inside, weight in seen)


@pytest.mark.parametrize(("side", "end"), [("right", 8), ("left", None)])
def test_truncation_is_recorded(side, end):
    tokenizer = make_tokenizer()
    scores = scored("You can call her.", [7, 17], [0.5, 0.25])
    whole = scores.token_weights(tokenizer)
    cut = scores.token_weights(tokenizer, max_length=8, truncation_side=side)
    assert (whole.truncated, cut.truncated) == ([False], [True])
    for name, values in whole[0].items():
        assert cut[0][name] == (values[:8] if side == "right" else values[-8:])


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_keeps_positions_aligned(side):
    tokenizer = make_tokenizer()
    weights = star_scores(make_guard(), BATCH).token_weights(tokenizer)
    batch = weights.pad([2, 1], side=side, multiple_of=8)
    lengths = [len(weights[i]["input_ids"]) for i in (2, 1)]
    assert batch["input_ids"].shape[1] % 8 == 0
    for b, i in enumerate((2, 1)):
        n = lengths[b]
        here = slice(0, n) if side == "right" else slice(batch["labels"].shape[1] - n, None)
        for name, tensor in batch.items():
            assert tensor[b, here].tolist() == pytest.approx(weights[i][name])
        outside = torch.ones(batch["labels"].shape[1], dtype=torch.bool)
        outside[here] = False
        assert (batch["labels"][b, outside] == -100).all()
        assert not batch["attention_mask"][b, outside].any()
        assert not batch["token_weights"][b, outside].any()
        assert (batch["input_ids"][b, outside] == tokenizer.pad_token_id).all()
    with pytest.raises(ValueError, match="side"):
        pad_rows(list(weights), 0, side="top")


def test_a_template_that_rewrites_the_response_is_an_error():
    upper = "{% for m in messages %}<|start|>{{ m['content'] | upper }}<|end|>{% endfor %}"
    with pytest.raises(ValueError, match=r"row 0: .*rewrites the text of message"):
        scored("You can call her.", [7, 17], [0.5, 0.25]).token_weights(make_tokenizer(), template=upper)


@pytest.mark.parametrize(("name", "value"), [("across", "max"), ("truncation_side", "top"), ("failed", "safe")])
def test_options_are_checked(name, value):
    with pytest.raises(ValueError, match=rf"{name}: expected .*, got '{value}'"):
        scored("You", [3], [0.5]).token_weights(make_tokenizer(), **{name: value})


def test_a_tokenizer_without_offsets_is_an_error():
    class Slow:
        chat_template = "{{ messages[-1]['content'] }}"
        added_tokens_decoder: dict = {}  # noqa: RUF012
        is_fast = False

        def apply_chat_template(self, chats, **_):
            return [chat[-1]["content"] for chat in chats]

    with pytest.raises(ValueError, match="a fast tokenizer is needed"):
        scored("You", [3], [0.5]).token_weights(Slow())
