"""Multiplies each row of a matrix by its number, reading and writing the matrix once.

It scales hidden states for the head's gradient, and finishes the gradient of hidden states with its label terms.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .primitives import on_device_of

BLOCK_D = 1024  # columns of a program


@triton.jit
def scaled_rows_bwd_kernel(
    x_ptr, factor_ptr, out_ptr, head_ptr, label_factor_ptr, label_ptr, const_ptr, head_sum_ptr,
    width, stride_x, stride_out, stride_head, stride_head_d, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """out[r] = factor[r] x[r] + label_factor[r] head[label[r]] + const[r] head_sum; the last two may be left out."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1).to(tl.int64) * BLOCK_D + tl.arange(0, BLOCK_D)  # [BLOCK_D]
    mask = columns < width
    factor = tl.load(factor_ptr + row)
    result = tl.load(x_ptr + row * stride_x + columns, mask=mask, other=0.0).to(factor.dtype) * factor
    if head_ptr is not None:
        word = head_ptr + tl.load(label_ptr + row).to(tl.int64) * stride_head
        entries = tl.load(word + columns * stride_head_d, mask=mask, other=0.0).to(factor.dtype)
        result += tl.load(label_factor_ptr + row) * entries
    if const_ptr is not None:
        result += tl.load(const_ptr + row) * tl.load(head_sum_ptr + columns, mask=mask, other=0.0)
    tl.store(out_ptr + row * stride_out + columns, result.to(out_ptr.dtype.element_ty), mask=mask)


def launch_scaled_rows_bwd(x: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """``(x * factor[:, None]).to(dtype)``, multiplied in factor's dtype; x: [c, D], factor: [c] fp32 or fp64."""
    x = x if x.stride(1) == 1 else x.contiguous()
    out = x.new_empty(x.shape, dtype=dtype)
    _launch(x, factor, out)
    return out


def launch_hidden_rows_bwd(
    product: Tensor,
    factor: Tensor,
    head: Tensor,
    label_factor: Tensor,
    labels: Tensor,
    const: Tensor | None,
    out: Tensor,
) -> None:
    """``out[r] = factor[r] product[r] + label_factor[r] head[labels[r]] + const[r] head.sum(0)``, rounded once.

    product, out: [c, D], may be one tensor; elements of a row are adjacent. head: [V, D]. labels: [c] int64; the other
    vectors: [c] in the dtype of product.
    """
    head_sum = None if const is None else head.sum(dim=0, dtype=product.dtype)
    _launch(product, factor, out, head, label_factor, labels, const, head_sum)


def _launch(
    x: Tensor,
    factor: Tensor,
    out: Tensor,
    head: Tensor | None = None,
    label_factor: Tensor | None = None,
    labels: Tensor | None = None,
    const: Tensor | None = None,
    head_sum: Tensor | None = None,
) -> None:
    rows, width = x.shape
    if rows:
        with on_device_of(x):
            scaled_rows_bwd_kernel[(rows, triton.cdiv(width, BLOCK_D))](
                x, factor, out, head, label_factor, labels, const, head_sum,
                width, x.stride(0), out.stride(0), *((0, 0) if head is None else head.stride()),
                BLOCK_D=BLOCK_D, num_warps=4,
            )  # fmt: skip
