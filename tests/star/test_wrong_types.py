"""A batch, a guard or a scorer of another type is told what is expected, not what Python lacks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from numbers import Real

import pytest
import torch

import fastdss
from fastdss import (
    Guard,
    GuardSpec,
    Promise,
    ScoringOptions,
    StarScorer,
    StarStream,
    StarStreams,
    TrunkProbe,
    score_dataset,
    star_scores,
)
from fastdss.errors import UserTypeError, expect
from fastdss.guards import View
from fastdss.guards.known import TINY, TINY_FOLDER

BATCH = {"prompt": ["Hello"], "response": ["Hi there, my friend."]}
ROWS = [{"prompt": "Hello", "response": "Hi there."}]


@pytest.fixture(scope="module")
def guard() -> Guard:
    return Guard.tiny()


def test_a_list_of_rows_is_no_batch(guard: Guard) -> None:
    with pytest.raises(fastdss.UserError, match=r"batch: expected a mapping of columns.* got list; .*StarScorer"):
        star_scores(guard, ROWS)


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ("tiny", "got the text 'tiny': Guard.from_pretrained"),
        (5, "got int"),
        ([], "a non-empty sequence of Guards"),
        (["tiny"], "a non-empty sequence of Guards"),
    ],
)
def test_a_guard_is_no_name_and_no_number(model: object, told: str) -> None:
    with pytest.raises(fastdss.UserError, match=told):
        star_scores(model, {"prompt": ["Hello"], "response": ["Hi."]})


def test_a_scorer_is_no_name(tmp_path) -> None:
    pytest.importorskip("pyarrow", reason="needs the [score] extra")
    with pytest.raises(fastdss.UserError, match=r"scorer: expected a StarScorer, got str: StarScorer\('tiny'\)"):
        score_dataset(ROWS, tmp_path / "out", "tiny")
    assert not (tmp_path / "out").exists()


# For each argument a value that another argument, or a reader's guess, would have there.
WRONG = {
    star_scores: {
        "options": {"every": 3}, "approx": "probe.safetensors", "ends": 5, "unit_tokenizer": "gpt2", "sharpen": True,
        "every": 2.5, "budget": "all", "tokenizer": "gpt2", "spec": TINY, "batch": {"prompt": 5, "response": 5},
    },
    StarScorer: {
        "options": {"every": 3}, "guard": torch.nn.Linear(1, 1), "data": {"format": "auto"}, "dtype": torch.bfloat16,
        "guard_options": "risk=harm", "revision": 3, "device": 0, "every": "5",
    },
    Guard: {"model": "tiny", "tokenizer": "gpt2", "spec": "Llama-Guard-3"},
    Guard.from_pretrained: {
        "name_or_path": None, "spec": 5, "options": "risk=harm", "revision": 3, "dtype": "tiny", "device_map": [0],
        "quantization_config": "fp8", "gguf_file": 5,
    },
    GuardSpec: {
        "name": 5, "template": [], "template_kwargs": "a", "messages": "exchange", "answer_prefix": None, "safe": True,
        "unsafe": [None], "other": 3, "other_weight": "half", "split_words": "no", "any_spelling": 1, "date": 2025,
        "fields": [("Kind:", ("a", "b"))], "earlier": 1, "questions": {"a": "b"}, "head": None, "independent": (),
        "judges": None, "checked": 1, "note": [],
    },
    View: {
        "turns": 1, "system": "no", "tools": 1, "parts": None, "prompt": 5, "system_prompt": None, "instruction": []
    },
    StarStream: {"guard": "tiny", "prompt": 5, "every": None, "unit": 3, "unit_tokenizer": "gpt2", "company": []},
    StarStreams: {"guard": None, "budget": "all"},
    Promise: {"tolerance": "0.1", "at_most": None, "confidence": [0.9]},
    TrunkProbe.fit: {
        "guard": "tiny", "batch": [], "promise": 0.1, "options": {"every": 5}, "seed": "a", "audit_share": "half"
    },
}  # fmt: skip
GIVEN = {
    star_scores: lambda guard: {"model": guard, "batch": BATCH, "unit": "token"},
    StarScorer: lambda guard: {"guard": "tiny"},
    Guard: lambda guard: {"model": guard.model, "tokenizer": guard.tokenizer, "spec": guard.spec},
    Guard.from_pretrained: lambda guard: {"name_or_path": str(TINY_FOLDER), "spec": TINY},
    GuardSpec: lambda guard: {"name": "mine", "safe": "a", "unsafe": "b"},
    View: lambda guard: {},
    StarStream: lambda guard: {"guard": guard, "prompt": "Hello"},
    StarStreams: lambda guard: {"guard": guard},
    Promise: lambda guard: {},
    TrunkProbe.fit: lambda guard: {"guard": guard, "batch": BATCH},
}


@pytest.mark.parametrize(
    ("call", "name"),
    [(call, name) for call, wrong in WRONG.items() for name in wrong],
    ids=lambda part: getattr(part, "__qualname__", part),
)
def test_each_argument_is_named_where_its_type_is_wrong(guard: Guard, call, name: str) -> None:
    with pytest.raises(fastdss.UserError, match=rf"^(mine: )?{name}\b"):
        call(**(GIVEN[call](guard) | {name: WRONG[call][name]}))


def test_every_field_of_the_dataclasses_is_tried() -> None:
    assert {f.name for f in fields(GuardSpec)} == set(WRONG[GuardSpec])
    assert {f.name for f in fields(View)} == set(WRONG[View])
    assert {f.name for f in fields(Promise)} == set(WRONG[Promise])


def test_streams_are_told_what_is_no_piece_of_text(guard: Guard) -> None:
    streams = guard.streams()
    stream = streams.open("Hello")
    for given, told in (
        ({"pieces": [stream]}, "pieces: expected text for each stream, got list"),
        ({"pieces": {"a": "b"}}, "pieces: expected streams that this StarStreams opened"),
        ({"pieces": {}, "ended": stream}, "ended: expected a list of streams, got StarStream"),
        ({"pieces": {stream: 5}}, "pieces: expected text for each stream"),
    ):
        with pytest.raises(fastdss.UserError, match=told):
            streams.append(**given)
    assert stream.text == ""


@pytest.mark.parametrize("batch", [5, None, [{"prompt": "a", "response": "b"}], {"prompt": 5}, {"prompt": "text"}])
def test_a_scorer_is_given_columns(guard: Guard, batch: object) -> None:
    pytest.importorskip("pyarrow", reason="needs the [score] extra")
    with pytest.raises(fastdss.UserError, match=r"^batch"):
        StarScorer(guard)(batch)


def test_no_options_is_another_thing_than_empty_options(guard: Guard) -> None:
    star_scores(guard, BATCH, options=None)
    star_scores(guard, BATCH, options=ScoringOptions())
    for nothing in ({}, (), "", 0):
        with pytest.raises(fastdss.UserError, match="options: expected ScoringOptions"):
            star_scores(guard, BATCH, options=nothing)


@pytest.mark.parametrize(
    ("value", "kinds", "fits"),
    [(True, (int,), False), (True, (Real,), False), (True, (bool,), True), (1, (bool,), False), (2, (int,), True),
     ("ab", (Sequence,), False), ("ab", (str, Sequence), True), (["ab"], (Sequence,), True), (None, (str,), False)],
)  # fmt: skip
def test_true_is_no_number_and_text_is_no_list(value: object, kinds: tuple[type, ...], fits: bool) -> None:
    if fits:
        expect("it", value, *kinds)
    else:
        with pytest.raises(UserTypeError, match="it: expected "):
            expect("it", value, *kinds)
