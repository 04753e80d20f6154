"""One kernel that turns the sums of each row's exponentials into its loss terms and the factors of its gradient.

Formulas and names: the docstrings of fastdss/loss/exponentials.py and objective.py. In torch this takes some thirty
operations on [n] numbers, each of a few microseconds: with 512 tokens as long as the matrix products.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from .primitives import label_kl, on_device_of

BLOCK_ROWS = 128  # rows of a program: few, since there is so little work that only latency counts
TINY = tl.constexpr(1.1754943508222875e-38)  # the smallest normal fp32


@triton.jit
def log1p_of_unit(x):
    """log(1 + x) for 0 <= x <= 1, with a relative error of 2e-10.

    It is 2 artanh(s) with s = x / (2 + x), whose series converges fast because s <= 1/3.
    """
    s = x / (2.0 + x)
    q = s * s
    series = 1 / 11 + q * (1 / 13 + q * (1 / 15 + q * (1 / 17)))
    return 2.0 * s * (1.0 + q * (1 / 3 + q * (1 / 5 + q * (1 / 7 + q * (1 / 9 + q * series)))))


@triton.jit
def row_terms_fwd_kernel(
    label_logit_ptr, others_ptr, total_ptr, cap_slope_ptr, mean_logit_ptr,
    entropy_ptr, rival_ptr, label_ptr, ce_weight_ptr, kl_weight_ptr, ref_logprob_ptr, beta_ptr, term_ptr, factor_ptr,
    rows, vocab_size,
    KL: tl.constexpr, DFT: tl.constexpr, SMOOTHING: tl.constexpr, Z_LOSS: tl.constexpr, SCALE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
):  # fmt: skip
    """Write the terms of BLOCK_ROWS rows. KL: the number of the form, 0 for none.

    term_ptr: [4, rows]: CE, KL, the first term and the KL with their weights. With entropy_ptr [6, rows]: also the
    entropy, and 1 where the label is the likeliest word. factor_ptr: [3, rows]: v, dZ at the label, C.
    """
    lanes = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)  # [BLOCK_ROWS]
    inside = lanes < rows
    label_logit = tl.load(label_logit_ptr + lanes, mask=inside, other=0.0)
    others = tl.load(others_ptr + lanes, mask=inside, other=0.0)
    total = tl.load(total_ptr + lanes, mask=inside, other=1.0)
    label = tl.load(label_ptr + lanes, mask=inside, other=0)
    weight = tl.load(ce_weight_ptr + lanes, mask=inside, other=0.0)
    known = (label >= 0) & (label < vocab_size) & (label_logit < float("inf"))  # inf - inf is NaN; else p_y would be 1
    label_logit = tl.where(known, label_logit, float("nan"))
    distance = others - label_logit
    small = tl.exp(-tl.abs(distance))
    soft = log1p_of_unit(small)
    nll = tl.where(distance > 0.0, distance, 0.0) + soft
    miss = tl.where(distance > 0.0, 1.0, small) / (1.0 + small)
    hit = tl.where(distance > 0.0, small, 1.0) / (1.0 + small)
    unit = miss / tl.where(total < TINY, TINY, total)
    ce = nll
    kl_value = tl.zeros((BLOCK_ROWS,), tl.float32)
    dead = weight == 0.0
    if DFT:
        weight = tl.where(dead, 0.0, weight * hit)
    prob = weight
    if beta_ptr is not None:
        beta = tl.load(beta_ptr + lanes, mask=inside, other=1.0)
        below = beta * (nll + tl.load(ref_logprob_ptr + lanes, mask=inside, other=0.0))
        less = tl.exp(-tl.abs(below))
        prob = tl.where(dead, 0.0, 2.0 * weight * tl.where(below > 0.0, 1.0, less) / (1.0 + less))
        bounded = (tl.where(below > 0.0, below, 0.0) + log1p_of_unit(less)) * 2.0 / beta
    if kl_weight_ptr is not None:
        kl_weight = tl.load(kl_weight_ptr + lanes, mask=inside, other=0.0)
        dead = dead & (kl_weight == 0.0)
        if KL != 0:
            ref_logprob = tl.load(ref_logprob_ptr + lanes, mask=inside, other=0.0)
            kl_value, slope = label_kl(nll, ref_logprob, kl_weight, KL)
            prob -= kl_weight * slope
        tl.store(term_ptr + 3 * rows + lanes, tl.where(kl_weight == 0.0, 0.0, kl_weight * kl_value), mask=inside)
    at_label = -prob * miss
    if SMOOTHING != 0.0 or Z_LOSS != 0.0:
        lse = tl.where(distance > 0.0, others + soft, label_logit + nll)
        if SMOOTHING != 0.0:
            mean_logit = tl.load(mean_logit_ptr + lanes, mask=inside, other=0.0)
            ce = (1.0 - SMOOTHING) * nll + SMOOTHING * (lse - mean_logit)
            tl.store(factor_ptr + 2 * rows + lanes, weight * (-SMOOTHING * SCALE / vocab_size), mask=inside)
        ce += Z_LOSS * lse * lse
        more = weight * (2.0 * Z_LOSS * lse)
        prob += more
        at_label = weight * SMOOTHING + more - prob * miss
    if entropy_ptr is not None:
        others_entropy = tl.load(entropy_ptr + lanes, mask=inside, other=0.0)
        rival = tl.load(rival_ptr + lanes, mask=inside, other=0.0)
        away = miss * (others_entropy + tl.where(distance > 0.0, 0.0, -distance) + soft)
        entropy = tl.where(miss == 0.0, 0.0, away) + tl.where(hit == 0.0, 0.0, hit * nll)
        tl.store(term_ptr + 4 * rows + lanes, tl.where(dead, 0.0, entropy), mask=inside)
        correct = (label_logit > rival) & ~dead
        tl.store(term_ptr + 5 * rows + lanes, correct.to(tl.float32), mask=inside)
    if cap_slope_ptr is not None:
        at_label *= tl.load(cap_slope_ptr + lanes, mask=inside, other=0.0)
    first = ce
    if beta_ptr is not None:
        first = bounded
    tl.store(term_ptr + lanes, tl.where(dead, 0.0, ce), mask=inside)
    tl.store(term_ptr + rows + lanes, kl_value, mask=inside)
    tl.store(term_ptr + 2 * rows + lanes, tl.where(weight == 0.0, 0.0, weight * first), mask=inside)
    tl.store(factor_ptr + lanes, tl.where(dead, 0.0, prob * unit * SCALE), mask=inside)
    tl.store(factor_ptr + rows + lanes, tl.where(dead, 0.0, at_label * SCALE), mask=inside)


class RowTerms(NamedTuple):
    """Every tensor is [n], unless its comment says otherwise."""

    ce: Tensor
    kl: Tensor
    weighted_ce: Tensor  # the first term with its weight
    weighted_kl: Tensor | None
    row: Tensor  # v
    label: Tensor  # dZ_y
    const: Tensor | None  # C
    token_stats: Tensor | None  # [2, n]: the entropy, and 1 where the label is the likeliest word


def launch_row_terms_fwd(
    label_logit: Tensor,
    others: Tensor,
    total: Tensor,
    cap_slope: Tensor | None,
    entropy: Tensor | None,
    rival: Tensor | None,
    mean_logit: Tensor | None,
    labels: Tensor,
    ce_weight: Tensor,
    kl_weight: Tensor | None,
    ref_logprobs: Tensor | None,
    csft_beta: Tensor | None = None,
    *,
    vocab_size: int,
    kl_code: int,
    dft: bool = False,
    label_smoothing: float,
    z_loss: float,
    logit_scale: float,
) -> RowTerms:
    """The terms of n rows. All tensors are [n] fp32, except labels: int64, counted over the whole vocabulary.

    kl_code: the number of the KL form, 0 for none. csft_beta, dft: as in ``Objective`` and ``RowInputs``.
    """
    rows = others.shape[0]
    # Two tensors: users may write to the terms, while backward needs the factors as they are.
    terms, factors = others.new_empty((4 if entropy is None else 6, rows)), others.new_empty((3, rows))
    if rows:
        with on_device_of(others):
            row_terms_fwd_kernel[(triton.cdiv(rows, BLOCK_ROWS),)](
                label_logit, others, total, cap_slope, mean_logit, entropy, rival, labels, ce_weight, kl_weight,
                ref_logprobs, csft_beta, terms, factors, rows, vocab_size, kl_code, dft, label_smoothing, z_loss,
                logit_scale,
                BLOCK_ROWS=BLOCK_ROWS, num_warps=4,
            )  # fmt: skip
    (ce, kl, weighted_ce, weighted_kl), (row, label, const) = terms[:4].unbind(), factors.unbind()
    token_stats = None if entropy is None else terms[4:]
    weighted_kl, const = None if kl_weight is None else weighted_kl, const if label_smoothing else None
    return RowTerms(ce, kl, weighted_ce, weighted_kl, row, label, const, token_stats)
