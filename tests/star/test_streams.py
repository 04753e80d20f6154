"""Streams scored together give what each would give alone, whoever joins, leaves or fails beside it."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable

import pytest
import torch

from fastdss import Guard, StarStream, StarStreams, UserError, star_scores
from fastdss.prefix.engine import reference_logits
from tests.guards.test_classifiers import ENCODERS
from tests.guards.test_classifiers import make_guard as make_classifier
from tests.guards.test_fields import make_guard as make_fields
from tests.support.builders import BATCH, make_guard

ARCHITECTURES = ("llama", "granite", "qwen3", "gemma2", "mistral", "gpt_oss")  # softcaps, windows, sinks, GQA
ROWS = [
    *zip(*BATCH.values(), strict=True),
    ("Hello there.", "Mail anna, " * 5 + "or not at all."),  # longer than the windows
    ("Who?", ""),
]


def play(guard: Guard, draw: random.Random, how: Callable[[int], dict], streams: StarStreams | None = None) -> list:
    """All of ``ROWS`` in one company: each joins at some call, writes pieces of any size, and ends with its last piece
    or after it; twins are left behind on the way. The streams, finished, in the order of the rows."""
    streams = streams or guard.streams()
    waiting, opened, rest = list(range(len(ROWS))), {}, {}
    while waiting or rest:
        if waiting and (not rest or draw.random() < 0.5):
            i = waiting.pop(0)
            opened[i], rest[i] = streams.open(ROWS[i][0], **how(i)), ROWS[i][1]
        pieces, ended = {}, []
        for i in [i for i in rest if draw.random() < 0.7]:
            size = draw.choice([0, 1, 3, 10, 60])
            pieces[opened[i]], rest[i] = rest[i][:size], rest[i][size:]
            if not rest[i] and draw.random() < 0.8:
                ended.append(opened[i])
                del rest[i]
            elif draw.random() < 0.1:
                opened[i].fork().append(" and nothing else. So")
        before = {stream: len(stream.scores) for stream in pieces}
        new = streams.append(pieces, ended=ended)
        assert not new.failed
        assert {stream: stream.scores[n:] for stream, n in before.items()} == new.scores
    return [opened[i] for i in range(len(ROWS))]


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_fp32_scores_are_those_of_the_batch(architecture: str, seed: int) -> None:
    guard = make_guard(architecture)
    draw = random.Random(seed)
    for stream, (prompt, response) in zip(play(guard, draw, lambda i: {"every": 2}), ROWS, strict=True):
        alone = star_scores(guard, {"prompt": [prompt], "response": [response]}, every=2)
        assert stream.ends == alone.ends[0]
        assert torch.allclose(torch.tensor(stream.scores), alone.scores[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_fp64_scores_equal_dense_fp64_forwards(architecture: str) -> None:
    """A budget that no branch fits into, so that each is several forwards among those of others."""
    guard = make_guard(architecture, "unsplit", torch.float64, check=architecture != "gpt_oss")
    guard.model.set_attn_implementation("fastdss_test_dense")
    if architecture == "gpt_oss":
        guard.model.set_experts_implementation("eager")  # the grouped GEMM knows no double precision
    for stream in play(guard, random.Random(0), lambda i: {"every": 3}, guard.streams(budget=23)):
        renderings = guard.encode_prefixes(stream.history, stream.text, stream.ends)
        expected = guard.scores(reference_logits(guard.model, guard.token_ids, renderings))
        assert max(abs(a - b) for a, b in zip(stream.scores, expected.tolist(), strict=True)) <= 1e-12


def test_each_conversation_has_its_own_boundaries() -> None:
    guard = make_guard()
    units = ("word", "token", "sentence", "character")

    def how(i: int) -> dict:
        return {"every": 1 + i, "unit": units[i % 4]}

    for i, stream in enumerate(play(guard, random.Random(1), how)):
        batch = {"prompt": [ROWS[i][0]], "response": [ROWS[i][1]]}
        alone = star_scores(guard, batch, **how(i))
        assert stream.ends == alone.ends[0]
        assert torch.allclose(torch.tensor(stream.scores), alone.scores[0], rtol=0, atol=1e-6)


KINDS = {
    "sums over fields: several renderings make a score": lambda: make_fields("wildguard"),
    "a bidirectional classifier: no tree": lambda: make_classifier(next(iter(ENCODERS))),
}


@pytest.mark.parametrize("kind", KINDS)
def test_guards_of_other_kinds(kind: str) -> None:
    guard = KINDS[kind]()
    for stream, (prompt, response) in zip(play(guard, random.Random(2), lambda i: {"every": 4}), ROWS, strict=True):
        alone = star_scores(guard, {"prompt": [prompt], "response": [response]}, every=4)
        assert torch.allclose(torch.tensor(stream.scores), alone.scores[0], rtol=0, atol=1e-6)


def test_a_boundary_that_changes_nothing_has_the_same_score() -> None:
    """The template trims the text, so blanks at its end leave the rendering as it was: no new token at all."""
    guard = make_guard()
    text = "No.  Yes.   "
    alone = star_scores(guard, {"prompt": ["Hello"], "response": [text]}, every=1, unit="character")
    stream = guard.streams().open("Hello", every=1, unit="character")
    assert stream.append(text) + stream.close() == pytest.approx(alone.scores[0].tolist(), abs=1e-6)


def counted(streams: StarStreams, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens of each forward of the company from now on."""
    runner, sizes = streams._texts._runner, []
    run = runner.run

    def counting(segments, store):
        sizes.append(sum(len(segment.ids) for segment in segments))
        return run(segments, store)

    monkeypatch.setattr(runner, "run", counting)
    return sizes


