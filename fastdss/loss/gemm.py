"""Matrix products whose sums are fp32 (fp64 for fp64), whatever the dtype of the factors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from fastdss.upstream.process import ProcessSetting
from fastdss.upstream.torch import has_amx, multiplies_bf16

# A CPU has no GEMM from 16-bit factors to a 32-bit result, so that a 16-bit head is upcast, this many rows at a time. A
# choice: more rows need a larger buffer (4096 x D values), fewer make more and smaller GEMMs.
UPCAST_ROWS = 4096
_MKLDNN = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]  # the stub does not declare it
_BF16 = ProcessSetting(
    lambda: _MKLDNN.fp32_precision, lambda value: setattr(_MKLDNN, "fp32_precision", value), lambda _: "bf16"
)


def bf16_factors(dtype: torch.dtype) -> AbstractContextManager[None]:
    """Within the context a CPU may multiply fp32 tensors in bf16, with fp32 sums and results, if ``dtype`` is bf16.

    For fp32 tensors that hold bf16 values, which lose nothing when oneDNN rounds them to bf16. oneDNN does so only
    where AMX makes it faster. With AVX512-BF16 alone it multiplies in fp32, 1.1 times as fast as PyTorch's default
    (1024 x 576 x 49152, Zen 4, one thread). The setting belongs to the process: while the context lasts, fp32 products
    of other threads are subject to it too.
    """
    return _BF16 if dtype == torch.bfloat16 and multiplies_bf16() else nullcontext()


def add_product(out: Tensor, a: Tensor, b: Tensor, *, first: bool = False) -> None:
    """``out += a @ b``, with ``first`` ``out = a @ b``; summed in ``out``'s dtype, without rounding the factors."""
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
    """``weights @ head`` in the dtype of ``weights``: [k, V] with a small k and entries of at most 1.

    On a GPU the weights are rounded to the head's dtype; entries of at most 1 cannot overflow there.
    """
    if head.dtype == weights.dtype:
        return weights @ head
    if head.device.type != "cpu":
        return torch.mm(weights.to(head.dtype), head, out_dtype=weights.dtype)
    sums = weights.new_zeros((weights.shape[0], head.shape[1]))
    for block, part in upcast_blocks(head, weights.dtype):
        sums.addmm_(weights[:, block], part)
    return sums


def upcast_blocks(head: Tensor, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """The head in ``dtype``, a few rows at a time: ``(their slice, the rows)``; the next ones overwrite them."""
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
    # The CPU's 16-bit GEMM is twice as fast as upcasting, but rounds its result to 16 bit. Multiplying a part of the
    # vocabulary at a time and summing the parts in fp32 keeps most of the precision.
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
