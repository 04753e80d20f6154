"""Text made to be slow: doubling it at most triples the time, where a square would make it four and a hang."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from fastdss.chat.boundaries import UNITS, find_ends, tidy_ends
from fastdss.chat.encoder import check_conversation
from tests.support.builders import make_guard

HISTORY = [{"role": "user", "content": "Hello"}]
SHAPES: dict[str, Callable[[int], str]] = {
    "newlines": lambda n: "\n" * n,  # once took hours for a megabyte: every line looked through all the others
    "blanks": lambda n: " " * n,
    "one character": lambda n: "a" * n,
    "words of one": lambda n: "a " * (n // 2),
    "control strings": lambda n: "<|end|>" * (n // 7),
    "half control strings": lambda n: "<|" * (n // 2),
    "delimiters": lambda n: "<END " * (n // 5),
    "delimiters and blanks": lambda n: ("<END" + " " * 60) * (n // 64),
    "labels": lambda n: "User :\n" * (n // 7),
    "the sentinel": lambda n: "response" + "Q" * n,
    "full stops": lambda n: "." * n,
    "quotes": lambda n: '."' * (n // 2),
    "combining": lambda n: "e\u0301" * (n // 2),
}
GUARD = make_guard()
STEPS: dict[str, Callable[[str], Any]] = {
    "flags": GUARD.quoted_delimiters,
    "control strings": GUARD.encoder.control_strings,
    "breaking": lambda text: GUARD.encoder._broken(text, "\ufdd0"),
    "frame": lambda text: GUARD.encoder.frame([{"role": "user", "content": text}]),
    "checks": lambda text: check_conversation(0, [{"role": "user", "content": text}]),
    "ends": lambda text: tidy_ends(text, range(len(text) + 1)),
    **{unit: lambda text, unit=unit: find_ends(text, every=1, unit=unit, spans=every_character) for unit in UNITS},
}


def every_character(text: str) -> list[tuple[int, int]]:
    return [(i, i + 1) for i in range(len(text))]


def seconds(step: Callable[[str], Any], text: str) -> float:
    best = float("inf")
    for _ in range(2):
        begun = time.process_time()
        step(text)
        best = min(best, time.process_time() - begun)
    return best


@pytest.mark.parametrize("step", STEPS)
def test_time_grows_with_the_text_not_its_square(step: str) -> None:
    for shape, make in SHAPES.items():
        small, large = (seconds(STEPS[step], make(n)) for n in (5_000, 40_000))
        # 8 times the text: linear work takes 8 times as long, a square 64. Below 20 ms nothing is measured.
        assert large < max(0.02, 24 * small), f"{shape}: {small:.4f} s, then {large:.4f} s"


def test_the_clock_sees_a_square() -> None:
    def square(text: str) -> int:
        return sum(text.count("b") for _ in range(0, len(text), 20))

    small, large = (seconds(square, "a" * n) for n in (10_000, 80_000))
    assert large > max(0.02, 24 * small)
