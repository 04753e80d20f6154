"""A stream gives the scores of the batch, however the text is cut up, on every architecture."""

from __future__ import annotations

import pytest
import torch

import fastdss
import fastdss.star.stream
from fastdss import star_scores
from fastdss.prefix.engine import reference_logits
from tests.support.builders import ARCHITECTURES, BATCH, TOKENIZERS, make_guard, make_tokenizer


def feed(stream, text: str, size: int) -> list[float]:
    scores = []
    for left in range(0, len(text), size):
        scores += stream.append(text[left : left + size])
    return scores + stream.close()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_stream_equals_the_batch(architecture, kind):
    """One character, a few, everything at once: the same boundaries and scores."""
    guard = make_guard(architecture, kind)
    batch = star_scores(guard, BATCH, every=2)
    for i, (prompt, response) in enumerate(zip(*BATCH.values(), strict=True)):
        stream = guard.stream(prompt, every=2)
        scores = feed(stream, response, (1, 5, 1000, 7)[i])
        assert stream.ends == batch.ends[i]
        assert stream.scores == scores
        assert len(stream.seconds) == len(scores)
        assert torch.allclose(torch.tensor(scores), batch.scores[i], rtol=0, atol=1e-6)


UNITS = ("word", "token", "sentence", "character")
TEXTS = [
    *BATCH["response"],
    'He said "Wait!" (twice). And so? Yes... No?! Then:\n\n- one\n- two.\n',
    "  leading blanks\t\tand tabs ,  then . a lone stop  ",
    "。日本語の文です。次の文！「はい？」 end",
    "it's 12345678 o'clock,we'll see'em",
]


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_every_unit_has_the_batchs_boundaries_however_the_text_arrives(unit, kind):
    """Also for a tokenizer that merges across words, whose tokens are settled by nothing but the end."""
    guard = make_guard(kind=kind)
    for every in (1, 3) if unit != "character" else (7,):
        batch = star_scores(guard, {"prompt": ["Hello"] * len(TEXTS), "response": TEXTS}, every=every, unit=unit)
        for i, text in enumerate(TEXTS):
            stream = guard.stream("Hello", every=every, unit=unit)
            scores = feed(stream, text, (1, 2, 1000, 3)[i % 4])
            assert stream.ends == batch.ends[i], text
            assert torch.allclose(torch.tensor(scores), batch.scores[i], rtol=0, atol=1e-6)


@pytest.mark.parametrize("unit", UNITS)
def test_boundaries_come_while_the_text_is_written(unit):
    """Not all of them at the end: a word needs the blank after it, a token the next word, a sentence what follows."""
    stream = make_guard(kind="gpt2").stream("Hello", every=1, unit=unit)
    stream.append("You can call. Or")
    assert stream.ends[-1] == {"word": 13, "token": 13, "sentence": 13, "character": 16}[unit]
    stream.append(" mail")
    assert stream.ends[-1] == {"word": 16, "token": 16, "sentence": 13, "character": 21}[unit]


def test_the_policys_tokens_may_be_the_units():
    guard, policy = make_guard(), make_tokenizer("metaspace")
    text = BATCH["response"][1]
    batch = star_scores(guard, {"prompt": ["Hello"], "response": [text]}, every=2, unit="token", unit_tokenizer=policy)
    stream = guard.stream("Hello", every=2, unit="token", unit_tokenizer=policy)
    assert feed(stream, text, 4) == pytest.approx(batch.scores[0].tolist(), abs=1e-6)
    assert stream.ends == batch.ends[0]
    assert stream.fork().unit_tokenizer is policy


def test_a_tokenizer_that_goes_back_on_a_boundary_is_an_error(monkeypatch):
    guard = make_guard()
    stream = guard.stream("Hello", every=1, unit="token")
    stream.append("You can call her on ")
    assert stream.ends
    monkeypatch.setattr(fastdss.star.stream, "settled_spans", lambda tokenizer, text: [(0, 2), (2, 5), (5, 9)])
    with pytest.raises(ValueError, match="moved a boundary"):
        stream.append("555")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_fp64_stream_equals_dense_fp64_forwards(architecture):
    guard = make_guard(architecture, "unsplit", torch.float64)
    guard.model.set_attn_implementation("fastdss_test_dense")
    stream = guard.stream("Hello", every=2)
    scores = feed(stream, BATCH["response"][1], 9)
    renderings = guard.encode_prefixes(stream.history, BATCH["response"][1], stream.ends)
    expected = guard.scores(reference_logits(guard.model, guard.token_ids, renderings))
    assert max(abs(a - b) for a, b in zip(scores, expected.tolist(), strict=True)) <= 1e-12


