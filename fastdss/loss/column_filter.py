"""Leaving columns of dZ out of the products, as long as that is a promised share of dZ or less.

A trained model finds most of the vocabulary impossible at every one of its tokens. With ``grad_tol`` the products
``dX = dZ W`` and ``dW = dZ^T X`` read only some columns of a chunk's dZ; they are gathered, so the products stay the
vendor's dense GEMMs. The columns of least energy are left out while the Frobenius norm of all that is left out stays
within ``grad_tol`` of dZ's: measured for every chunk, column by column, not estimated.

What is left out, D [c, V], is small, but of one sign wherever a row's loss only pushes words down, so that its sum is
not small. The matrix of rank one that has D's row sums and is nearest to D takes its place:

    D ~ m u^T        m = D 1        u = D^T m / (m . m)        |D - m u^T|^2 = |D|^2 - |D^T m|^2 / (m . m)
    dX += m (u^T W)        dW += u (m^T X)

Two thin GEMMs do that for all chunks at the end. The last formula says what remains, and that is what the promise is
about: more is left out than ``grad_tol`` where the rank-one matrix makes up for it, which is tried first.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .call import LossCall
from .gemm import add_product, weighted_sums
from .objective import BLOCK_ELEMENTS

_DENSE = 0.75  # share of columns from which on gathering costs more than it saves
_TRIES = (4.0, 2.0, 1.0)  # times grad_tol: before the rank-one matrix, which on text makes up for two to five times
_COLUMNS = 4096  # gathered at a time


class Entries(NamedTuple):
    """A chunk's dZ as the products find it: ``row[:, None] * matrix``, and what beside it is never left out."""

    matrix: Tensor  # [c, V]
    row: Tensor | None  # [c]; None: all 1
    beside: Tensor | None  # [c] entries at labels; None: they are in matrix

    def times(self, vector: Tensor) -> Tensor:
        """[c] dZ @ vector."""
        product = torch.mv(self.matrix, vector.to(self.matrix.dtype)).to(vector.dtype)
        return product if self.row is None else product * self.row

    def transposed_times(self, vector: Tensor) -> Tensor:
        """[V] dZ.T @ vector."""
        scaled = vector if self.row is None else vector * self.row
        return torch.mv(self.matrix.t(), scaled.to(self.matrix.dtype)).to(vector.dtype)

    def energies(self) -> Tensor:
        """[V] sums of squares of the columns, in float64."""
        matrix = self.matrix
        dtype = torch.promote_types(matrix.dtype, torch.float32)
        weight = matrix.new_ones(matrix.shape[0], dtype=dtype) if self.row is None else self.row.to(dtype).square()
        sums = matrix.new_zeros(matrix.shape[1], dtype=dtype)
        step = max(1, BLOCK_ELEMENTS // matrix.shape[1])
        scratch = matrix.new_empty((min(step, matrix.shape[0]), matrix.shape[1]), dtype=dtype)
        for part, factor in zip(matrix.split(step), weight.split(step), strict=True):
            squares = scratch[: part.shape[0]].copy_(part) if part.dtype != dtype else part
            sums.addmv_(torch.mul(squares, squares, out=scratch[: part.shape[0]]).t(), factor)
        return sums.double()


class _Dropped(NamedTuple):
    """``D ~ left right^T`` of a chunk."""

    rows: Tensor | slice  # of the inputs
    left: Tensor  # [c]
    right: Tensor  # [V], at most 1, so that 16 bits hold it
    left_x: Tensor  # [D] left^T X


class ColumnFilter:
    """Filters chunk after chunk, and then puts back the sums of what it dropped."""

    def __init__(self, tolerance: float) -> None:
        self.tolerance = tolerance
        self._dropped: list[_Dropped] = []

    @staticmethod
    def of(call: LossCall) -> ColumnFilter | None:
        return ColumnFilter(call.grad_tol) if call.grad_tol and call.labels.shape[0] else None

    def keep(self, entries: Entries, x: Tensor, rows: Tensor | slice) -> Tensor | None:
        """The columns of dZ to multiply, in rising order; None: all. The host waits for their number."""
        energies = entries.energies()
        total = energies.sum()
        if entries.beside is not None:
            total = total + entries.beside.double().square().sum()
        rising, order = energies.sort()
        growing = rising.cumsum(0)
        limits = total * torch.tensor([(self.tolerance * share) ** 2 for share in _TRIES], device=total.device)
        counts = torch.searchsorted(growing, limits, right=True).tolist()  # 0 where dZ holds a NaN
        if not bool(total.isfinite()):
            return None
        for share, count in zip(_TRIES, counts, strict=True):
            if count <= (1 - _DENSE) * energies.shape[0]:
                return None
            dropped = torch.zeros_like(energies, dtype=torch.bool).index_fill_(0, order[:count], True)
            left, right, made_up = _rank_one(entries, dropped)
            remains = growing[count - 1] - made_up
            if share == 1.0 or bool(remains <= (self.tolerance**2) * total):
                self._dropped.append(_Dropped(rows, left, right, left @ x.to(left.dtype)))
                return order[count:].sort().values
        raise AssertionError("the last share is 1")

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


def _rank_one(entries: Entries, dropped: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``(left, right, energy)`` of the rank-one matrix that stands for the dropped columns [V]."""
    dtype = torch.promote_types(entries.matrix.dtype, torch.float32)
    left, _ = _to_unit(entries.times(dropped.to(dtype)))
    right, size = _to_unit(entries.transposed_times(left).masked_fill_(~dropped, 0))
    squared = (left @ left).clamp(min=torch.finfo(dtype).tiny)
    made_up = right.double().square().sum() * size.double().square() / squared.double()
    return left * (size / squared), right, made_up


def _to_unit(vector: Tensor) -> tuple[Tensor, Tensor]:
    """``vector`` with a largest entry of 1, and what that was; zeros stay zeros."""
    size = vector.abs().amax()
    return vector / size.clamp(min=torch.finfo(vector.dtype).tiny), size


def multiply_columns(
    matrix: Tensor, columns: Tensor, head: Tensor, x: Tensor, d_x: Tensor | None, d_head: Tensor | None
) -> None:
    """``d_x = matrix @ head`` and ``d_head += matrix.T @ x``, of these columns of ``matrix`` [c, V] alone."""
    if d_x is not None:
        d_x.zero_()
    for part in columns.split(_COLUMNS) if len(columns) else ():
        gathered = matrix.index_select(1, part)
        if d_x is not None:
            add_product(d_x, gathered, head.index_select(0, part))
        if d_head is not None:
            product = d_head.new_empty((part.shape[0], x.shape[1]))
            add_product(product, gathered.t(), x, first=True)
            d_head.index_add_(0, part, product)
