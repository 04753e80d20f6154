"""A stream gives the scores of the batch, however the text is cut up, on every architecture."""

from __future__ import annotations

import pytest
import torch

from fastdss import star_scores
from fastdss.engine import reference_logits

from .builders import ARCHITECTURES, BATCH, TOKENIZERS, make_guard


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


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_fp64_stream_equals_dense_fp64_forwards(architecture):
    guard = make_guard(architecture, "unsplit", torch.float64)
    guard.model.set_attn_implementation("fastdss_test_dense")
    stream = guard.stream("Hello", every=2)
    scores = feed(stream, BATCH["response"][1], 9)
    renderings = guard.encode_prefixes(stream.history, BATCH["response"][1], stream.ends)
    expected = guard.scores(reference_logits(guard.model, guard.verdict_ids, renderings))
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
    stream._store = stream._store.resized(40)
    scores = feed(stream, text, 50)
    batch = star_scores(guard, {"prompt": ["Hello"], "response": [text]}, every=30)
    assert torch.allclose(torch.tensor(scores), batch.scores[0], rtol=0, atol=1e-6)


def test_each_boundary_computes_new_tokens_and_tail_only(monkeypatch):
    guard = make_guard()
    stream = guard.stream("Hello", every=5)
    sizes = []
    run = stream._runner.run
    monkeypatch.setattr(stream._runner, "run", lambda s, store: sizes.append(len(s[0].ids)) or run(s, store))
    feed(stream, "call her today or later, " * 6, 11)
    (tail,) = guard.encode([[{"role": "user", "content": "x"}, {"role": "assistant", "content": "x"}]])
    assert sizes[:2] == [len(guard.head.ids), 1]  # the head, and the replay of its last token
    assert max(sizes[2:]) < len(tail)


def test_a_failed_forward_leaves_the_stream_usable(monkeypatch):
    guard = make_guard()
    stream = guard.stream("Hello", every=1)
    stream.append("You can ")
    run = stream._runner.run

    def broken(segments, store):
        run(segments, store)
        raise RuntimeError("lost")

    monkeypatch.setattr(stream._runner, "run", broken)
    with pytest.raises(RuntimeError, match="lost"):
        stream.append("call ")
    monkeypatch.setattr(stream._runner, "run", run)
    scores = stream.append("her ")
    batch = star_scores(guard, {"prompt": ["Hello"], "response": ["You can call her"]}, every=1)
    assert torch.allclose(torch.tensor(scores), batch.scores[0][2:], rtol=0, atol=1e-6)


def test_errors():
    guard = make_guard()
    with pytest.raises(ValueError, match="every"):
        guard.stream("Hello", every=0)
    stream = guard.stream("Hello")
    with pytest.raises(ValueError, match="lone surrogate"):
        stream.append("\ud800")
    with pytest.raises(ValueError, match="exceed the context of 1024"):
        stream.append("one two three four five " * 400)
    stream = guard.stream("Hello")
    stream.close()
    with pytest.raises(ValueError, match="closed"):
        stream.append("more")