def test_an_empty_stream_has_the_score_of_the_empty_response():
    guard = make_guard()
    scores = guard.stream("Hello").close()
    assert scores == pytest.approx(
        star_scores(guard, {"prompt": ["Hello"], "response": [""]}).scores[0].tolist(), abs=1e-6
    )


def test_forks_are_independent():
    guard = make_guard()
    stream = guard.stream("Hello", every=1)
    stream.append("You can call her ")
    fork = stream.fork()
    ends = {"a": "on 555 0100.", "b": "later today, or not at all."}
    scores = {"a": feed(stream, ends["a"], 3), "b": feed(fork, ends["b"], 3)}
    for name, end in ends.items():
        batch = star_scores(guard, {"prompt": ["Hello"], "response": ["You can call her " + end]}, every=1)
        assert torch.allclose(torch.tensor(scores[name]), batch.scores[0][4:], rtol=0, atol=1e-6)


def test_the_store_grows():
    guard = make_guard()
    text = "call her. " * 180
    stream = guard.stream("Hello", every=30)
    scores, capacities = [], set()
    for left in range(0, len(text), 50):
        scores += stream.append(text[left : left + 50])
        capacities.add(stream.company._texts._slots.store.capacity)
    scores += stream.close()
    assert len(capacities) > 2
    batch = star_scores(guard, {"prompt": ["Hello"], "response": [text]}, every=30)
    assert torch.allclose(torch.tensor(scores), batch.scores[0], rtol=0, atol=1e-6)


def test_each_boundary_computes_new_tokens_and_tail_only(monkeypatch):
    guard = make_guard()
    stream = guard.stream("Hello", every=5)
    sizes = []
    runner = stream.company._texts._runner
    run = runner.run
    monkeypatch.setattr(runner, "run", lambda s, store: sizes.append(len(s[0].ids)) or run(s, store))
    feed(stream, "call her today or later, " * 6, 11)
    (tail,) = guard.encode([[{"role": "user", "content": "x"}, {"role": "assistant", "content": "x"}]])
    assert sizes[:2] == [len(guard.head.ids), 1]  # the head, and the replay of its last token
    assert max(sizes[2:]) < len(tail)


def test_a_failed_forward_leaves_the_stream_usable(monkeypatch):
    guard = make_guard()
    stream = guard.stream("Hello", every=1)
    stream.append("You can ")
    runner = stream.company._texts._runner
    run = runner.run

    def broken(segments, store):
        run(segments, store)
        raise RuntimeError("lost")

    monkeypatch.setattr(runner, "run", broken)
    with pytest.raises(RuntimeError, match="lost"):
        stream.append("call ")
    monkeypatch.setattr(runner, "run", run)
    scores = stream.append("her ")
    batch = star_scores(guard, {"prompt": ["Hello"], "response": ["You can call her"]}, every=1)
    assert torch.allclose(torch.tensor(scores), batch.scores[0][2:], rtol=0, atol=1e-6)


def test_errors():
    guard = make_guard()
    for every in (0, 2.5, "5"):
        with pytest.raises(ValueError, match=r"every: expected (a positive|an) integer, got"):
            guard.stream("Hello", every=every)
    with pytest.raises(ValueError, match="unit: expected one of"):
        guard.stream("Hello", unit="line")
    for prompt in (None, {"role": "user", "content": "Hello"}):
        with pytest.raises(fastdss.UserError, match="prompt: expected text or a list of messages, got"):
            guard.stream(prompt)
    stream = guard.stream("Hello")
    with pytest.raises(ValueError, match="lone surrogate"):
        stream.append("\ud800")
    with pytest.raises(ValueError, match="exceed the context of 1024"):
        stream.append("one two three four five " * 400)
    stream = guard.stream("Hello")
    stream.close()
    with pytest.raises(ValueError, match="closed"):
        stream.append("more")
