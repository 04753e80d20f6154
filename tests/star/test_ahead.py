"""Rendering runs ahead of scoring: the same results in the same order, errors with their row, an end at once."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest
import torch

import fastdss.prefix.engine
from fastdss import RowError, star_scores
from fastdss.star import forest, scoring
from fastdss.star.ahead import Ahead
from fastdss.star.forest import Turn
from tests.support.builders import BATCH, make_guard

MANY = {name: [values[i % 4] + f" {i}" for i in range(23)] for name, values in BATCH.items()}


@pytest.fixture
def small_slices(monkeypatch) -> None:
    monkeypatch.setattr(forest, "WHOLE", 6)
    monkeypatch.setattr(forest, "SMALLEST_SLICE", 2)


def test_order_and_results_are_maps_own() -> None:
    ahead = Ahead(lambda x: (time.sleep(0.01 * (x % 3)), x * x)[1], range(9))
    assert list(ahead) == [x * x for x in range(9)]
    assert ahead.waited > 0


def test_it_does_run_ahead() -> None:
    """While the caller holds the first result, all others are made, by one thread that is not the caller's."""
    made, threads = [], set()

    def make(x: int) -> int:
        threads.add(threading.get_ident())
        made.append(x)
        return x

    for x in Ahead(make, range(5)):
        if x == 0:
            end = time.monotonic() + 10
            while len(made) < 5 and time.monotonic() < end:
                time.sleep(0.001)
            assert made == [0, 1, 2, 3, 4]
    assert len(threads) == 1
    assert threading.get_ident() not in threads


def test_an_error_is_raised_before_more_is_computed_and_nothing_more_is_made() -> None:
    made, before = [], sys.getswitchinterval()

    def make(x: int) -> int:
        made.append(x)
        if x == 3:
            raise RowError(7, "broken")
        return x

    ahead, seen = iter(Ahead(make, range(2000))), []
    with pytest.raises(RowError, match="row 7: broken"):
        seen += [(x, time.sleep(0.2)) for x in ahead]
    assert len(made) < 2000
    assert sys.getswitchinterval() == before


def test_leaving_early_drops_what_was_not_begun() -> None:
    made = []

    def make(x: int) -> int:
        time.sleep(0.005)
        made.append(x)
        return x

    for _ in Ahead(make, range(500)):
        break
    count = len(made)
    time.sleep(0.1)
    assert len(made) <= count + 1


def test_ctrl_c_ends_at_once() -> None:
    """In a process of its own: two hundred items of a tenth of a second, interrupted at the third.

    What a shell started in the background ignores the signal, and so would its children.
    """
    code = (
        "import signal, time, _thread\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from fastdss.star.ahead import Ahead\n"
        "begun = time.monotonic()\n"
        "try:\n"
        "    for x in Ahead(lambda x: time.sleep(0.1) or x, range(200)):\n"
        "        if x == 2: _thread.interrupt_main()\n"
        "except KeyboardInterrupt:\n"
        "    print('ended')\n"
    )
    begun = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=True)
    assert done.stdout == "ended\n"
    assert time.monotonic() - begun < 60


@pytest.mark.parametrize("guards", [1, 2])
def test_scores_do_not_depend_on_the_slices(small_slices, monkeypatch, guards: int) -> None:
    """Also where two guards keep different numbers of prefixes, and the bar ends where it should."""
    many = [make_guard(), make_guard("qwen3", "gpt2", seed=1)][:guards]
    reported = []
    monkeypatch.setattr(scoring, "_progress", lambda total, shown: Bar(total, reported))
    sliced = star_scores(many, MANY, every=2, max_tokens=110)
    assert sum(reported[1:]) == reported[0]
    monkeypatch.setattr(forest, "WHOLE", 1000)
    whole = star_scores(many, MANY, every=2, max_tokens=110)
    assert sliced.ends == whole.ends
    for a, b in zip(sliced.scores, whole.scores, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-6)


