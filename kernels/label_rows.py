"""Adds a multiple of a matrix's row to a row of another, as chosen by labels, without temporaries.

With it dX and dW get the terms of the labels: what rounding dZ to 16 bit took from the label's entry
(fastdss/loss/row_gradient.py), or the whole entry, where dZ is made of exponentials (fastdss/loss/exponentials.py).
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .primitives import on_device_of

BLOCK_D = 1024  # columns of a program


@triton.jit
def label_rows_bwd_kernel(
    target_ptr, source_ptr, lost_ptr, label_ptr, width,
    stride_target, stride_target_d, stride_source, stride_source_d,
    SCATTER: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1).to(tl.int64) * BLOCK_D + tl.arange(0, BLOCK_D)
    mask = columns < width
    label = tl.load(label_ptr + row).to(tl.int64)
    to, of = row, label
    if SCATTER:
        to, of = label, row
    lost = tl.load(lost_ptr + row)
    source = tl.load(source_ptr + of * stride_source + columns * stride_source_d, mask=mask, other=0.0)
    term = lost * source.to(lost.dtype)
    there = target_ptr + to * stride_target + columns * stride_target_d
    if SCATTER:
        tl.atomic_add(there, term, mask=mask, sem="relaxed")  # several rows may have one label
    else:
        tl.store(there, tl.load(there, mask=mask, other=0.0) + term, mask=mask)


def launch_label_rows_bwd(target: Tensor, source: Tensor, lost: Tensor, labels: Tensor, *, scatter: bool) -> None:
    """``target[r] += lost[r] * source[labels[r]]``, with ``scatter`` ``target[labels[r]] += lost[r] * source[r]``.

    target: [T, D] in the dtype of lost: [c]; source: [S, D]; labels: [c] int64.
    """
    count, width = len(labels), target.shape[1]
    if count:
        with on_device_of(target):
            label_rows_bwd_kernel[(count, triton.cdiv(width, BLOCK_D))](
                target, source, lost, labels, width, *target.stride(), *source.stride(),
                SCATTER=scatter, BLOCK_D=BLOCK_D, num_warps=4,
            )  # fmt: skip