def test_what_is_due_together_is_one_forward(monkeypatch) -> None:
    """Two boundaries of one stream and one of each other: one forward, of new tokens and tails only."""
    guard = make_guard()
    streams = guard.streams(budget=10_000)
    first, *others = [streams.open("Hello", every=1) for _ in range(5)]
    streams.append(dict.fromkeys([first, *others], "You can "))
    sizes = counted(streams, monkeypatch)
    new = streams.append({first: "call her ", **dict.fromkeys(others, "mail ")})
    assert [len(scores) for scores in new.scores.values()] == [2, 1, 1, 1, 1]
    (tail,) = guard.encode([[{"role": "user", "content": "x"}, {"role": "assistant", "content": "x"}]])
    assert len(sizes) == 1
    assert sizes[0] < 6 * (len(tail) - len(guard.head.ids))
    assert streams.append(dict.fromkeys(others, "he")).scores == {stream: [] for stream in others}
    assert len(sizes) == 1  # nothing was due, so nothing ran


def test_one_that_fails_leaves_the_others_alone() -> None:
    """Its context is full in the midst of a call, text is no text, it is closed: each says so, the rest goes on."""
    guard = make_guard()
    streams = guard.streams()
    full, broken, closed, well = (streams.open("Hello", every=1) for _ in range(4))
    closed.close()
    new = streams.append({full: "You " * 1000, broken: "\ud800", closed: "more", well: "You can "})
    assert set(new.failed) == {full, broken, closed}
    assert list(new.scores) == [well]
    assert [str(error).split(":")[0].split(" ")[-1] for error in new.failed.values()][0::2] == ["1024", "closed"]
    with pytest.raises(KeyError):
        new.scores[full]  # no silence that could pass for safety
    with pytest.raises(UserError, match="exceed the context of 1024"):
        new.of(full)
    assert len(full.scores) > 100, "what fitted is scored"
    assert broken.append("You can ") == pytest.approx(new.of(well), abs=1e-6)
    alone = star_scores(guard, {"prompt": ["Hello"], "response": ["You can call her."]}, every=1)
    assert new.of(well) + well.append("call her.") + well.close() == pytest.approx(alone.scores[0].tolist(), abs=1e-6)


def test_not_a_number_stays_with_the_stream_that_has_it() -> None:
    """A token whose embedding is damaged: NaN in its stream from there on, and in nobody's who takes its place."""
    guard = make_guard()
    text = "You can call her, or mail anna. "
    (bad,) = {ids[0] for ids in guard.encoder.tokenize([" swordfish"])} - set(guard.encode_prefixes([], text, [30])[0])
    with torch.no_grad():
        guard.model.get_input_embeddings().weight[bad] = torch.nan
    streams = guard.streams()
    poisoned, well = streams.open("Hello", every=1), streams.open("Hello", every=1)
    new = streams.append({poisoned: "You can swordfish and ", well: text})
    assert torch.isfinite(torch.tensor(new.of(poisoned))).tolist() == [True, True, False, False]
    alone = star_scores(guard, {"prompt": ["Hello"], "response": [text.rstrip()]}, every=1)
    assert new.of(well) == pytest.approx(alone.scores[0].tolist(), abs=1e-6)
    poisoned.abandon()
    follower = streams.open("Hello", every=1)
    assert follower.append(text) == pytest.approx(alone.scores[0].tolist(), abs=1e-6)


