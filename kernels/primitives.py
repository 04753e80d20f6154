"""Small functions that more than one kernel needs."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

# Numbers of the KL forms, as fastdss.KL.code counts them: 0 is none, then k1, k2, k3, the reverse and the forward KL.
K2 = tl.constexpr(2)
K3 = tl.constexpr(3)
REVERSE = tl.constexpr(4)


def on_device_of(tensor: Tensor) -> AbstractContextManager[object]:
    """A context in which Triton launches on the tensor's device; by itself it launches on the current device."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


@triton.jit
def expm1(x):
    """exp(x) - 1 without cancellation near 0 (series up to x^6, relative error below 4e-12 for |x| < 0.05)."""
    series = x * (1 + x * (1 / 2 + x * (1 / 6 + x * (1 / 24 + x * (1 / 120 + x / 720)))))
    return tl.where(tl.abs(x) < 0.05, series, tl.exp(x) - 1.0)


@triton.jit
def tanh(x):
    """tanh(x) from one exponential, which cannot overflow, with a relative error of about 1e-6 in fp32.

    Written out because Triton's interpreter has no libdevice.
    """
    double = -2.0 * tl.abs(x)
    size = -expm1(double) / (1.0 + tl.exp(double))
    return tl.where(x < 0, -size, size)


@triton.jit
def label_kl(nll, ref_logprob, kl_weight, KL: tl.constexpr):
    """(k(d), k'(d)) with d = log p - log p_ref. Without a weight d is taken as 0: it may be infinite there."""
    d = tl.where(kl_weight == 0.0, 0.0, -nll - ref_logprob)
    value, slope = d, tl.full(d.shape, 1.0, d.dtype)
    if KL == K2:
        value, slope = d * d * 0.5, d
    if KL == K3:
        value, slope = expm1(-d) + d, -expm1(-d)
    return value, slope


@triton.jit
def log_weighted(exponential, logarithm):
    """E log E, and 0 where E is 0 and its logarithm perhaps -inf. The clamp is exact: exp(-1e4) is 0 even in fp64."""
    return exponential * tl.maximum(logarithm, -1e4)


@triton.jit
def entropy_of(total, spread):
    """Entropy of the distribution E / T, from ``total`` T = sum E and ``spread`` = sum E log E; 0 where T is 0."""
    entropy = tl.log(total) - spread / total
    return tl.where(total == 0.0, 0.0, entropy)


@triton.jit
def load_logits(row_ptr, bias_ptr, columns, mask, SCALE: tl.constexpr, SOFTCAP: tl.constexpr, ACC: tl.constexpr):
    """A block of a row's raw logits with bias, scale and softcap applied; -inf outside ``mask``.

    bias_ptr and SOFTCAP may be None.
    """
    logits = tl.load(row_ptr + columns, mask=mask, other=0.0).to(ACC)
    if bias_ptr is not None:
        logits += tl.load(bias_ptr + columns, mask=mask, other=0.0).to(ACC)
    if SCALE != 1.0:
        logits *= SCALE
    if SOFTCAP is not None:
        logits = SOFTCAP * tanh(logits / SOFTCAP)
    return tl.where(mask, logits, float("-inf"))
