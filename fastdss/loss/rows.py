"""Decides which rows are computed, in which order and how many at a time, and holds the memory of their logits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .call import LossCall
from .objective import RowInputs

# The size of a slab, the memory for a chunk's logits. On a GPU the policy's slab and the reference's get it each. There
# the number of rows matters, because dW is read and written once per chunk: 1 GiB holds 2048 rows of a 128k vocabulary,
# where the GEMM of dW runs at 600 TFLOP/s on an H100, as at 8192 rows; with 1024 rows it runs at 407. A CPU too reads
# dW, and upcasts a 16-bit head, once per chunk, but pays for every page of the slab that it touches first: 1024 rows of
# a 48k vocabulary take equally long with 48 to 256 MiB (Zen 4).
DEFAULT_CHUNK_BYTES = {"cpu": 128 << 20}
_DEVICE_CHUNK_BYTES = 1 << 30
_ROW_ALIGNMENT = 128  # a chunk has a multiple of this many rows if the budget allows: the height of a GEMM's tile
_COLUMN_ALIGNMENT = 32  # the stride of a slab's rows is a multiple of this many elements: 128 bytes of fp32


@dataclass(frozen=True)
class RowPlan:
    """The rows to compute, in order; the first ``kl_rows`` of them also need the reference's logits."""

    index: Tensor | None  # None: all rows, in the order of the inputs
    count: int
    kl_rows: int
    trusted: bool  # every planned row is known to have a weight

    def chunks(self, size: int) -> Iterator[tuple[slice, Tensor | slice, int]]:
        """For each chunk ``(its slice of the plan, its rows in the inputs, how many of them need the reference)``."""
        for start in range(0, self.count, size):
            span = slice(start, min(start + size, self.count))
            rows = span if self.index is None else self.index[span]
            yield span, rows, min(max(self.kl_rows - start, 0), span.stop - start)


def plan_rows(call: LossCall, full_kl: bool) -> RowPlan:
    """Plan the call's ``rows`` if it has them, all rows with ``compact=False``, and else those that have a weight.

    In the last case the host waits for the device to count them.
    """
    total = call.labels.shape[0]
    if call.rows is not None:
        index, trusted = call.rows, False
        kl_rows = len(index) if call.kl_rows < 0 else call.kl_rows
    elif not call.compact:
        return RowPlan(None, total, total if full_kl else 0, False)
    elif full_kl:
        (index, kl_rows), trusted = order_rows(call.ce_weight, call.kl_weight), True
    else:  # no logits of a reference are computed, so that rows with a KL weight need not come first
        index, kl_rows, trusted = _weighted_rows(call.ce_weight, call.kl_weight), 0, True
    count = index.shape[0]
    whole = count == total and (not full_kl or kl_rows in (0, total))
    return RowPlan(None if whole else index, count, kl_rows if full_kl else 0, trusted)


def row_inputs(call: LossCall, plan: RowPlan | None = None) -> RowInputs:
    """Labels, weights and reference values of the call's rows, in the plan's order."""
    given = RowInputs(call.labels, call.ce_weight, call.kl_weight, call.ref_logprobs, call.csft_beta)
    return given if plan is None or plan.index is None else given.at(plan.index)


def _weighted_rows(ce_weight: Tensor, kl_weight: Tensor | None) -> Tensor:
    """Indices of the rows that have a weight, in rising order."""
    weighted = ce_weight if kl_weight is None else torch.logical_or(ce_weight, kl_weight)
    return weighted.nonzero().squeeze(1)


def order_rows(ce_weight: Tensor, kl_weight: Tensor | None) -> tuple[Tensor, int]:
    """``(rows, kl_rows)``: the rows with a KL weight, whose number is kl_rows, then those with a cross-entropy weight
    alone."""
    if kl_weight is None:
        return _weighted_rows(ce_weight, None), 0
    has_kl = kl_weight != 0
    live = has_kl | (ce_weight != 0)
    order = torch.argsort(torch.where(has_kl, 0, torch.where(live, 1, 2)), stable=True)
    kl_rows, count = torch.stack([has_kl.sum(), live.sum()]).tolist()
    return order[:count], kl_rows


def chunk_rows(call: LossCall, plan: RowPlan, full_kl: bool) -> int:
    """Rows per chunk of the row pass: as many as the byte budget allows, see :func:`even_rows`."""
    slabs = 2 if full_kl and plan.kl_rows else 1
    return even_rows(plan, budget_of(call, slabs) // (padded(call.lm_head.shape[0]) * call.accumulate.itemsize * slabs))


def budget_of(call: LossCall, slabs: int = 1) -> int:
    """How many bytes tensors with a column for every word may take; slabs: how many such tensors there are."""
    return call.chunk_bytes or DEFAULT_CHUNK_BYTES.get(call.hidden.device.type, slabs * _DEVICE_CHUNK_BYTES)


def even_rows(plan: RowPlan, most: int) -> int:
    """A number of rows per chunk, at most ``most``, that makes all chunks about equally large."""
    most = max(1, most)
    if most > _ROW_ALIGNMENT:
        most -= most % _ROW_ALIGNMENT
    chunks = max(1, -(-plan.count // most))
    even = max(1, -(-plan.count // chunks))
    return min(most, -(-even // _ROW_ALIGNMENT) * _ROW_ALIGNMENT) if chunks > 1 else even


def padded(width: int) -> int:
    """The stride of a slab's rows of ``width`` words."""
    return -(-width // _COLUMN_ALIGNMENT) * _COLUMN_ALIGNMENT


class Slab:
    """Memory for the logits [c, V] of one chunk after the other; their gradient may be written over them in 16 bit.

    A row of ``narrow`` is the upper half of the memory of the same row of ``logits``, so that writing an entry of
    narrow overwrites a logit of the same column or a later one. A kernel must therefore read the logits of a row and
    write its gradient from the last column to the first, with one program per row.
    """

    def __init__(self, like: Tensor, rows: int, width: int, dtype: torch.dtype) -> None:
        self.width = width
        self._memory = like.new_empty((rows, padded(width)), dtype=dtype)

    def logits(self, count: int) -> Tensor:
        return self._memory[:count, : self.width]

    def narrow(self, count: int, dtype: torch.dtype) -> Tensor:
        """The memory seen as ``dtype``, which is half as wide as the logits' dtype."""
        start = self._memory.shape[1]
        return self._memory[:count].view(dtype)[:, start : start + self.width]


def without_weight(inputs: RowInputs) -> Tensor:
    """[n] bool: the rows whose weights are all 0."""
    dead = inputs.ce_weight == 0
    return dead if inputs.kl_weight is None else dead & (inputs.kl_weight == 0)


def gather(source: Tensor, rows: Tensor | slice, dead: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The chunk's rows of ``source``, set to zero where ``dead``: a NaN in such a row would reach dW as 0 * NaN."""
    x = source[rows].to(dtype)
    return x if dead is None else x.masked_fill(dead.unsqueeze(1), 0)
