"""``(gradient * factor).to(dtype)``, twice as fast as PyTorch's multiplication into another dtype (on an H100)."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .primitives import on_device_of

BLOCK = 4096  # values of a program: 16 for each thread of its 8 warps


@triton.jit
def scale_fwd_kernel(gradient_ptr, factor_ptr, out_ptr, count, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    scaled = tl.load(gradient_ptr + at, mask=inside, other=0.0) * tl.load(factor_ptr)
    tl.store(out_ptr + at, scaled.to(out_ptr.dtype.element_ty), mask=inside)


def launch_scale_fwd(gradient: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """``(gradient * factor).to(dtype)``; gradient: contiguous fp32 or fp64; factor: [] in its dtype."""
    out = torch.empty_like(gradient, dtype=dtype)
    if gradient.numel():
        with on_device_of(gradient):
            scale_fwd_kernel[(triton.cdiv(gradient.numel(), BLOCK),)](
                gradient, factor, out, gradient.numel(), BLOCK=BLOCK, num_warps=8
            )
    return out
