"""A micro-batch at once sees and leaves what segment after segment would, whatever the order of the segments.

Attention is symbolic here: every key is a number of its own, and a token's result is the list of numbers it sees.
"""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastdss.prefix.attention import KVStore, PrefixPlan, attend_in_order
from fastdss.prefix.packed_attention import (
    PackedBatch,
    Run,
    _kernel_config,
    attend_by_kernel,
    attend_packed,
    find_runs,
    find_waves,
    tile_table,
)
from fastdss.prefix.packing import Segment, make_groups, micro_batches, schedule
from fastdss.prefix.tree import PrefixTree
from tests.support.profiles import examples

Sights = list[list[int]]


def in_order(segments: list[Segment], store: np.ndarray, first: int) -> Sights:
    """What ``attend_in_order`` does; packed token i has the number ``first + i``."""
    seen: Sights = []
    for segment in segments:
        n = len(segment.ids)
        for base in (segment.base, *segment.copies):
            store[base + segment.start : base + segment.start + n] = first + len(seen) + np.arange(n)
        ends = segment.base + segment.start + 1 + np.arange(n)
        seen += [store[segment.base : end].tolist() for end in ends]
    return seen


def at_once(segments: list[Segment], store: np.ndarray, first: int) -> Sights:
    """What the kernel and the writes around it do, from the same arrays."""
    runs = find_runs(segments)
    seen: Sights = [[] for segment in segments for _ in segment.ids]
    for wave in find_waves(runs, len(store)):
        to, source = wave.before
        store[to] = first + source
        for run in wave.runs:
            for token in range(run.left, run.right):
                in_store = store[run.bases[0] : run.bases[0] + run.start].tolist()
                seen[token] = in_store + list(range(first + run.left, first + token + 1))
        to, source = wave.after
        store[to] = first + source
    return seen


def random_tree(draw: random.Random, alike: bool = False) -> PrefixTree:
    """``alike``: tails that leave the trunk at one place begin alike, as an answer's continuations do."""
    size = draw.randint(2, 40)
    starts = [draw.randint(0, size - 1) for _ in range(draw.randint(1, 8))]
    tails = [  # no rendering is empty
        [0 if alike else k] * draw.randint(start == 0, size - start) for k, start in enumerate(starts)
    ]
    return PrefixTree(list(range(size)), starts, tails)


@examples(150)
@given(seed=st.integers(0, 2**32), budget=st.integers(1, 60), longest=st.integers(1, 30), alike=st.booleans())
def test_scheduled_micro_batches(seed: int, budget: int, longest: int, alike: bool) -> None:
    """Trunks, equal prompts, branches by descending start, pieces of cut segments: one wave, unless tails branch."""
    draw = random.Random(seed)
    trees = [random_tree(draw, alike) for _ in range(draw.randint(1, 5))]
    group = make_groups(trees, [draw.randint(0, 2) for _ in trees], 10**6)[0]
    ordered, packed = np.full((2, group.capacity), -1)
    first = 0
    for batch in micro_batches(schedule(group, 0), budget, longest):
        assert at_once(batch, packed, first) == in_order(batch, ordered, first)
        assert packed.tolist() == ordered.tolist()
        assert alike or len(find_waves(find_runs(batch), group.capacity)) == 1
        first += sum(len(segment.ids) for segment in batch)


@examples(300)
@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 9), st.integers(1, 5), st.sets(st.integers(0, 2))),
        min_size=1,
        max_size=10,
    )
)
def test_any_order_at_all(parts: list[tuple[int, int, int, set[int]]]) -> None:
    """Also orders that no schedule makes: ascending branches, trunks after branches, copies back and forth."""
    segments = [
        Segment(16 * slot, start, [0] * n, copies=tuple(16 * other for other in sorted(copies - {slot})))
        for slot, start, n, copies in parts
    ]
    ordered, packed = np.tile(-1 - np.arange(48), (2, 1))
    assert at_once(segments, packed, 0) == in_order(segments, ordered, 0)
    assert packed.tolist() == ordered.tolist()


