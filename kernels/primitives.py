"""Small pieces that more than one kernel needs."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor


def on_device_of(tensor: Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current device, which need not be the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


@triton.jit
def tanh(x):
    """From one exponential, which cannot overflow; absolute error of a rounding. The interpreter has no libdevice."""
    decay = tl.exp(-2.0 * tl.abs(x))
    size = (1.0 - decay) / (1.0 + decay)
    return tl.where(x < 0, -size, size)


@triton.jit
def expm1(x):
    """exp(x) - 1 without cancellation near 0 (series up to x^6, relative error below 2e-9 for |x| < 0.05)."""
    series = x * (1 + x * (1 / 2 + x * (1 / 6 + x * (1 / 24 + x * (1 / 120 + x / 720)))))
    return tl.where(tl.abs(x) < 0.05, series, tl.exp(x) - 1.0)


@triton.jit
def log_weighted(exponential, logarithm):
    """E log E; 0 where E is, whose logarithm may be infinite. Below -1e4 E is 0 in fp64 too."""
    return exponential * tl.maximum(logarithm, -1e4)


@triton.jit
def entropy_of(total, spread):
    """Entropy of E / T from T, the sum of E, and the sum of E log E; 0 where nothing is left of E."""
    entropy = tl.log(total) - spread / total
    return tl.where(total == 0.0, 0.0, entropy)


@triton.jit
def load_logits(row_ptr, bias_ptr, columns, mask, SCALE: tl.constexpr, SOFTCAP: tl.constexpr, ACC: tl.constexpr):
    """Logits from raw ones: bias, scale, softcap; -inf outside ``mask``. bias_ptr and SOFTCAP may be None."""
    logits = tl.load(row_ptr + columns, mask=mask, other=0.0).to(ACC)
    if bias_ptr is not None:
        logits += tl.load(bias_ptr + columns, mask=mask, other=0.0).to(ACC)
    if SCALE != 1.0:
        logits *= SCALE
    if SOFTCAP is not None:
        logits = SOFTCAP * tanh(logits / SOFTCAP)
    return tl.where(mask, logits, float("-inf"))
