"""Attention of a whole micro-batch by torch's flash-attn, in two calls whose results are merged.

It replaces ``attend_in_order`` and leaves the store in the same state. With the runs and waves of ``packed_attention``:

    out_1, lse_1 = every run against what its slot holds before it, in place, not causal
    out_2, lse_2 = every run against its own tokens, causal
    out = out_2 + sigmoid(lse_1 - lse_2) * (out_1 - out_2)            in fp32, rounded once

``torch.nn.attention.varlen`` gives access to every flash-attn that torch has (FA2 in its wheels; FA3 or FA4 where the
caller activated them). They differ in three ways, on which nothing here depends. A run with an empty slot has a
log-sum-exp of +inf in one and -inf in another, so its share is set here. The log-sum-exp is ``[H, T]``, although a
docstring says otherwise. Whole tiles of values may be multiplied by 0, also where none were written, so a
store begins as zeros.

This path supports no softcap, no sinks and no chunks, and no window in the first call. For models that need one of them
it raises an error; the Triton kernel supports them.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import varlen

from fastdss.errors import UserError

from .attention import PrefixPlan
from .packed_attention import PackedBatch, Wave, to_device, write

_KEYWORDS = {"return_aux", "scale", "window_size", "enable_gqa", "seqused_k"}
_ELSE = "use backend='triton' or 'torch'"


@dataclass(frozen=True)
class Part:
    """A wave as flash-attn's arguments: packed tokens ``[left, right)``, cut into runs at ``cuts``.

    ``cuts``, ``bases``: [runs + 1] int32; ``bases`` says where each run's slot begins. ``used``: [runs] int32, how many
    positions of the slot the run sees. ``longest``: the length of the longest run; ``reach``: the largest of ``used``.
    ``alone``: [right - left, 1, 1] bool, the tokens that see no position of their slot; None if there are none.
    """

    left: int
    right: int
    cuts: Tensor
    bases: Tensor
    used: Tensor
    longest: int
    reach: int
    alone: Tensor | None


def attend_by_flash(
    plan: PrefixPlan, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float, window: int | None,
    softcap: float | None, chunk: int | None = None, sinks: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Computes what ``attend_in_order`` does, by flash-attn; ``ValueError`` where that cannot run.

    query: [1, H, N, d], key: [1, Hkv, N, d], value: [1, Hkv, N, d] -> [1, N, H, d]. With FA3, NaN values in one slot
    also reach results of the slot beside it.
    """
    problem = flash_problem(query, value)
    if problem:
        raise UserError(f"backend: flash {problem}; {_ELSE}")
    _check_rules(plan, window, {"softcap": softcap, "chunks": chunk, "sinks": sinks})
    store = plan.store.layer(layer, key, value)
    batch = PackedBatch.of(plan)
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # [N, H, d], views
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    parts = _parts(batch, plan.store.capacity, query.device)
    for (to, source, to_later, source_later), part in zip(batch.writes(query.device), parts, strict=True):
        write(store, (key[0], value[0]), to, source)
        here = slice(part.left, part.right)
        out[here] = _attend_part(part, q[here], k[here], v[here], store, scaling)
        write(store, (key[0], value[0]), to_later, source_later)
    return out[None]


def _attend_part(part: Part, q: Tensor, k: Tensor, v: Tensor, store: tuple[Tensor, Tensor], scaling: float) -> Tensor:
    """The result ``[n, H, d]`` of one wave; q: [n, H, d], k and v: [n, Hkv, d], store: [Hkv, capacity, d] each."""
    how: dict[str, Any] = {
        "scale": scaling,
        "return_aux": varlen.AuxRequest(lse=True),
        "enable_gqa": q.shape[1] != k.shape[1],
    }
    longest = part.longest, part.longest
    own, own_lse = varlen.varlen_attn(q, k, v, part.cuts, part.cuts, *longest, window_size=(-1, 0), **how)
    if not part.reach:
        return own
    keys, values = (x.transpose(0, 1) for x in store)  # views: the store is not copied
    reach = part.longest, part.reach
    kept, kept_lse = varlen.varlen_attn(q, keys, values, part.cuts, part.bases, *reach, seqused_k=part.used, **how)
    return merge(kept, kept_lse, own, own_lse, part.alone).to(q.dtype)


