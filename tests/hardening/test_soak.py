"""Memory stays flat over 1,000 training steps and 10,000 scored rows; a reduced form runs with everything else."""

from __future__ import annotations

import mmap

import pytest

from .soak import flat, resident, rows, steps


@pytest.mark.long
def test_a_few_steps_and_rows() -> None:
    """Long enough to see a batch that is kept; the numbers in question are those of the slow form."""
    said: list[str] = []
    assert flat("steps", steps(40), 40, said.append)
    assert flat("rows", rows(60, 10), 60, said.append)
    assert len(said) == 12


@pytest.mark.slow
def test_a_thousand_steps_and_ten_thousand_rows() -> None:
    assert flat("training steps", steps(1000), 1000, print)
    assert flat("scored rows", rows(10_000, 250), 10_000, print)


@pytest.mark.long
def test_a_leak_is_seen() -> None:
    kept = []

    def leaking(count: int):
        for i in range(count):
            kept.append(
                mmap.mmap(-1, 1 << 20)
            )  # not from the heap, which may hold free pages that are resident already
            kept[-1].write(b"x" * (1 << 20))  # untouched pages are not resident
            yield i + 1

    before = resident()
    assert not flat("leak", leaking(100), 100, lambda line: None)
    assert resident() - before > 50 << 20
