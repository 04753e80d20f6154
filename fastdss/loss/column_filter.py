"""Leaving columns of dZ out of the products, where no row of a chunk has anything but dust in them.

A trained model finds most of the vocabulary impossible at every one of its tokens. With ``filter_eps`` the products
``dX = dZ W`` and ``dW = dZ^T X`` read only those columns of dZ in which some row of the chunk exceeds ``filter_eps``
times the largest weight; they are gathered, so the products stay the vendor's dense GEMMs.

What is left out, E [c, V], is small, but of one sign wherever a row's loss only pushes words down, so that its sum is
not small. The matrix of rank one that has E's row sums and is nearest to E takes its place (so it is never further
from E than nothing would be):

    E ~ m v^T        m = E 1        v = E^T m / (m . m)
    dX += m (v^T W)        dW += v (m^T X)

Two thin GEMMs do that for all chunks at the end. The cases of text in benchmarks/bench_loss.py measure what remains.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .call import LossCall
from .gemm import weighted_sums

_DENSE = 0.75  # share of columns from which on gathering costs more than it saves


class _Dropped(NamedTuple):
    """``E ~ left right^T`` of a chunk."""

    rows: Tensor | slice  # of the inputs
    left: Tensor  # [c]
    right: Tensor  # [V], at most 1, so that 16 bits hold it
    left_x: Tensor  # [D] left^T X


class ColumnFilter:
    """Filters chunk after chunk, and then puts back the sums of what it dropped."""

    def __init__(self, threshold: Tensor) -> None:
        self.threshold = threshold  # []
        self._dropped: list[_Dropped] = []

    @staticmethod
    def of(call: LossCall) -> ColumnFilter | None:
        if not call.filter_eps or not call.labels.shape[0]:
            return None
        weights = (call.ce_weight,) if call.kl_weight is None else (call.ce_weight, call.kl_weight)
        largest = torch.stack([torch.linalg.vector_norm(weight, torch.inf) for weight in weights]).amax()
        return ColumnFilter(call.filter_eps * largest)

    def keep(self, dz: Tensor, x: Tensor, rows: Tensor | slice) -> Tensor | None:
        """The columns of ``dz`` to multiply, in rising order; None: all. The host waits for their number."""
        kept = ~((dz.amax(dim=0) <= self.threshold) & (dz.amin(dim=0) >= -self.threshold))  # a NaN counts
        columns = kept.nonzero().squeeze(1)
        if columns.shape[0] >= _DENSE * dz.shape[1]:
            return None
        dtype = torch.promote_types(dz.dtype, torch.float32)
        left, _ = _to_unit(torch.mv(dz, (~kept).to(dz.dtype)).to(dtype))
        right, size = _to_unit(torch.mv(dz.t(), left.to(dz.dtype)).to(dtype).masked_fill_(kept, 0))
        left *= size / (left @ left).clamp(min=torch.finfo(dtype).tiny)
        self._dropped.append(_Dropped(rows, left, right, left @ x.to(dtype)))
        return columns

    def put_back(self, head: Tensor, d_hidden: Tensor | None, d_head: Tensor | None) -> None:
        """Add the products of what was dropped, as far as rank one goes."""
        if not self._dropped:
            return
        right = torch.stack([dropped.right for dropped in self._dropped])  # [chunks, V]
        if d_hidden is not None:
            for dropped, mean in zip(self._dropped, weighted_sums(right, head), strict=True):
                d_hidden[dropped.rows] += torch.outer(dropped.left, mean)
        if d_head is not None:
            d_head.addmm_(right.t(), torch.stack([dropped.left_x for dropped in self._dropped]))


def _to_unit(vector: Tensor) -> tuple[Tensor, Tensor]:
    """``vector`` with a largest entry of 1, and what that was; zeros stay zeros."""
    size = vector.abs().amax()
    return vector / size.clamp(min=torch.finfo(vector.dtype).tiny), size