def merge(kept: Tensor, kept_lse: Tensor, own: Tensor, own_lse: Tensor, alone: Tensor | None) -> Tensor:
    """Merge two results of attention, over two sets of keys, into that of one softmax over all keys, in fp32.

    kept, own: ``[n, H, d]``, with log-sum-exps ``[H, n]``. ``alone``: ``[n, 1, 1]`` bool, the tokens for which the set
    of ``kept`` is empty: whatever ``kept`` holds for them is ignored.
    """
    share = torch.sigmoid(kept_lse - own_lse).transpose(0, 1)[..., None]
    dtype = torch.promote_types(own.dtype, torch.float32)
    kept, own = kept.to(dtype), own.to(dtype)
    if alone is not None:
        share, kept = share.masked_fill(alone, 0.0), kept.masked_fill(alone, 0.0)
    return own + share.to(dtype) * (kept - own)


def flash_problem(query: Tensor, value: Tensor) -> str | None:
    """Why flash-attn cannot run on these tensors ``[1, H, N, d]``; None if it can."""
    missing = _KEYWORDS - set(inspect.signature(varlen.varlen_attn).parameters)
    if missing:
        return f"needs a torch whose varlen_attn knows {', '.join(sorted(missing))}, got torch {torch.__version__}"
    if query.device.type != "cuda" or query.dtype not in (torch.bfloat16, torch.float16):
        return f"needs a GPU and a model in bfloat16 or float16, got {query.device.type} and {query.dtype}"
    if query.shape[3] != value.shape[3] or query.shape[3] > 256 or query.shape[3] % 8:
        return f"needs heads of one size up to 256, a multiple of 8, got {query.shape[3]} and {value.shape[3]}"
    return None


def _check_rules(plan: PrefixPlan, window: int | None, rules: dict[str, object]) -> None:
    """Refuse rules that flash-attn does not support; a window as long as the longest slot hides nothing and is none."""
    last = max(segment.start + len(segment.ids) for segment in plan.segments)
    found = [name for name, value in rules.items() if value is not None]
    found += ["window"] if window is not None and window < last else []
    if found:
        raise UserError(f"backend: flash knows no {found[0]} in attention, this model has one; {_ELSE}")


def _parts(batch: PackedBatch, capacity: int, device: torch.device) -> list[Part]:
    """The waves of a micro-batch as flash-attn's arguments, made once, by the first layer that asks."""
    key = ("flash", device)
    if key not in batch.on_device:
        arrays = [array for wave in batch.waves for array in _wave_arrays(wave, capacity)]
        batch.on_device[key] = to_device(arrays, device)
    flat = iter(batch.on_device[key])
    return [_part(wave, *(next(flat) for _ in range(4))) for wave in batch.waves]


def _wave_arrays(wave: Wave, capacity: int) -> tuple[np.ndarray, ...]:
    lefts = [run.left for run in wave.runs]
    cuts = np.array([*lefts, wave.runs[-1].right]) - lefts[0]
    used = np.array([run.start for run in wave.runs])
    bases = np.array([*(run.bases[0] for run in wave.runs), capacity])
    alone = np.repeat(used == 0, np.diff(cuts))
    return tuple(array.astype(np.int32) for array in (cuts, bases, used, alone))


def _part(wave: Wave, cuts: Tensor, bases: Tensor, used: Tensor, alone: Tensor) -> Part:
    starts = [run.start for run in wave.runs]
    longest = max(run.right - run.left for run in wave.runs)
    nothing = alone.bool()[:, None, None] if 0 in starts else None
    return Part(wave.runs[0].left, wave.runs[-1].right, cuts, bases, used, longest, max(starts), nothing)
