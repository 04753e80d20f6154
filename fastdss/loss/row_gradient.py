"""From dZ, the gradient for a chunk's logits, to those for hidden states, head and bias, summed in full precision."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor

from .column_filter import Entries, multiply_columns
from .gemm import add_product, label_rows, times_head


class Gradient(Protocol):
    """dZ of some rows: the matrix itself (:class:`RowGradient`), or exponentials and factors (``ExpGradient``)."""

    def entries(self) -> Entries:
        """The parts of dZ that ``ColumnFilter`` reads to choose columns."""

    def multiply(
        self,
        head: Tensor,
        x: Tensor,
        d_x: Tensor | None,
        d_head: Tensor | None,
        *,
        columns: Tensor | None = None,
        first: bool = False,
    ) -> None:
        """``d_x = dZ @ head`` and ``d_head += dZ.T @ x``, without a [V, D] temporary.

        head: [V, D]; x, d_x: [c, D]. columns: read only these columns of dZ, in rising order. first: ``d_head`` is not
        initialised yet and is overwritten; not allowed together with columns.
        """

    def add_bias(self, d_bias: Tensor) -> None:
        """``d_bias += dZ.sum(0)``."""


class RowGradient(NamedTuple):
    """dZ of a chunk, and the rounding error of its entry at each row's label.

    The label's entry carries about half of the energy of a cross-entropy gradient (its sum of squares), so that its
    rounding error is worth keeping; the products add it back.
    """

    dz: Tensor  # [c, V] in the dtype of the GEMMs that read it
    lost: Tensor | None  # [c] the exact entry at the label less the rounded one; None: nothing was rounded
    labels: Tensor  # [c] columns of dz; where another rank holds the label, any column, and lost is 0
    backend: str  # LossCall.backend

    def entries(self) -> Entries:
        return Entries(self.dz, None, None)

    def multiply(
        self,
        head: Tensor,
        x: Tensor,
        d_x: Tensor | None,
        d_head: Tensor | None,
        *,
        columns: Tensor | None = None,
        first: bool = False,
    ) -> None:
        if columns is not None:
            multiply_columns(self.dz, columns, head, x, d_x, d_head)
        else:
            if d_x is not None:
                self._multiply_head(head, d_x)
            if d_head is not None:
                add_product(d_head, self.dz.t(), x, first=first)
        if self.lost is not None:
            if d_x is not None:
                label_rows(d_x, head, self.lost, self.labels, self.backend, scatter=False)
            if d_head is not None:
                label_rows(d_head, x, self.lost, self.labels, self.backend, scatter=True)

    def add_bias(self, d_bias: Tensor) -> None:
        d_bias += self.dz.sum(dim=0, dtype=d_bias.dtype)
        if self.lost is not None:
            d_bias.index_add_(0, self.labels, self.lost)

    def _multiply_head(self, head: Tensor, d_x: Tensor) -> None:
        if d_x.device.type != "cpu" or self.dz.dtype == head.dtype:
            add_product(d_x, self.dz, head, first=True)
        else:
            times_head(self.dz, head, d_x)  # rounds dz to the head's dtype; the lines below add the label's error back
            exact = self.dz.gather(1, self.labels.unsqueeze(1)).squeeze(1)
            rounded = exact.to(head.dtype).to(exact.dtype)
            label_rows(d_x, head, exact - rounded, self.labels, self.backend, scatter=False)
