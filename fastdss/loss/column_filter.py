"""Leaves columns of dZ out of the products while their share of dZ's norm stays within ``grad_tol``.

A trained model gives most words of the vocabulary a probability near 0 at every token of a chunk. With ``grad_tol`` the
products ``dX = dZ W`` and ``dW = dZ^T X`` read only some columns of a chunk's dZ. These are gathered, so the products
stay the vendor's dense GEMMs. The columns of least energy (sum of squares) are left out while the Frobenius norm of all
that is left out stays within ``grad_tol`` of dZ's; it is measured for every chunk, not estimated.

What is left out, D [c, V], is small, but in the rows of most losses all its entries have one sign (the loss only lowers
these words), so that its sum is not small. The matrix of rank one that has D's row sums and is nearest to D takes its
place:

    D ~ m u^T        m = D 1        u = D^T m / (m . m)        |D - m u^T|^2 = |D|^2 - |D^T m|^2 / (m . m)
    dX += m (u^T W)        dW += u (m^T X)

Two thin GEMMs add these terms for all chunks at the end. |D - m u^T|, which the last formula gives, is what is finally
missing, and it is what ``grad_tol`` bounds. So columns with a larger share than ``grad_tol`` may be left out if the
rank-one matrix makes up for enough of it; larger shares are tried first.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .call import LossCall
from .gemm import add_product, weighted_sums
from .objective import BLOCK_ELEMENTS

_DENSE = 0.75  # if this share of the columns or more must be kept, gathering them costs more than it saves
# The norm that is left out before the rank-one matrix is added, as multiples of grad_tol, tried in this order. On text
# that matrix makes what is missing two to five times smaller. The last must be 1: it needs no matrix to keep grad_tol.
_TRIES = (4.0, 2.0, 1.0)
_UNSEEN = 2.0**-10  # how much of what may be left out (its square) may have escaped the sums; a choice
_COLUMNS = 4096  # columns gathered at a time; a choice, which bounds the memory of the gathered parts


class Entries(NamedTuple):
    """A chunk's dZ, ``row[:, None] * matrix``, and its entries at labels where they are kept apart.

    Entries that are kept apart are never left out.
    """

    matrix: Tensor  # [c, V]
    row: Tensor | None  # [c] factors of the rows; None: all 1
    beside: Tensor | None  # [c] entries at labels; None: matrix contains them

    def times(self, vector: Tensor) -> Tensor:
        """[c] dZ @ vector."""
        product = torch.mv(self.matrix, vector.to(self.matrix.dtype)).to(vector.dtype)
        return product if self.row is None else product * self.row

    def transposed_times(self, vector: Tensor) -> Tensor:
        """[V] dZ.T @ vector."""
        scaled = vector if self.row is None else vector * self.row
        return torch.mv(self.matrix.t(), scaled.to(self.matrix.dtype)).to(vector.dtype)

    def energies(self) -> Tensor:
        """[V] sums of squares of the columns, in float64.

        Entries are multiplied by their row's factor before they are squared: the factor may be as small as 2**-60, and
        its square would be 0 in fp32.
        """
        matrix = self.matrix
        dtype = torch.promote_types(matrix.dtype, torch.float32)
        row = matrix.new_ones(matrix.shape[0], dtype=dtype) if self.row is None else self.row.to(dtype)
        sums = matrix.new_zeros(matrix.shape[1], dtype=dtype)
        step = max(1, BLOCK_ELEMENTS // matrix.shape[1])
        scratch = matrix.new_empty((min(step, matrix.shape[0]), matrix.shape[1]), dtype=dtype)
        for part, factor in zip(matrix.split(step), row.split(step), strict=True):
            squares = torch.mul(part, factor.unsqueeze(1), out=scratch[: part.shape[0]]).square_()
            sums.addmv_(squares.t(), torch.ones_like(factor))
        return sums.double()


class _Dropped(NamedTuple):
    """The rank-one matrix ``left right^T`` that stands for a chunk's dropped columns: m u^T above, scaled."""

    rows: Tensor | slice  # the chunk's rows in the inputs
    left: Tensor  # [c]
    right: Tensor  # [V], scaled to entries of at most 1, which 16 bit can hold
    left_x: Tensor  # [D] left^T X