def test_a_place_is_free_once_its_stream_has_gone() -> None:
    """Closed, abandoned, or held by nobody: the next takes the place, so the store does not grow."""
    guard = make_guard()
    streams = guard.streams()
    company = [streams.open("Hello", every=1) for _ in range(3)]
    streams.append(dict.fromkeys(company, "You can call her "))
    capacity = streams._texts._slots.store.capacity
    for leave in ("close", "abandon", "forgotten"):
        stream = company.pop()
        if leave != "forgotten":
            getattr(stream, leave)()
        del stream
        gc.collect()
        company.insert(0, streams.open("Hello", every=1))
        company[0].append("You can call her ")
        assert streams._texts._slots.store.capacity == capacity
    for stream in company:
        stream.close()
    assert streams._texts._slots.store.capacity == 0


def test_an_abandoned_stream_is_closed() -> None:
    stream = make_guard().stream("Hello")
    stream.append("You can call her on Monday, ")
    stream.abandon()
    assert len(stream.scores) == 1
    with pytest.raises(UserError, match="closed"):
        stream.append("more")


@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_lost_forward_can_be_tried_again(monkeypatch, at: int) -> None:
    """Nothing of it counts: neither keys and values of half a call, nor the text's boundaries."""
    guard = make_guard()
    streams = guard.streams(budget=40)
    pair = [streams.open("Hello", every=1), streams.open("Is it safe?", every=1)]
    streams.append(dict.fromkeys(pair, "You can "))
    runner, calls = streams._texts._runner, []
    run = runner.run

    def lost(segments, store):
        calls.append(segments)
        if len(calls) == at:
            raise RuntimeError("lost")
        return run(segments, store)

    monkeypatch.setattr(runner, "run", lost)
    with pytest.raises(RuntimeError, match="lost"):
        streams.append({pair[0]: "call her on ", pair[1]: "call"}, ended=[pair[1]])
    assert [len(stream.scores) for stream in pair] == [2, 2]
    monkeypatch.setattr(runner, "run", run)
    streams.append({pair[0]: ""}, ended=[pair[1]])
    for stream, prompt, text in zip(
        pair, ("Hello", "Is it safe?"), ("You can call her on", "You can call"), strict=True
    ):
        alone = star_scores(guard, {"prompt": [prompt], "response": [text]}, every=1)
        assert stream.scores == pytest.approx(alone.scores[0].tolist(), abs=1e-6)


@pytest.mark.parametrize("limit", [30, 60])
def test_out_of_memory_halves_the_budget_and_keeps_the_scores(monkeypatch, limit: int) -> None:
    guard = make_guard()
    streams = guard.streams()
    sizes = counted(streams, monkeypatch)
    run = streams._texts._runner.run

    def tight(segments, store):
        if sum(len(segment.ids) for segment in segments) > limit:
            run(segments, store)  # it has written to the store before it fails
            raise torch.OutOfMemoryError("a small device")
        return run(segments, store)

    monkeypatch.setattr(streams._texts._runner, "run", tight)
    for stream, (prompt, response) in zip(
        play(guard, random.Random(3), lambda i: {"every": 2}, streams), ROWS, strict=True
    ):
        alone = star_scores(guard, {"prompt": [prompt], "response": [response]}, every=2)
        assert torch.allclose(torch.tensor(stream.scores), alone.scores[0], rtol=0, atol=1e-6)
    assert max(sizes) > limit


def test_a_device_without_any_room_says_so(monkeypatch) -> None:
    streams = make_guard().streams()

    def never(segments, store):
        raise torch.OutOfMemoryError("nothing fits")

    monkeypatch.setattr(streams._texts._runner, "run", never)
    with pytest.raises(torch.OutOfMemoryError, match="nothing fits"):
        streams.open("Hello", every=1).append("You can ")


def test_errors() -> None:
    guard = make_guard()
    streams, stream = guard.streams(), guard.stream("Hello")
    with pytest.raises(UserError, match="budget: expected a positive integer"):
        guard.streams(budget=0)
    with pytest.raises(UserError, match="one of another"):
        streams.append({stream: "text"})
    mine = streams.open("Hello", every=1)
    with pytest.raises(UserError, match="expected text"):
        streams.append({mine: "You can ", streams.open("Hello"): None})
    assert mine.text == ""
    with pytest.raises(UserError, match="same guard"):
        StarStream(make_guard(seed=1), "Hello", company=streams)
