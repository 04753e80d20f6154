"""Matrix products with sums in full precision, whatever the factors' dtype."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from fastdss.upstream.torch import has_amx, multiplies_bf16

UPCAST_ROWS = 4096  # head rows upcast at a time where the CPU has no GEMM from 16 to 32 bit


@contextmanager
def bf16_factors(dtype: torch.dtype) -> Iterator[None]:
    """fp32 tensors whose values are bf16 (``dtype``) multiplied as such, with fp32 sums and results, where a CPU can.

    oneDNN rounds its factors to bf16 only where AMX makes that worth it, which loses nothing here. On AVX512-BF16 alone
    it multiplies in fp32, 1.1 times as fast as the default there (1024 x 576 x 49152, Zen 4, one thread).
    The setting is the process's, so that fp32 products of other threads meet it too while it lasts.
    """
    if dtype != torch.bfloat16 or not multiplies_bf16():
        yield
        return
    settings = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]  # an object, of which its stub knows nothing
    before = settings.fp32_precision
    settings.fp32_precision = "bf16"
    try:
        yield
    finally:
        settings.fp32_precision = before


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
        with bf16_factors(head.dtype):
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


def times_head(rows: Tensor, head: Tensor, out: Tensor) -> None:
    """``out = rows @ head`` with ``out`` [c, D] in the accumulation dtype; rows: [c, V] in head's dtype or out's."""
    if out.device.type != "cpu" or rows.dtype == head.dtype == out.dtype:
        return add_product(out, rows, head, first=True)
    out.zero_()
    if rows.dtype == out.dtype and head.dtype == torch.bfloat16 and has_amx():
        with bf16_factors(head.dtype):
            for columns, wide in upcast_blocks(head, out.dtype):
                out.addmm_(rows[:, columns], wide)
        return None
    # The CPU's 16-bit GEMM rounds its result too, yet is twice as fast: parts of the vocabulary, summed in fp32.
    part, product = None, None
    if rows.dtype != head.dtype:
        part = rows.new_empty((out.shape[0], min(UPCAST_ROWS, head.shape[0])), dtype=head.dtype)
    for start in range(0, head.shape[0], UPCAST_ROWS):
        block = rows[:, start : start + UPCAST_ROWS]
        block = block if part is None else part[:, : block.shape[1]].copy_(block)
        product = torch.mm(block, head[start : start + UPCAST_ROWS], out=product)
        out += product
    return None


def label_rows(target: Tensor, source: Tensor, factor: Tensor, labels: Tensor, backend: str, *, scatter: bool) -> None:
    """``target[r] += factor[r] * source[labels[r]]``; scatter: ``target[labels[r]] += factor[r] * source[r]``."""
    if backend == "triton" and target.is_cuda and not torch.are_deterministic_algorithms_enabled():
        from fastdss.kernels.label_rows import launch_label_rows_bwd

        launch_label_rows_bwd(target, source, factor, labels, scatter=scatter)
    elif scatter:
        target.index_add_(0, labels, source.to(target.dtype) * factor.unsqueeze(1))
    else:
        target.addcmul_(source[labels].to(target.dtype), factor.unsqueeze(1))
