"""Earlier fields of the answer are summed out exactly, each distinct token still computed once."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch

from fastdss import Guard, star_scores
from fastdss.guards.spec import AnswerField, GuardSpec
from fastdss.guards.vendors import nemotron_guard, nemotron_reasoning, polyguard, wildguard, with_stated_fields
from fastdss.prefix.engine import reference_logits, tree_logits
from fastdss.prefix.tree import build_tree
from tests.support.builders import ARCHITECTURES, BATCH, make_model

from .test_specs import CARD, JUDGED, make_tokenizer

SPECS: dict[str, tuple[GuardSpec, str | None]] = {
    "wildguard": (wildguard(CARD), None),
    "polyguard": (polyguard(CARD, "You judge."), JUDGED),
    "nemotron": (nemotron_guard(CARD), JUDGED),
    "words of several tokens": (nemotron_reasoning(CARD), JUDGED),
    "three values, then a third verdict": (
        GuardSpec(
            "three",
            fields=(AnswerField("Severity:", (" no", " yes", " Cont")), AnswerField("\nRefusal:", (" no", " yes"))),
            answer_prefix="\nSafety:",
            safe=" Safe",
            unsafe=" Unsafe",
            other=" Cont",
            other_weight=0.25,
        ),
        JUDGED,
    ),
}


def make_guard(name: str, architecture: str = "llama", dtype: torch.dtype = torch.float32) -> Guard:
    spec, template = SPECS[name]
    tokenizer = make_tokenizer(template)
    return Guard(make_model(architecture, len(tokenizer), dtype), tokenizer, spec)


def brute_force(guard: Guard, history: list, prefix: str) -> float:
    """Sum over every answer of its probability, token by token among the tokens that continue one of the answers."""
    chat = [*history, {"role": "assistant", "content": prefix}]
    safe, unsafe, other = guard.spec.words
    worth = dict.fromkeys(safe, 1.0) | dict.fromkeys(unsafe, 0.0) | dict.fromkeys(other, guard.spec.other_weight)
    answers: dict[tuple[int, ...], float] = {}
    for values in product(*(values for _, values in guard.spec.fields)):
        begun = "".join(text + value for (text, _), value in zip(guard.spec.fields, values, strict=True))
        for word, value in worth.items():
            (ids,) = guard.encoder.encode([chat], suffix=begun + guard.spec.answer_prefix + word)
            answers[tuple(ids)] = value

    def expected(begun: tuple[int, ...]) -> float:
        if begun in answers:
            return answers[begun]
        following = sorted({ids[len(begun)] for ids in answers if ids[: len(begun)] == begun})
        shares = [1.0]
        if len(following) > 1:
            shares = reference_logits(guard.model, following, [list(begun)])[0].softmax(-1).tolist()
        return sum(share * expected((*begun, token)) for share, token in zip(shares, following, strict=True))

    (start,) = guard.encoder.encode([chat], suffix=guard.spec.begins)
    return expected(tuple(start))


@pytest.mark.parametrize("name", SPECS)
def test_scores_equal_brute_force(name: str) -> None:
    guard = make_guard(name, dtype=torch.float64)
    guard.model.set_attn_implementation("fastdss_test_dense")
    history, response = [{"role": "user", "content": BATCH["prompt"][1]}], BATCH["response"][1]
    ends = [3, 20, len(response)]
    tree = build_tree(guard.encode_prefixes(history, response, ends))
    scores = guard.scores(tree_logits(guard.model, guard.token_ids, [tree], [0]))
    expected = [brute_force(guard, history, response[:end]) for end in ends]
    assert max(abs(a - b) for a, b in zip(scores.tolist(), expected, strict=True)) <= 1e-12
    assert max(expected) - min(expected) > 1e-4


def greedily(guard: Guard, history: list, prefix: str) -> tuple[str, float]:
    """The answer as a vendor's program gets it, a token at a time, but only of the fields' values; and the verdict's
    share of safe among its words after that."""
    chat, written = [*history, {"role": "assistant", "content": prefix}], ""

    def tokens(text: str) -> list[int]:
        (ids,) = guard.encoder.encode([chat], suffix=text)
        return ids

    for text, values in guard.spec.fields:
        written += text
        begun, left = tokens(written), {value: tokens(written + value) for value in values}
        while len(left) > 1:
            following = sorted({ids[len(begun)] for ids in left.values()})
            logits = reference_logits(guard.model, following, [begun])[0]
            begun = [*begun, following[int(logits.argmax())]]
            left = {value: ids for value, ids in left.items() if ids[: len(begun)] == begun}
        written += next(iter(left))
    begun, (safe, unsafe, other) = tokens(written + guard.spec.answer_prefix), guard.spec.words
    worth = dict.fromkeys(safe, 1.0) | dict.fromkeys(unsafe, 0.0) | dict.fromkeys(other, guard.spec.other_weight)
    words = {word: tokens(written + guard.spec.answer_prefix + word)[len(begun) :] for word in worth}

    def share(word: str) -> float:
        total = 1.0
        for depth, token in enumerate(words[word]):
            following = sorted({ids[depth] for ids in words.values() if ids[:depth] == words[word][:depth]})
            shares = reference_logits(guard.model, following, [[*begun, *words[word][:depth]]])[0].softmax(-1)
            total *= shares[following.index(token)].item()
        return total

    return written, sum(value * share(word) for word, value in worth.items())


@pytest.mark.parametrize("name", SPECS)
def test_the_likeliest_fields_are_those_of_greedy_decoding(name: str) -> None:
    """Per prefix, values of several tokens too; and it is not the sum, nor one value for all prefixes."""
    summed = make_guard(name, dtype=torch.float64)
    summed.model.set_attn_implementation("fastdss_test_dense")
    guard = Guard(summed.model, summed.tokenizer, replace(summed.spec, earlier="likeliest"))
    assert guard.readouts == summed.readouts
    answered, apart = set(), 0.0
    for prompt, response in zip(*BATCH.values(), strict=True):
        history, ends = [{"role": "user", "content": prompt}], sorted({2, len(response) // 2, len(response)})
        tree = build_tree(guard.encode_prefixes(history, response, ends))
        logits = tree_logits(guard.model, guard.token_ids, [tree], [0])
        expected = [greedily(guard, history, response[:end]) for end in ends]
        assert guard.scores(logits).tolist() == pytest.approx([score for _, score in expected], abs=1e-12)
        assert guard.scores(logits, 0.1).shape == (len(ends),)
        answered |= {text for text, _ in expected}
        apart = max(apart, (guard.scores(logits) - summed.scores(logits)).abs().max().item())
    assert len(answered) > 1
    assert apart > 1e-3


def test_equally_likely_values_are_the_first() -> None:
    guard = make_guard("wildguard")
    guard = Guard(guard.model, guard.tokenizer, replace(guard.spec, earlier="likeliest"), check=False)
    logits = torch.zeros(guard.readouts, len(guard.token_ids))
    first = next(row for row, place in enumerate(guard.answers.places) if not place.greedy)
    logits[first] = torch.linspace(-1, 1, len(guard.token_ids))
    no, yes = (guard.token_ids.index(token) for token in guard.answers.places[first].options)
    expected = torch.sigmoid(logits[first, no] - logits[first, yes]).item()
    assert guard.scores(logits).item() == pytest.approx(expected, abs=1e-6)
    assert guard.scores(1e30 * logits, 1e30).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_batch_stream_and_reference_agree(architecture: str) -> None:
    guard = make_guard("wildguard", architecture)
    tree, naive = (star_scores(guard, BATCH, method=method) for method in ("tree", "per_prefix"))
    for i, (prompt, response) in enumerate(zip(*BATCH.values(), strict=True)):
        assert torch.allclose(tree.scores[i], naive.scores[i], rtol=0, atol=1e-6)
        stream = guard.stream(prompt)
        streamed = stream.append(response) + stream.close()
        assert torch.allclose(torch.tensor(streamed), tree.scores[i], rtol=0, atol=1e-6)


def test_the_tail_is_shared_by_all_readings_of_a_prefix() -> None:
    """Seven readings of a prefix cost the tail once, and each field's tokens once for each value before it."""
    tokenizer = make_tokenizer(None)
    fields = tuple(AnswerField(text, (" no", " yes")) for text, _ in SPECS["wildguard"][0].fields)
    spec = replace(SPECS["wildguard"][0], fields=fields)
    guard = Guard(make_model("llama", len(tokenizer)), tokenizer, spec)
    response = "You can call her on 555 0100. Mail anna@example.org later today."
    ends = [len("You can call her"), len("You can call her on 555 0100."), len(response)]
    tree = build_tree(guard.encode_prefixes([{"role": "user", "content": "Hello"}], response, ends))
    stated = Guard(guard.model, guard.tokenizer, with_stated_fields(guard.spec, " no", " no"), check=False)
    one = build_tree(stated.encode_prefixes([{"role": "user", "content": "Hello"}], response, ends))
    assert tree.num_prefixes == 7 * one.num_prefixes == 21
    fields = len(guard.tokenizer("\nResponse refusal: no\nHarmful response: no", add_special_tokens=False)["input_ids"])
    assert one.num_tokens < tree.num_tokens < one.num_tokens + 3 * (4 + 1) * fields
    assert tree.num_naive_tokens > 6 * one.num_naive_tokens


