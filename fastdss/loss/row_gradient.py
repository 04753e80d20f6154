"""What a chunk's dZ becomes: gradients of hidden states, head and bias, summed in full precision."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor

from .column_filter import Entries, multiply_columns
from .gemm import add_product, label_rows, times_head


class Gradient(Protocol):
    """dZ of some rows, in whatever form it is kept."""

    def entries(self) -> Entries:
        """What of it ``ColumnFilter`` reads to choose columns."""

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
        """``d_x = dZ @ head`` and ``d_head += dZ.T @ x`` (first: ``=``), without a [V, D] temporary.

        head: [V, D]; x, d_x: [c, D]. columns: the only ones of dZ to read, in rising order; then never ``first``.
        """

    def add_bias(self, d_bias: Tensor) -> None:
        """``d_bias += dZ.sum(0)``."""


class RowGradient(NamedTuple):
    """dZ of a chunk, and what rounding it dropped at each row's label, where half of a loss gradient's energy lies."""

    dz: Tensor  # [c, V] in the dtype of the GEMMs that read it
    lost: Tensor | None  # [c]; None: nothing was rounded
    labels: Tensor  # [c] columns of dz, any where another rank holds the label (nothing is lost there)
    backend: str  # of the call

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
            times_head(self.dz, head, d_x)  # rounded on the way: the label's share goes back
            exact = self.dz.gather(1, self.labels.unsqueeze(1)).squeeze(1)
            rounded = exact.to(head.dtype).to(exact.dtype)
            label_rows(d_x, head, exact - rounded, self.labels, self.backend, scatter=False)
