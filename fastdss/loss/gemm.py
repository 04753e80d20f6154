"""Matrix products with sums in full precision, whatever the factors' dtype."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

UPCAST_ROWS = 4096  # head rows upcast at a time where the CPU has no GEMM from 16 to 32 bit


def add_product(out: Tensor, a: Tensor, b: Tensor, *, first: bool = False) -> None:
    """``out += a @ b``, at the first ``=``, summed in ``out``'s dtype; 16-bit factors are rounded no further."""
    if out.device.type == "cpu" or a.dtype == b.dtype == out.dtype:
        out.addmm_(a.to(out.dtype), b.to(out.dtype), beta=0 if first else 1)
    elif first:
        torch.mm(a, b, out_dtype=out.dtype, out=out)
    else:
        torch.addmm(out, a, b, out_dtype=out.dtype, out=out)


def project(x: Tensor, head: Tensor, out: Tensor) -> None:
    """``out = x @ head.T`` with ``out`` in the accumulation dtype: logits are never rounded to 16 bit."""
    if out.dtype == head.dtype:
        torch.mm(x, head.t(), out=out)
    elif out.device.type == "cpu":
        x = x.to(out.dtype)
        for block, part in upcast_blocks(head, out.dtype):
            torch.mm(x, part.t(), out=out[:, block])
    else:
        torch.mm(x, head.t(), out_dtype=out.dtype, out=out)


def weighted_sums(weights: Tensor, head: Tensor) -> Tensor:
    """``weights @ head`` in the dtype of ``weights`` [k, V], few rows of at most 1 each."""
    if head.dtype == weights.dtype:
        return weights @ head
    if head.device.type != "cpu":
        return torch.mm(weights.to(head.dtype), head, out_dtype=weights.dtype)
    sums = weights.new_zeros((weights.shape[0], head.shape[1]))
    for block, part in upcast_blocks(head, weights.dtype):
        sums.addmm_(weights[:, block], part)
    return sums


def upcast_blocks(head: Tensor, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """The CPU has no GEMM from 16 to 32 bit: a few rows of the head at a time, upcast into one reused buffer."""
    buffer = head.new_empty((min(UPCAST_ROWS, head.shape[0]), head.shape[1]), dtype=dtype)
    for start in range(0, head.shape[0], UPCAST_ROWS):
        part = head[start : start + UPCAST_ROWS]
        yield slice(start, start + part.shape[0]), buffer[: part.shape[0]].copy_(part)
