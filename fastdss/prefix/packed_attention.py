"""Attention of a whole micro-batch in one launch of the Triton kernel.

It replaces ``attend_in_order`` and leaves the store in the same state. There, each segment's keys are written to its
slot before the segment attends, so what a slot holds depends on the order of the segments. Here segments attend at
once, and the order is turned into data:

- A *run* is a sequence of segments that continue each other in one slot. Its tokens see the run's own keys, which they
  read from the pack, and the first ``start`` keys of the slot.
- A *wave* is a sequence of runs that attend at once. Keys that another run of the wave reads are written to the store
  before; all other keys are written after, each position by the last run that has it. A run begins a new wave if it
  reads keys of the current wave that an earlier run of it must not see yet, because that run reads what their positions
  held before. In the order of ``packing.schedule``, trunks first, then branches beginning with those that leave the
  trunk last, a micro-batch needs one wave.

On a CPU the loop of ``attend_in_order`` is used. Two other ways were tried there and not taken. One computes the trunk
part of neighbouring branches in one product, merged with the rest by log-sum-exp. It ran at 0.94 of the loop's speed
for answers of 200 words with 40 boundaries, at 1.05 for 800 words with 40, and at 1.00 to 1.05 for 800 words with 160
(SmolLM2-135M's shapes, micro-batches of 400 tokens, one thread). The other gathers the keys of short segments side by
side to batch them. It ran at 1.00 of the loop's speed for the built-in guard on answers of 22 words and at 0.94 for
SmolLM2's shapes, because gathering costs what fewer calls save.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .attention import PrefixPlan, attend_in_order
from .packing import Segment

if TYPE_CHECKING:
    from fastdss.kernels.configs import PrefixConfig

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """Packed tokens ``[left, right)``, at the positions from ``start`` on of the slots at ``bases``.

    They are written to all these slots, and read the first one.
    """

    bases: tuple[int, ...]
    start: int
    left: int
    right: int


@dataclass(frozen=True)
class Wave:
    """Runs that can attend at once.

    ``before`` and ``after`` they attend, tokens are written to the store: (positions, packed indices of the tokens).
    """

    runs: list[Run]
    before: tuple[np.ndarray, np.ndarray]
    after: tuple[np.ndarray, np.ndarray]


def find_runs(segments: Sequence[Segment]) -> list[Run]:
    """The runs of a micro-batch: its segments, each joined to the one before it if it continues that one."""
    runs: list[Run] = []
    left = 0
    for segment in segments:
        bases, right = (segment.base, *segment.copies), left + len(segment.ids)
        if runs and runs[-1].bases == bases and runs[-1].start + left - runs[-1].left == segment.start:
            runs[-1] = Run(bases, runs[-1].start, runs[-1].left, right)
        else:
            runs.append(Run(bases, segment.start, left, right))
        left = right
    return runs


def find_waves(runs: Sequence[Run], capacity: int) -> list[Wave]:
    """Waves with the same outcome as running the runs one after another, see the module's docstring."""
    waves: list[list[Run]] = []
    seen: dict[int, int] = {}  # for each slot, how many positions the runs of this wave read
    taken: dict[int, int] = {}  # for each slot, the first position that a run of this wave reads and a later one writes
    for run in runs:
        if not waves or taken.get(run.bases[0], run.start) < run.start:
            waves.append([])
            seen, taken = {}, {}
        waves[-1].append(run)
        if any(seen.get(base, 0) > run.start for base in run.bases):
            for base in run.bases:
                taken[base] = min(run.start, taken.get(base, run.start))
        seen[run.bases[0]] = max(run.start, seen.get(run.bases[0], 0))
    return [_plan_writes(wave, capacity) for wave in waves]


def _plan_writes(runs: list[Run], capacity: int) -> Wave:
    """The wave of ``runs``: what a later run reads is written before, everything else after."""
    wanted: dict[int, int] = {}  # for each slot, how many positions the later runs read
    early = []
    for run in reversed(runs):
        if any(wanted.get(base, 0) > run.start for base in run.bases):
            early.append(run)
        wanted[run.bases[0]] = max(run.start, wanted.get(run.bases[0], 0))
    before = _owners(early[::-1], capacity)
    after = _owners(runs, capacity)
    after[after == before] = -1
    return Wave(runs, _moves(before), _moves(after))