def test_an_order_that_needs_two_waves() -> None:
    """The second branch reads what the first wrote over what the trunk's reader still needs."""
    reader, writer, follower = Segment(0, 4, [0, 0]), Segment(0, 2, [0, 0]), Segment(0, 4, [0])
    runs = find_runs([reader, writer, Segment(8, 0, [0]), follower])
    assert [len(wave.runs) for wave in find_waves(runs, 16)] == [3, 1]


def test_pieces_of_one_segment_are_one_run() -> None:
    """Cut at 3 tokens; the branch after it, which starts where no piece ended, is another run."""
    pieces = [*Segment(0, 2, [0] * 7).cut(3), Segment(0, 5, [0])]
    assert find_runs(pieces) == [Run((0,), 2, 0, 7), Run((0,), 5, 7, 8)]


@examples(60)
@given(seed=st.integers(0, 2**32), size=st.integers(1, 20))
def test_tiles(seed: int, size: int) -> None:
    """Every token in one tile, none mixes slots, the extremes are those of its tokens, the longest come first."""
    draw = random.Random(seed)
    slots = [draw.randint(0, 2) for _ in range(draw.randint(1, 8))]
    runs = find_runs([Segment(100 * slot, draw.randint(0, 30), [0] * draw.randint(1, 25)) for slot in slots])
    run_of = [run for run in runs for _ in range(run.left, run.right)]
    table = tile_table(runs, size)
    covered = []
    for first, end, base, *extremes in table.tolist():
        assert 0 < end - first <= size
        covered += range(first, end)
        inside = [run_of[token] for token in range(first, end)]
        assert {run.bases[0] for run in inside} == {base}
        positions = [run.start + token - run.left for run, token in zip(inside, range(first, end), strict=True)]
        columns = ([run.start for run in inside], [run.left for run in inside], positions)
        assert extremes == [extreme for column in columns for extreme in (min(column), max(column))]
    assert sorted(covered) == list(range(len(run_of)))
    keys = [row[4] + row[1] - row[5] for row in table.tolist()]
    assert keys == sorted(keys, reverse=True)


def test_on_a_cpu() -> None:
    """``attend_packed`` is the loop; the kernel by name is an error that says why, never the loop."""
    pytest.importorskip("triton", reason="triton is not installed")
    torch.manual_seed(0)
    segments = [Segment(0, 0, [0] * 5), Segment(0, 3, [0] * 2)]
    query, key, value = (torch.randn(1, heads, 7, 16) for heads in (4, 2, 2))
    packed, ordered = (PrefixPlan(segments, KVStore(5), attend_in_order, {}) for _ in range(2))
    result = attend_packed(packed, 0, query, key, value, 0.25, None, None)
    assert torch.equal(result, attend_in_order(ordered, 0, query, key, value, 0.25, None, None))
    with pytest.raises(ValueError, match="needs a GPU, got tensors on cpu"):
        attend_by_kernel(packed, 0, query, key, value, 0.25, None, None)


def test_arrays_are_made_once_per_micro_batch() -> None:
    plan = PrefixPlan([Segment(0, 0, [0] * 5)], KVStore(5), attend_packed, {})
    batch, device = PackedBatch.of(plan), torch.device("cpu")
    assert PackedBatch.of(plan) is batch
    assert batch.tiles(device, 4)[0] is batch.tiles(device, 4)[0]
    assert len(batch.tiles(device, 2)[2][0]) == 3 * 9


def test_no_kernel_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    """Where the kernel cannot run the loop attends, and one line of the log says why."""
    pytest.importorskip("triton", reason="triton is not installed")
    _kernel_config.cache_clear()
    assert [_kernel_config(64, 64, torch.float16, torch.device("cpu")) for _ in range(2)] == [None, None]
    assert len(caplog.messages) == 1
    assert caplog.messages[0].endswith("the Triton kernel needs a GPU, got tensors on cpu")
