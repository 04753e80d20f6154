"""Which rows are computed, in what order, how many at a time, and the memory that their logits lie in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .call import LossCall
from .objective import RowInputs

# Slab sizes; on a GPU of each slab, as the rows matter: dW is read and written once per chunk. 1 GiB is 2048 rows of a
# 128k vocabulary, where that GEMM runs at 600 TFLOP/s on an H100, as at 8192 rows; at 1024 rows it is 407. A CPU
# re-reads dW, and upcasts a 16-bit head, per chunk, and pays for every fresh page of the slab: 1024 rows of a 48k
# vocabulary take equally long with 48 to 256 MiB (Zen 4).
DEFAULT_CHUNK_BYTES = {"cpu": 128 << 20}
_DEVICE_CHUNK_BYTES = 1 << 30
_ROW_ALIGNMENT = 128  # chunk rows, where the budget allows: a GEMM tile
_COLUMN_ALIGNMENT = 32  # slab row stride in elements: 128 bytes of fp32


@dataclass(frozen=True)
class RowPlan:
    """Which rows are computed, in which order: the first ``kl_rows`` also need the reference's logits."""

    index: Tensor | None  # None: all rows as they are
    count: int
    kl_rows: int
    trusted: bool  # every planned row is known to have a weight

    def chunks(self, size: int) -> Iterator[tuple[slice, Tensor | slice, int]]:
        """(position in the plan, rows of the inputs, how many of them need the reference)"""
        for start in range(0, self.count, size):
            span = slice(start, min(start + size, self.count))
            rows = span if self.index is None else self.index[span]
            yield span, rows, min(max(self.kl_rows - start, 0), span.stop - start)


def plan_rows(call: LossCall, full_kl: bool) -> RowPlan:
    """Leave out rows without any weight. Without ``rows`` or ``compact=False`` the host waits for two counts."""
    total = call.labels.shape[0]
    if call.rows is not None:
        index, trusted = call.rows, False
        kl_rows = len(index) if call.kl_rows < 0 else call.kl_rows
    elif not call.compact:
        return RowPlan(None, total, total if full_kl else 0, False)
    elif full_kl:
        (index, kl_rows), trusted = order_rows(call.ce_weight, call.kl_weight), True
    else:  # no reference's logits are made, so the order is of no use
        index, kl_rows, trusted = _weighted_rows(call.ce_weight, call.kl_weight), 0, True
    count = index.shape[0]
    whole = count == total and (not full_kl or kl_rows in (0, total))
    return RowPlan(None if whole else index, count, kl_rows if full_kl else 0, trusted)


def row_inputs(call: LossCall, plan: RowPlan | None = None) -> RowInputs:
    """What the call knows of its rows besides their logits, in the plan's order."""
    given = RowInputs(call.labels, call.ce_weight, call.kl_weight, call.ref_logprobs, call.csft_beta)
    return given if plan is None or plan.index is None else given.at(plan.index)


def _weighted_rows(ce_weight: Tensor, kl_weight: Tensor | None) -> Tensor:
    """Rows with any weight, as they come."""
    weighted = ce_weight if kl_weight is None else torch.logical_or(ce_weight, kl_weight)
    return weighted.nonzero().squeeze(1)


def order_rows(ce_weight: Tensor, kl_weight: Tensor | None) -> tuple[Tensor, int]:
    """Rows with a KL weight, then the others with a cross-entropy weight; and the number of the former."""
    if kl_weight is None:
        return _weighted_rows(ce_weight, None), 0
    has_kl = kl_weight != 0
    live = has_kl | (ce_weight != 0)
    order = torch.argsort(torch.where(has_kl, 0, torch.where(live, 1, 2)), stable=True)
    kl_rows, count = torch.stack([has_kl.sum(), live.sum()]).tolist()
    return order[:count], kl_rows


def chunk_rows(call: LossCall, plan: RowPlan, accumulate: torch.dtype, full_kl: bool) -> int:
    """Rows per chunk: what the byte budget allows, spread evenly over the chunks that makes necessary."""
    slabs = 2 if full_kl and plan.kl_rows else 1
    return even_rows(plan, budget_of(call, slabs) // (padded(call.lm_head.shape[0]) * accumulate.itemsize * slabs))


def budget_of(call: LossCall, slabs: int = 1) -> int:
    """Bytes for what has a column for every word."""
    return call.chunk_bytes or DEFAULT_CHUNK_BYTES.get(call.hidden.device.type, slabs * _DEVICE_CHUNK_BYTES)


def even_rows(plan: RowPlan, most: int) -> int:
    """At most ``most`` rows, spread evenly over the chunks that makes necessary."""
    most = max(1, most)
    if most > _ROW_ALIGNMENT:
        most -= most % _ROW_ALIGNMENT
    chunks = max(1, -(-plan.count // most))
    even = max(1, -(-plan.count // chunks))
    return min(most, -(-even // _ROW_ALIGNMENT) * _ROW_ALIGNMENT) if chunks > 1 else even


def padded(width: int) -> int:
    return -(-width // _COLUMN_ALIGNMENT) * _COLUMN_ALIGNMENT


class Slab:
    """Memory for the logits [c, V] of one chunk after the other, whose gradient may lie over them in 16 bit.

    The contract: a row of ``narrow`` is the upper half of the memory of the same row of ``logits``. So an entry of
    narrow may be written once all logits above it in its row have been read: from back to front, by one program a row.
    """

    def __init__(self, like: Tensor, rows: int, width: int, dtype: torch.dtype) -> None:
        self.width = width
        self._memory = like.new_empty((rows, padded(width)), dtype=dtype)

    def logits(self, count: int) -> Tensor:
        return self._memory[:count, : self.width]

    def narrow(self, count: int, dtype: torch.dtype) -> Tensor:
        """``dtype`` is half as wide as the logits'."""
        start = self._memory.shape[1]
        return self._memory[:count].view(dtype)[:, start : start + self.width]


def without_weight(inputs: RowInputs) -> Tensor:
    dead = inputs.ce_weight == 0
    return dead if inputs.kl_weight is None else dead & (inputs.kl_weight == 0)


def gather(source: Tensor, rows: Tensor | slice, dead: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The chunk's rows of ``source``, zero where they have no weight (a NaN there must not reach dW)."""
    x = source[rows].to(dtype)
    return x if dead is None else x.masked_fill(dead.unsqueeze(1), 0)