def test_stated_values_are_the_conditional() -> None:
    stated = with_stated_fields(SPECS["wildguard"][0], " yes", " no")
    assert stated.begins == "Harmful request: yes\nResponse refusal: no\nHarmful response:"
    assert not stated.fields
    assert stated.note
    assert with_stated_fields(replace(SPECS["wildguard"][0], earlier="likeliest"), " yes", " no") == stated
    with pytest.raises(ValueError, match="expected one of"):
        with_stated_fields(SPECS["wildguard"][0], " maybe", " no")
    with pytest.raises(ValueError, match="shorter than"):
        with_stated_fields(SPECS["wildguard"][0], " yes")


def test_a_value_that_is_no_single_token_is_an_error() -> None:
    tokenizer = make_tokenizer(JUDGED)
    fields = (AnswerField("Kind:", (" no", " elephant")),)
    spec = GuardSpec("bad", fields=fields, answer_prefix="\nX:", safe=" no", unsafe=" yes")
    with pytest.raises(ValueError, match=r"' elephant' is not one token after 'Kind:'"):
        Guard(make_model("llama", len(tokenizer)), tokenizer, spec)


def test_a_logit_that_is_not_finite_fails_its_prefix_only() -> None:
    guard = make_guard("wildguard")
    logits = torch.zeros(2 * guard.readouts, len(guard.token_ids))
    logits[3, -1] = float("inf")
    assert guard.scores(logits).isnan().tolist() == [True, False]
    assert guard.scores(logits)[1].item() == pytest.approx(0.5)


def test_truncated_and_together_with_a_guard_of_one_field() -> None:
    """The limit counts a prefix's longest rendering; a mean of guards keeps the prefixes that all of them saw."""
    marginal = make_guard("wildguard")
    stated = Guard(marginal.model, marginal.tokenizer, with_stated_fields(marginal.spec, " yes", " no"))
    batch = {"prompt": ["Hello"] * 2, "response": ["You can call her later today. " * 12, "No."]}
    alone, other, both = (
        star_scores(guards, batch, max_tokens=340) for guards in (marginal, stated, [marginal, stated])
    )
    assert both.flags[0] == alone.flags[0] == frozenset({"truncated"})
    assert 0 < len(both.ends[0]) <= min(len(alone.ends[0]), len(other.ends[0]))
    history = [{"role": "user", "content": "Hello"}]
    assert max(map(len, marginal.encode_prefixes(history, batch["response"][0], alone.ends[0]))) <= 340
    naive = star_scores([marginal, stated], batch, max_tokens=340, method="per_prefix")
    for a, b in zip(both.scores, naive.scores, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-6)