class Bar:
    def __init__(self, total: int, reported: list[int]) -> None:
        self.reported = reported
        reported[:] = [total]

    def __enter__(self):
        return self.reported.append

    def __exit__(self, *error) -> None:
        pass


def test_turns_of_one_conversation_stay_in_one_slice(small_slices) -> None:
    guard = make_guard()
    chat = [{"role": role, "content": f"{role} {i}"} for i in range(5) for role in ("user", "assistant")]
    batch = {"messages": [chat, chat[:4], *[chat[:2]] * 8]}
    sliced = star_scores(guard, batch, turns="all", every=1)
    assert len(sliced) == 15
    alone = star_scores(guard, {"messages": [chat]}, turns="all", every=1)
    for a, b in zip(sliced.scores, alone.scores, strict=False):
        assert torch.allclose(a, b, rtol=0, atol=1e-6)
    turns = [Turn(item, [], item.text, [1]) for item in scoring.read_batch(batch, "all")]
    rows = [{turn.judged.row for turn in some} for some in forest.cut_in_slices(turns)]
    assert len(rows) > 2
    assert sum(map(len, rows)) == len(set.union(*rows)) == 10


def test_equal_prompts_have_one_number_in_every_slice(small_slices, monkeypatch) -> None:
    """Trees of one number share their prompt: two in the first slice do, and not those at their places in the next."""
    prompts = ["Hello", "Hello", "One", "Two", "Three", "One", "One", *"abcdef", "Hello"]
    numbers, logits = [], scoring._logits

    def watched(guard, trees, numbered, *rest):
        numbers.extend(numbered)
        return logits(guard, trees, numbered, *rest)

    monkeypatch.setattr(scoring, "_logits", watched)
    star_scores(make_guard(), {"prompt": prompts, "response": ["Call her today."] * len(prompts)})
    assert [numbers.index(number) for number in numbers] == [prompts.index(prompt) for prompt in prompts]


def test_the_first_bad_row_is_named(small_slices) -> None:
    batch = {name: list(values) for name, values in MANY.items()}
    batch["response"][11] = batch["response"][19] = "much too long " * 1000
    with pytest.raises(RowError, match=r"^row 11: .* tokens exceed the context"):
        star_scores(make_guard(), batch)


WAITING = ("_local_scalar_dense", "nonzero", "aten.equal", "is_nonzero", "masked_select")


def waits(name: str, args: tuple) -> bool:
    """Whether an operation asks the device for values; an index by a mask does, in a kernel that nobody sees."""
    masked = name.startswith("aten.index") and any(
        isinstance(index, torch.Tensor) and index.dtype == torch.bool for index in args[1]
    )
    return masked or any(word in name for word in WAITING)


def test_a_batch_waits_for_the_device_once(monkeypatch) -> None:
    """However many micro-batches and groups there are: logits are fetched once, and nothing else asks for values."""
    guard = make_guard()
    star_scores(guard, BATCH)
    fetched, inside, asked = [], [False], []
    fetch, run = fastdss.prefix.engine.fetch, fastdss.prefix.engine.Runner.run

    class Asks(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            name = str(func)
            if waits(name, args):
                asked.append((name, inside[0]))
            return func(*args, **(kwargs or {}))

    def running(self, segments, store, read=None):
        inside[0] = True
        try:
            return run(self, segments, store, read)
        finally:
            inside[0] = False

    monkeypatch.setattr(fastdss.prefix.engine, "fetch", lambda parts: fetched.append(len(parts)) or fetch(parts))
    monkeypatch.setattr(fastdss.prefix.engine.Runner, "run", running)
    with Asks():
        star_scores(guard, BATCH, budget=60)
    assert len(fetched) == 1
    assert fetched[0] >= 5  # micro-batches with scores
    assert [name for name, within in asked if within] == []
    assert len([name for name, _ in asked if "_local_scalar_dense" in name]) <= 1 + 2 * len(BATCH["prompt"])