def _owners(runs: Sequence[Run], capacity: int) -> np.ndarray:
    """For each position of the store, the packed index of the last token written there by ``runs``, or -1."""
    owners = np.full(capacity, -1, dtype=np.int64)
    for run in runs:
        for base in run.bases:
            owners[base + run.start : base + run.start + run.right - run.left] = np.arange(run.left, run.right)
    return owners


def _moves(owners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``(positions of the store, packed indices to write there)``."""
    positions = np.flatnonzero(owners >= 0)
    return positions, owners[positions]


def tile_table(runs: Sequence[Run], size: int) -> np.ndarray:
    """``[T, 9]`` int32: tiles of at most ``size`` consecutive tokens of one slot, those that see the most keys first.

    Columns: first token, end, base of the slot, then the least and the greatest of the tile's limits, of its run starts
    and of its positions (see :func:`_per_token`).
    """
    limit, run, token = _per_token(runs)
    edges = [0] + [i for i in range(1, len(runs)) if runs[i].bases[0] != runs[i - 1].bases[0]] + [len(runs)]
    stretches = [(runs[a].bases[0], runs[a].left, runs[b - 1].right) for a, b in pairwise(edges)]
    first = np.concatenate([np.arange(left, right, size) for _, left, right in stretches])
    end = np.concatenate([np.minimum(np.arange(left, right, size) + size, right) for _, left, right in stretches])
    base = np.concatenate([np.full(-(-(right - left) // size), base) for base, left, right in stretches])
    cuts = first - runs[0].left
    columns = [first, end, base]
    for values in (limit, run, limit + token - run):
        columns += [np.minimum.reduceat(values, cuts), np.maximum.reduceat(values, cuts)]
    table = np.stack(columns, axis=1)
    keys = table[:, 4] + table[:, 1] - table[:, 5]
    return table[np.argsort(-keys, kind="stable")].astype(np.int32)


def _per_token(runs: Sequence[Run]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``(limits, run starts, tokens)`` for each packed token of the runs.

    They are how many keys of its slot it sees, the packed index at which its run begins, and its own packed index.
    """
    lengths = [run.right - run.left for run in runs]
    limit = np.repeat(np.array([run.start for run in runs]), lengths)
    left = np.repeat(np.array([run.left for run in runs]), lengths)
    return limit, left, np.arange(runs[0].left, runs[-1].right)


@dataclass
class PackedBatch:
    """What all layers of a micro-batch share: its runs and waves, and their arrays on each device that needs them."""

    runs: list[Run]
    waves: list[Wave]
    on_device: dict[tuple[Any, ...], list[Tensor]] = field(default_factory=dict)

    @classmethod
    def of(cls, plan: PrefixPlan) -> PackedBatch:
        """The plan's batch, made by the first layer that asks."""
        if plan.packed is None:
            runs = find_runs(plan.segments)
            plan.packed = cls(runs, find_waves(runs, plan.store.capacity))
        found: PackedBatch = plan.packed
        return found

    def writes(self, device: torch.device) -> Iterator[tuple[Tensor, ...]]:
        """For each wave: store positions and packed indices to write before attention, then those to write after it."""
        key = ("writes", device)
        if key not in self.on_device:
            arrays = [array for wave in self.waves for array in (*wave.before, *wave.after)]
            self.on_device[key] = to_device(arrays, device)
        flat = self.on_device[key]
        return (tuple(flat[i : i + 4]) for i in range(0, len(flat), 4))

    def tiles(self, device: torch.device, size: int) -> tuple[Tensor, Tensor, list[Tensor]]:
        """``(limits, run starts, tiles)``: the first two for each token, the last for each wave; all int32."""
        key = ("tiles", device, size)
        if key not in self.on_device:
            limit, run, _ = _per_token(self.runs)
            tables = [tile_table(wave.runs, size) for wave in self.waves]
            arrays = [limit.astype(np.int32), run.astype(np.int32), *(table.reshape(-1) for table in tables)]
            self.on_device[key] = to_device(arrays, device)
        limits, runs, *tiles = self.on_device[key]
        return limits, runs, tiles


def to_device(arrays: Sequence[np.ndarray], device: torch.device) -> list[Tensor]:
    """Arrays of one dtype as tensors on ``device``, moved in one transfer."""
    joined = torch.from_numpy(np.concatenate(arrays))
    if device.type == "cuda":
        joined = joined.pin_memory().to(device, non_blocking=True)
    return list(joined.split([len(array) for array in arrays]))


def attend_packed(
    plan: PrefixPlan, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float, window: int | None,
    softcap: float | None, chunk: int | None = None, sinks: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Computes what ``attend_in_order`` does: by the kernel on a GPU that has a configuration, by that loop elsewhere.

    query: [1, H, N, d], key: [1, Hkv, N, d], value: [1, Hkv, N, dv] -> [1, N, H, dv].
    """
    rows = plan, layer, query, key, value, scaling, window, softcap, chunk, sinks
    on_gpu = query.device.type == "cuda"
    config = _kernel_config(query.shape[3], value.shape[3], query.dtype, query.device) if on_gpu else None
    return attend_by_kernel(*rows, config=config) if config else attend_in_order(*rows)


@functools.cache
def _kernel_config(head_dim: int, value_dim: int, dtype: torch.dtype, device: torch.device) -> PrefixConfig | None:
    """The kernel's configuration on this device. Where the kernel cannot run, None, and a warning in the log, once."""
    try:
        from fastdss.kernels.configs import prefix_config
        from fastdss.kernels.prefix_attention import architecture

        return prefix_config(head_dim, value_dim, dtype, architecture(device))
    except (ImportError, ValueError) as reason:
        _log.warning("attention without the kernel, segment by segment: %s", reason)
        return None


def attend_by_kernel(
    plan: PrefixPlan, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float, window: int | None,
    softcap: float | None, chunk: int | None = None, sinks: Tensor | None = None,
    *, config: PrefixConfig | None = None,
) -> Tensor:  # fmt: skip
    """As ``attend_packed``, always by the Triton kernel, also in the interpreter; ``ValueError`` where it cannot run.

    ``config``: by default the one pinned for the chip. Branches of one slot share tiles, so that NaN values in one
    branch also reach the results of its neighbours in the slot.
    """
    from fastdss.kernels.configs import prefix_config
    from fastdss.kernels.prefix_attention import (
        architecture,
        launch_prefix_attention_fwd,
        stored_dtype,
        tokens_per_tile,
    )

    config = config or prefix_config(query.shape[3], value.shape[3], query.dtype, architecture(query.device))
    store = plan.store.layer(layer, key, value)
    group = query.shape[1] // key.shape[1]
    batch = PackedBatch.of(plan)
    limits, runs, tables = batch.tiles(query.device, tokens_per_tile(group, config))
    q, k, v = (x[0] if x.stride(-1) == 1 else x[0].contiguous() for x in (query, key, value))
    out = query.new_empty(query.shape[2], query.shape[1], value.shape[3], dtype=stored_dtype(query))
    for (to, source, to_later, source_later), tiles in zip(batch.writes(query.device), tables, strict=True):
        write(store, (k, v), to, source)
        launch_prefix_attention_fwd(
            q, k, v, store, limits, runs, tiles, out,
            scaling=scaling, window=window, softcap=softcap, config=config, chunk=chunk, sinks=sinks,
        )  # fmt: skip
        write(store, (k, v), to_later, source_later)
    return out[None].to(query.dtype)


def write(store: tuple[Tensor, Tensor], new: tuple[Tensor, Tensor], to: Tensor, source: Tensor) -> None:
    """Copy the tokens with packed indices ``source``, of ``new`` ``[Hkv, N, d]``, to the store's positions ``to``."""
    if len(to):
        for kept, fresh in zip(store, new, strict=True):
            kept.index_copy_(1, to, fresh.index_select(1, source))