class ColumnFilter:
    """Chooses the columns of each chunk, and at the end adds the rank-one matrices of those it dropped."""

    def __init__(self, tolerance: float) -> None:
        self.tolerance = tolerance
        self._dropped: list[_Dropped] = []

    @staticmethod
    def of(call: LossCall) -> ColumnFilter | None:
        return ColumnFilter(call.grad_tol) if call.grad_tol and call.labels.shape[0] else None

    def keep(self, entries: Entries, x: Tensor, rows: Tensor | slice) -> Tensor | None:
        """The columns of dZ to multiply, in rising order; None: all. The host waits for the device to count them."""
        rising, order = entries.energies().sort()
        beside = (
            rising.new_zeros(1) if entries.beside is None else entries.beside.double().square().sum(0, keepdim=True)
        )
        known = torch.cat([rising, beside]).cpu()  # a GPU sums up in an order of its own, and refuses to if it may not
        growing, total = known[:-1].cumsum(0), float(known.sum())
        limits = torch.tensor([(self.tolerance * share) ** 2 * total for share in _TRIES], dtype=growing.dtype)
        counts = torch.searchsorted(growing, limits, right=True).tolist()  # how many columns may be dropped, per try
        # Squares below the smallest number may have become 0. If so many could matter, nothing is known: keep all.
        unseen = entries.matrix.numel() * torch.finfo(torch.promote_types(entries.matrix.dtype, torch.float32)).tiny
        if not (math.isfinite(total) and unseen <= _UNSEEN * self.tolerance**2 * total):
            return None
        for share, count in zip(_TRIES, counts, strict=True):
            if count <= (1 - _DENSE) * rising.shape[0]:
                return None
            dropped = torch.zeros_like(rising, dtype=torch.bool).index_fill_(0, order[:count], True)
            left, right, made_up = _rank_one(entries, dropped)
            if share == 1.0 or float(growing[count - 1]) - float(made_up) <= self.tolerance**2 * total:
                self._dropped.append(_Dropped(rows, left, right, left @ x.to(left.dtype)))
                return order[count:].sort().values
        raise AssertionError("the last share is 1")

    def put_back(self, head: Tensor, d_hidden: Tensor | None, d_head: Tensor | None) -> None:
        """Add the rank-one matrices' products to the gradients of hidden and head."""
        if not self._dropped:
            return
        right = torch.stack([dropped.right for dropped in self._dropped])  # [chunks, V]
        if d_hidden is not None:
            for dropped, mean in zip(self._dropped, weighted_sums(right, head), strict=True):
                d_hidden[dropped.rows] += torch.outer(dropped.left, mean)
        if d_head is not None:
            d_head.addmm_(right.t(), torch.stack([dropped.left_x for dropped in self._dropped]))


def _rank_one(entries: Entries, dropped: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``(left, right, energy)`` of the rank-one matrix for the columns marked in ``dropped`` [V].

    energy: the square of its Frobenius norm, by which it reduces what is missing.
    """
    dtype = torch.promote_types(entries.matrix.dtype, torch.float32)
    left, _ = _to_unit(entries.times(dropped.to(dtype)))
    right, size = _to_unit(entries.transposed_times(left).masked_fill_(~dropped, 0))
    squared = (left @ left).clamp(min=torch.finfo(dtype).tiny)
    made_up = right.double().square().sum() * size.double().square() / squared.double()
    return left * (size / squared), right, made_up


def _to_unit(vector: Tensor) -> tuple[Tensor, Tensor]:
    """``vector`` divided by its largest absolute value, and that value; a vector of zeros stays as it is."""
    size = vector.abs().amax()
    return vector / size.clamp(min=torch.finfo(vector.dtype).tiny), size


def multiply_columns(
    matrix: Tensor, columns: Tensor, head: Tensor, x: Tensor, d_x: Tensor | None, d_head: Tensor | None
) -> None:
    """``d_x = matrix @ head`` and ``d_head += matrix.T @ x``, reading only ``columns`` of ``matrix`` [c, V]."""
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
