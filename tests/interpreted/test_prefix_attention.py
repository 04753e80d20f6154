"""The prefix attention kernel in the interpreter, against the loop over segments in float64 on the same inputs."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from fastdss.kernels.configs import PrefixConfig, prefix_config
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fastdss.kernels import prefix_attention as kernels
from fastdss.prefix.attention import KVStore, PrefixPlan, attend_in_order
from fastdss.prefix.packed_attention import attend_by_kernel
from fastdss.prefix.packing import Segment, micro_batches
from tests.support.numerics import assert_tokens_close
from tests.support.profiles import examples

# Two slots (the second holds a copy of the first's beginning), a trunk cut in two by the budget, branches shorter and
# longer than a tile of 16, one of them cut across micro-batches, starts that differ within a tile.
SEGMENTS = [
    Segment(0, 0, [0] * 19, copies=(60,)),
    Segment(0, 19, [0] * 41),
    Segment(60, 19, [0] * 12),
    Segment(0, 38, [0] * 3),
    Segment(0, 37, [0] * 23),
    Segment(0, 30, [0] * 2),
    Segment(0, 0, [0] * 1),
    Segment(60, 20, [0] * 9),
]
CAPACITY = 91


@dataclass(frozen=True)
class Shape:
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    value_dim: int = 16
    window: int | None = None
    softcap: float | None = None
    chunk: int | None = None
    sinks: bool = False


def tolerance(dtype: torch.dtype) -> float | None:
    """Of a 16-bit result in [-4, 4]: one rounding of it, one of the weights that multiply the values."""
    return {torch.float16: 4 * 2**-10, torch.bfloat16: 4 * 2**-7}.get(dtype)


def check(
    shape: Shape, dtype: torch.dtype, segments: list[Segment] = SEGMENTS, budget: int = 64, *,
    config: PrefixConfig | None = None,
) -> None:  # fmt: skip
    """Outputs within the tolerance, stores equal bit for bit; what was never written is NaN and never seen."""
    stores, truths = KVStore(CAPACITY), KVStore(CAPACITY)
    torch.manual_seed(0)
    for batch in micro_batches(segments, budget, 32):
        n = sum(len(segment.ids) for segment in batch)
        sizes = [(shape.heads, shape.head_dim), (shape.kv_heads, shape.head_dim), (shape.kv_heads, shape.value_dim)]
        new = [torch.randn(1, n, heads, dim, dtype=torch.float64).to(dtype).transpose(1, 2) for heads, dim in sizes]
        poison(stores, new)
        poison(truths, [x.double() for x in new])
        sinks = torch.linspace(-3, 6, shape.heads, dtype=torch.float64).to(dtype) if shape.sinks else None
        options = (0.3, shape.window, shape.softcap, shape.chunk, sinks)
        actual = attend_by_kernel(PrefixPlan(batch, stores, attend_by_kernel, {}), 0, *new, *options, config=config)
        truth = attend_in_order(PrefixPlan(batch, truths, attend_in_order, {}), 0, *(x.double() for x in new), *options)
        assert actual.dtype == dtype
        allowed = tolerance(dtype)
        if allowed is None:
            assert_tokens_close(actual, truth, precision=dtype, name="attention")
        else:
            torch.testing.assert_close(actual.double(), truth, rtol=0, atol=allowed)
        for kept, expected in zip(stores.layers[0], truths.layers[0], strict=True):
            assert torch.equal(kept.double().nan_to_num(nan=7.0), expected.nan_to_num(nan=7.0))


def poison(store: KVStore, new: list[Tensor]) -> None:
    if not store.layers:
        for kept in store.layer(0, new[1], new[2]):
            kept.fill_(torch.nan)


@pytest.mark.parametrize(
    "shape",
    [
        Shape(),
        Shape(window=9),  # shorter than a tile of keys
        Shape(window=37),  # ends inside the trunk for some rows of a tile and not for others
        Shape(softcap=2.0),
        Shape(window=20, softcap=5.0),
        Shape(chunk=7),  # several chunks in a tile of keys, in the store and in the pack
        Shape(chunk=24),  # a trunk of three; branches that begin inside one, and one that goes on into the next
        Shape(chunk=4096),  # which no text here fills
        Shape(sinks=True),  # from far below the scores to far above them
        Shape(window=9, softcap=2.0, sinks=True),
    ],
    ids=str,
)
def test_options(shape: Shape) -> None:
    check(shape, torch.float64)


@pytest.mark.parametrize(
    "shape",
    [
        Shape(9, 3, 64, 64),  # SmolLM2: 3 heads share a tile of 16 rows, one row is left over
        Shape(2, 2, 80, 80),  # 64 + 16
        Shape(2, 1, 96, 96),  # 64 + 32
        Shape(2, 1, 128, 128),
        Shape(2, 1, 256, 256),
        Shape(2, 1, 24, 8),  # values narrower than keys, neither fills its tile
        Shape(17, 1, 8, 8),  # more heads in a group than rows: one head at a time
    ],
    ids=str,
)
def test_shapes(shape: Shape) -> None:
    check(shape, torch.float32, [*SEGMENTS[:2], *SEGMENTS[4:6]], budget=200)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit(dtype: torch.dtype) -> None:
    check(Shape(window=37), dtype)
    check(Shape(chunk=24, sinks=True), dtype)


@examples(8)
@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 30), st.integers(1, 20)), min_size=1, max_size=6),
    st.integers(8, 80),
    st.none() | st.integers(1, 40),
    st.booleans(),
)
def test_any_plan(parts: list[tuple[bool, int, int]], budget: int, reach: int | None, chunked: bool) -> None:
    """Branches in any order after two trunks: some need several waves."""
    trunks = [Segment(0, 0, [0] * 40, copies=(41,))]
    branches = [Segment(41 if second else 0, start, [0] * n) for second, start, n in parts]
    shape = Shape(2, 1, chunk=reach, sinks=True) if chunked else Shape(2, 1, window=reach)
    check(shape, torch.float32, trunks + branches, budget)


def test_larger_tiles_give_the_same() -> None:
    """A tile of 64 rows spans four branches; 32 keys."""
    check(replace(Shape(), window=45), torch.float64, budget=200, config=PrefixConfig(64, 32, 4, 1))


def test_the_check_sees_a_dropped_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """One key too few in the store for one run must not pass."""
    real = kernels.launch_prefix_attention_fwd

    def short(q, k, v, store, limits, runs, tiles, out, **options) -> None:
        limits = torch.where(limits == 38, 37, limits)
        real(q, k, v, store, limits, runs, tiles, out, **options)

    monkeypatch.setattr(kernels, "launch_prefix_attention_fwd", short)
    with pytest.raises(AssertionError, match=r"attention\["):
        check(Shape(), torch.float32)


def test_unknown_sizes() -> None:
    with pytest.raises(ValueError, match="up to 256, got 320"):
        prefix_config(64, 320, torch.bfloat16, "sm_90")
