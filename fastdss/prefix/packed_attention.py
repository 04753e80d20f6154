"""Attention of a whole micro-batch in one launch of the Triton kernel.

It stands for ``attend_in_order`` and leaves the store as it does. There, each segment's keys go to its slot before the
segment attends, so what a slot holds depends on the order. Here the order becomes data:

- a *run* is a row of segments that continue each other in one slot. Its tokens see the run's own keys where they lie
  in the pack, and ``start`` keys of the slot;
- in a *wave*, runs whose keys another run of the wave reads are written to the store first, everybody attends, then
  the rest is written, each position by the last run that has it. A run opens a new wave when it reads keys that
  an earlier run of the wave must not see yet. The trunk-then-descending-branches order of ``packing.schedule`` needs
  one wave per micro-batch.

On a CPU the loop stays. Sharing the trunk part of neighbouring branches in one product, merged with the rest by
log-sum-exp, was measured there (SmolLM2-135M's shapes, 400-token micro-batches, one thread): 0.94x the loop's speed for
200 words / 40 boundaries, 1.05x for 800 / 40, 1.00 to 1.05x for 800 / 160: not worth a second path. Nor are batches of
short segments with their keys gathered side by side: 1.00x for the built-in guard on answers of 22 words, 0.94x at
SmolLM2's shapes; what fewer calls save, gathering costs.
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
    """Packed tokens ``[left, right)`` at positions ``start, …`` of the slots at ``bases``; they read the first one."""

    bases: tuple[int, ...]
    start: int
    left: int
    right: int


@dataclass(frozen=True)
class Wave:
    """Runs that can attend at once. ``before`` and ``after``: store positions, and packed indices to write there."""

    runs: list[Run]
    before: tuple[np.ndarray, np.ndarray]
    after: tuple[np.ndarray, np.ndarray]


def find_runs(segments: Sequence[Segment]) -> list[Run]:
    """The segments of a micro-batch with those joined that continue the one before them."""
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
    """Runs in order -> waves whose outcome is that of running them one after another (see the module's docstring)."""
    waves: list[list[Run]] = []
    seen: dict[int, int] = {}  # how far the runs of the wave read in each slot
    taken: dict[int, int] = {}  # the first position of a slot that someone writes after someone read it
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
    wanted: dict[int, int] = {}  # how far later runs read in each slot
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
    """For each position of the store, the packed index of the last token that is written there, or -1."""
    owners = np.full(capacity, -1, dtype=np.int64)
    for run in runs:
        for base in run.bases:
            owners[base + run.start : base + run.start + run.right - run.left] = np.arange(run.left, run.right)
    return owners


def _moves(owners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    positions = np.flatnonzero(owners >= 0)
    return positions, owners[positions]


def tile_table(runs: Sequence[Run], size: int) -> np.ndarray:
    """``[T, 9]`` int32: tiles of at most ``size`` consecutive tokens of one slot, those with the most keys first.

    Columns: first token, end, base of the slot, then least and greatest limit, run start and position in the tile.
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
    """For each packed token of the runs: how many keys of the slot it sees, where its run begins, its packed index."""
    lengths = [run.right - run.left for run in runs]
    limit = np.repeat(np.array([run.start for run in runs]), lengths)
    left = np.repeat(np.array([run.left for run in runs]), lengths)
    return limit, left, np.arange(runs[0].left, runs[-1].right)


@dataclass
class PackedBatch:
    """What a micro-batch's layers share: its runs and waves, and their arrays on each device that asked."""

    runs: list[Run]
    waves: list[Wave]
    on_device: dict[tuple[Any, ...], list[Tensor]] = field(default_factory=dict)

    @classmethod
    def of(cls, plan: PrefixPlan) -> PackedBatch:
        """The plan's, made when the first layer asks."""
        if plan.packed is None:
            runs = find_runs(plan.segments)
            plan.packed = cls(runs, find_waves(runs, plan.store.capacity))
        found: PackedBatch = plan.packed
        return found

    def writes(self, device: torch.device) -> Iterator[tuple[Tensor, ...]]:
        """Per wave: store positions and packed indices to write before attention, then those to write after it."""
        key = ("writes", device)
        if key not in self.on_device:
            arrays = [array for wave in self.waves for array in (*wave.before, *wave.after)]
            self.on_device[key] = to_device(arrays, device)
        flat = self.on_device[key]
        return (tuple(flat[i : i + 4]) for i in range(0, len(flat), 4))

    def tiles(self, device: torch.device, size: int) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Per token its limit and where its run begins, and per wave its tiles; all int32."""
        key = ("tiles", device, size)
        if key not in self.on_device:
            limit, run, _ = _per_token(self.runs)
            tables = [tile_table(wave.runs, size) for wave in self.waves]
            arrays = [limit.astype(np.int32), run.astype(np.int32), *(table.reshape(-1) for table in tables)]
            self.on_device[key] = to_device(arrays, device)
        limits, runs, *tiles = self.on_device[key]
        return limits, runs, tiles


def to_device(arrays: Sequence[np.ndarray], device: torch.device) -> list[Tensor]:
    """Arrays of one dtype in one transfer."""
    joined = torch.from_numpy(np.concatenate(arrays))
    if device.type == "cuda":
        joined = joined.pin_memory().to(device, non_blocking=True)
    return list(joined.split([len(array) for array in arrays]))


def attend_packed(
    plan: PrefixPlan, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float, window: int | None,
    softcap: float | None, chunk: int | None = None, sinks: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """``attend_in_order``'s result and store: by the kernel on a GPU that has a configuration, by the loop elsewhere.

    query: [1, H, N, d], key: [1, Hkv, N, d], value: [1, Hkv, N, dv] -> [1, N, H, dv].
    """
    rows = plan, layer, query, key, value, scaling, window, softcap, chunk, sinks
    on_gpu = query.device.type == "cuda"
    config = _kernel_config(query.shape[3], value.shape[3], query.dtype, query.device) if on_gpu else None
    return attend_by_kernel(*rows, config=config) if config else attend_in_order(*rows)


@functools.cache
def _kernel_config(head_dim: int, value_dim: int, dtype: torch.dtype, device: torch.device) -> PrefixConfig | None:
    """The kernel's on this device; None, and once a line in the log, where the kernel cannot run."""
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
    """As ``attend_packed``, by the Triton kernel, also in the interpreter; ``ValueError`` where it cannot run.

    ``config`` is the chip's pinned one unless given. Branches of one slot share tiles, so NaN values in one of them
    reach its neighbours of the same slot.
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
    """Copy the packed tokens ``source`` of ``[Hkv, N, d]`` to the store's positions ``to``."""
    if len(to):
        for kept, fresh in zip(store, new, strict=True):
            kept.index_copy_(1, to, fresh.index_select(1, source))
