"""The row pass on a GPU: one program per token turns its row of logits into loss terms and, in place, its gradient.

Formulas and names: the docstring of fastdss/loss/objective.py. A row is read twice: once for its sums, and once for
the gradient. The second time it is read from its end, because the L2 cache is smaller than all rows in flight together
and then still holds what was read last. If ranks split the vocabulary, the two loops are separate kernels, between
which the ranks combine their sums.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime.interpreter import InterpretedFunction

from .configs import row_pass_config
from .primitives import entropy_of, expm1, load_logits, log_weighted, on_device_of

# Numbers of the KL forms: 0 is none, 1 to 3 are k1 to k3. A test compares them with fastdss.KL.
REVERSE = tl.constexpr(4)
FORWARD = tl.constexpr(5)


@triton.jit
def row_sums(
    row_ptr, ref_row_ptr, bias_ptr, ref_bias_ptr, width, local_label,
    KL: tl.constexpr, WITH_MEAN: tl.constexpr, STATS: tl.constexpr, SCALE: tl.constexpr, SOFTCAP: tl.constexpr,
    REF_SCALE: tl.constexpr, REF_SOFTCAP: tl.constexpr, ACC: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """(lse, sum of logits, the reference's lse, E[z - z_ref] under p or q, entropy, largest logit but the label's).

    One loop over the row makes them all, rescaling its sums whenever it finds a larger logit. The last two are computed
    if STATS.
    """
    peak = tl.full((), -1e30, ACC)
    ref_peak = tl.full((), -1e30, ACC)
    total = tl.zeros((), ACC)
    ref_total = tl.zeros((), ACC)
    logit_sum = tl.zeros((), ACC)
    diff_sum = tl.zeros((), ACC)
    spread = tl.zeros((), ACC)  # sum of exp(z - peak) * (z - peak)
    rival = tl.full((), float("-inf"), ACC)
    for start in range(0, width, BLOCK_V):
        columns = start + tl.arange(0, BLOCK_V)  # [BLOCK_V]
        mask = columns < width
        logits = load_logits(row_ptr, bias_ptr, columns, mask, SCALE, SOFTCAP, ACC)
        new_peak = tl.maximum(peak, tl.max(logits, axis=0))
        shrink = tl.exp(peak - new_peak)
        weight = tl.exp(logits - new_peak)
        if STATS:
            spread = shrink * (spread + total * (peak - new_peak)) + tl.sum(
                log_weighted(weight, logits - new_peak), axis=0
            )
            rival = tl.maximum(rival, tl.max(tl.where(columns == local_label, float("-inf"), logits), axis=0))
        total = total * shrink + tl.sum(weight, axis=0)
        peak = new_peak
        if WITH_MEAN:
            logit_sum += tl.sum(tl.where(mask, logits, 0.0), axis=0)
        if ref_row_ptr is not None:
            ref_logits = load_logits(ref_row_ptr, ref_bias_ptr, columns, mask, REF_SCALE, REF_SOFTCAP, ACC)
            new_peak = tl.maximum(ref_peak, tl.max(ref_logits, axis=0))
            ref_shrink = tl.exp(ref_peak - new_peak)
            ref_weight = tl.exp(ref_logits - new_peak)
            ref_total = ref_total * ref_shrink + tl.sum(ref_weight, axis=0)
            ref_peak = new_peak
            if KL == REVERSE:
                diff = tl.where(logits == float("-inf"), 0.0, logits - ref_logits)
                diff_sum = diff_sum * shrink + tl.sum(weight * diff, axis=0)
            else:
                diff = tl.where(ref_logits == float("-inf"), 0.0, logits - ref_logits)
                diff_sum = diff_sum * ref_shrink + tl.sum(ref_weight * diff, axis=0)
    lse = peak + tl.log(total)
    ref_lse = tl.zeros((), ACC)
    mean_diff = tl.zeros((), ACC)
    if ref_row_ptr is not None:
        ref_lse = ref_peak + tl.log(ref_total)
        drawn = total if KL == REVERSE else ref_total
        mean_diff = diff_sum / tl.where(drawn == 0.0, 1.0, drawn)  # it is 0 if every logit of this rank's slice is -inf
    return lse, logit_sum, ref_lse, mean_diff, entropy_of(total, spread), rival


@triton.jit
def finish_row(
    lse, label_logit, mean_logit, ref_lse, mean_diff, ref_logprob, ce_weight, kl_weight, vocab_size,
    KL: tl.constexpr, DFT: tl.constexpr, SMOOTHING: tl.constexpr, Z_LOSS: tl.constexpr, SCALE: tl.constexpr,
    HAS_REF: tl.constexpr,
):  # fmt: skip
    """(token_ce, token_kl, A, B, C, b) of one row; A to b, the gradient's coefficients, are times the logit scale."""
    nll = lse - label_logit
    if DFT:
        ce_weight = tl.where(ce_weight == 0.0, 0.0, ce_weight * tl.exp(-nll))
    token_ce = (1.0 - SMOOTHING) * nll + SMOOTHING * (lse - mean_logit) + Z_LOSS * lse * lse
    prob = ce_weight * (1.0 + 2.0 * Z_LOSS * lse)
    label = -ce_weight * (1.0 - SMOOTHING)
    token_kl = tl.zeros_like(nll)
    if KL > 0 and KL < REVERSE:
        distance = tl.where(kl_weight == 0.0, 0.0, -nll - ref_logprob)
        if KL == 1:
            token_kl = distance
            slope = distance * 0.0 + 1.0
        elif KL == 2:
            token_kl = 0.5 * distance * distance
            slope = distance
        else:
            token_kl = expm1(-distance) + distance
            slope = -expm1(-distance)
        prob -= kl_weight * slope
        label += kl_weight * slope
    elif HAS_REF:
        if KL == REVERSE:
            token_kl = mean_diff + ref_lse - lse
        else:
            token_kl = lse - ref_lse - mean_diff
            prob += kl_weight
        token_kl = tl.where(kl_weight == 0.0, 0.0, token_kl)
    const = -ce_weight * SMOOTHING / vocab_size
    return token_ce, token_kl, prob * SCALE, label * SCALE, const * SCALE, kl_weight * SCALE


@triton.jit
def write_gradient(
    row_ptr, ref_row_ptr, bias_ptr, ref_bias_ptr, out_ptr, width, local_label,
    lse, ref_lse, mean_diff, prob_factor, label_term, const, kl_factor,
    KL: tl.constexpr, SCALE: tl.constexpr, SOFTCAP: tl.constexpr, REF_SCALE: tl.constexpr,
    REF_SOFTCAP: tl.constexpr, ACC: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """Write the row's gradient; returns what rounding to the output's dtype took from the label's entry.

    The output may overwrite the logits. If it has 16 bit, it is the upper half of the row's memory (``Slab`` in
    fastdss/loss/rows.py). Blocks are read and written from the last to the first, so that each is written over logits
    that were already read; a barrier makes sure that all threads have read the block.
    """
    lost = tl.zeros((), ACC)
    last = (width - 1) // BLOCK_V
    for i in range(0, last + 1):
        columns = (last - i) * BLOCK_V + tl.arange(0, BLOCK_V)  # [BLOCK_V]
        mask = columns < width
        logits = load_logits(row_ptr, bias_ptr, columns, mask, SCALE, SOFTCAP, ACC)
        prob = tl.exp(logits - lse)
        grad = prob * prob_factor + const
        if ref_row_ptr is not None:
            ref_logits = load_logits(ref_row_ptr, ref_bias_ptr, columns, mask, REF_SCALE, REF_SOFTCAP, ACC)
            if KL == REVERSE:
                diff = tl.where(logits == float("-inf"), 0.0, logits - ref_logits)
                grad += tl.where(kl_factor == 0.0, 0.0, kl_factor * prob * (diff - mean_diff))
            else:
                grad -= kl_factor * tl.exp(ref_logits - ref_lse)
        is_label = mask & (columns == local_label)  # masked: the next rank's first labels have columns beyond width
        grad = tl.where(is_label, grad + label_term, grad)
        if SOFTCAP is not None:
            slope = logits / SOFTCAP
            grad *= tl.where(mask, 1.0 - slope * slope, 0.0)
        rounded = grad.to(out_ptr.dtype.element_ty)
        lost += tl.sum(tl.where(is_label, grad - rounded.to(ACC), 0.0), axis=0)
        if out_ptr.dtype.element_ty != row_ptr.dtype.element_ty:
            tl.debug_barrier()
        tl.store(out_ptr + columns, rounded, mask=mask)
    return lost


@triton.jit
def label_logit_of(
    row_ptr, bias_ptr, local_label, width, SCALE: tl.constexpr, SOFTCAP: tl.constexpr, ACC: tl.constexpr
):  # fmt: skip
    """The label's logit, or 0 if this slice of the vocabulary does not hold the label."""
    mine = (local_label >= 0) & (local_label < width)
    logit = load_logits(row_ptr, bias_ptr, tl.where(mine, local_label, 0), mine, SCALE, SOFTCAP, ACC)
    return tl.where(mine, logit, 0.0)


@triton.jit
def row_pass_fwd_kernel(
    logits_ptr, ref_logits_ptr, out_ptr, bias_ptr, ref_bias_ptr, label_ptr, ce_weight_ptr, kl_weight_ptr,
    ref_logprob_ptr, token_ce_ptr, token_kl_ptr, lost_ptr, entropy_ptr, correct_ptr,
    width, stride_logits, stride_ref, stride_out,
    KL: tl.constexpr, DFT: tl.constexpr, SMOOTHING: tl.constexpr, Z_LOSS: tl.constexpr, SCALE: tl.constexpr,
    SOFTCAP: tl.constexpr, REF_SCALE: tl.constexpr, REF_SOFTCAP: tl.constexpr, GRAD: tl.constexpr,
    BLOCK_V: tl.constexpr,
):  # fmt: skip
    ACC: tl.constexpr = token_ce_ptr.dtype.element_ty
    row = tl.program_id(0).to(tl.int64)
    row_ptr = logits_ptr + row * stride_logits
    ref_row_ptr = ref_logits_ptr
    if ref_logits_ptr is not None:
        ref_row_ptr = ref_logits_ptr + row * stride_ref
    label = tl.load(label_ptr + row).to(tl.int64)
    ce_weight = tl.load(ce_weight_ptr + row)
    kl_weight = tl.zeros((), ACC)
    ref_logprob = tl.zeros((), ACC)
    if kl_weight_ptr is not None:
        kl_weight = tl.load(kl_weight_ptr + row)
    if ref_logprob_ptr is not None:
        ref_logprob = tl.load(ref_logprob_ptr + row)
    label_logit = label_logit_of(row_ptr, bias_ptr, label, width, SCALE, SOFTCAP, ACC)
    label_logit = tl.where((label >= 0) & (label < width), label_logit, float("nan"))
    lse, logit_sum, ref_lse, mean_diff, entropy, rival = row_sums(
        row_ptr, ref_row_ptr, bias_ptr, ref_bias_ptr, width, label,
        KL, SMOOTHING != 0.0, entropy_ptr is not None, SCALE, SOFTCAP, REF_SCALE, REF_SOFTCAP, ACC, BLOCK_V,
    )  # fmt: skip
    token_ce, token_kl, prob_factor, label_term, const, kl_factor = finish_row(
        lse, label_logit, logit_sum / width, ref_lse, mean_diff, ref_logprob, ce_weight, kl_weight, width,
        KL, DFT, SMOOTHING, Z_LOSS, SCALE, ref_logits_ptr is not None,
    )  # fmt: skip
    tl.store(token_ce_ptr + row, token_ce)
    tl.store(token_kl_ptr + row, token_kl)
    if entropy_ptr is not None:
        tl.store(entropy_ptr + row, entropy)
        tl.store(correct_ptr + row, (label_logit > rival).to(ACC))
    if GRAD:
        lost = write_gradient(
            row_ptr, ref_row_ptr, bias_ptr, ref_bias_ptr, out_ptr + row * stride_out, width, label,
            lse, ref_lse, mean_diff, prob_factor, label_term, const, kl_factor,
            KL, SCALE, SOFTCAP, REF_SCALE, REF_SOFTCAP, ACC, BLOCK_V,
        )  # fmt: skip
        tl.store(lost_ptr + row, lost)


@triton.jit
def row_stats_fwd_kernel(
    logits_ptr, ref_logits_ptr, bias_ptr, ref_bias_ptr, label_ptr, stats_ptr,
    width, vocab_start, stride_logits, stride_ref, stride_stats,
    KL: tl.constexpr, WITH_MEAN: tl.constexpr, STATS: tl.constexpr, SCALE: tl.constexpr, SOFTCAP: tl.constexpr,
    REF_SCALE: tl.constexpr, REF_SOFTCAP: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    ACC: tl.constexpr = stats_ptr.dtype.element_ty
    row = tl.program_id(0).to(tl.int64)
    row_ptr = logits_ptr + row * stride_logits
    ref_row_ptr = ref_logits_ptr
    if ref_logits_ptr is not None:
        ref_row_ptr = ref_logits_ptr + row * stride_ref
    label = tl.load(label_ptr + row).to(tl.int64) - vocab_start
    label_logit = label_logit_of(row_ptr, bias_ptr, label, width, SCALE, SOFTCAP, ACC)
    lse, logit_sum, ref_lse, mean_diff, entropy, rival = row_sums(
        row_ptr, ref_row_ptr, bias_ptr, ref_bias_ptr, width, label,
        KL, WITH_MEAN, STATS, SCALE, SOFTCAP, REF_SCALE, REF_SOFTCAP, ACC, BLOCK_V,
    )  # fmt: skip
    tl.store(stats_ptr + row, lse)
    tl.store(stats_ptr + stride_stats + row, label_logit)
    tl.store(stats_ptr + 2 * stride_stats + row, logit_sum)
    tl.store(stats_ptr + 3 * stride_stats + row, ref_lse)
    tl.store(stats_ptr + 4 * stride_stats + row, mean_diff)
    if STATS:
        tl.store(stats_ptr + 5 * stride_stats + row, entropy)
        tl.store(stats_ptr + 6 * stride_stats + row, rival)


@triton.jit
def row_gradient_bwd_kernel(
    logits_ptr, ref_logits_ptr, out_ptr, bias_ptr, ref_bias_ptr, label_ptr, factor_ptr, lost_ptr,
    width, vocab_start, stride_logits, stride_ref, stride_out, stride_factor,
    KL: tl.constexpr, SCALE: tl.constexpr, SOFTCAP: tl.constexpr, REF_SCALE: tl.constexpr,
    REF_SOFTCAP: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    ACC: tl.constexpr = factor_ptr.dtype.element_ty
    row = tl.program_id(0).to(tl.int64)
    ref_row_ptr = ref_logits_ptr
    if ref_logits_ptr is not None:
        ref_row_ptr = ref_logits_ptr + row * stride_ref
    label = tl.load(label_ptr + row).to(tl.int64) - vocab_start
    lost = write_gradient(
        logits_ptr + row * stride_logits, ref_row_ptr, bias_ptr, ref_bias_ptr, out_ptr + row * stride_out, width, label,
        tl.load(factor_ptr + row),
        tl.load(factor_ptr + stride_factor + row),
        tl.load(factor_ptr + 2 * stride_factor + row),
        tl.load(factor_ptr + 3 * stride_factor + row),
        tl.load(factor_ptr + 4 * stride_factor + row),
        tl.load(factor_ptr + 5 * stride_factor + row),
        tl.load(factor_ptr + 6 * stride_factor + row),
        KL, SCALE, SOFTCAP, REF_SCALE, REF_SOFTCAP, ACC, BLOCK_V,
    )  # fmt: skip
    tl.store(lost_ptr + row, lost)


def interpreted() -> bool:
    """Whether these kernels run in Triton's interpreter (TRITON_INTERPRET=1 when triton was imported)."""
    return isinstance(row_pass_fwd_kernel, InterpretedFunction)


def _launch_options(logits: Tensor, has_ref: bool, config: tuple[int, int] | None) -> dict[str, int]:
    backend = "interpreter" if interpreted() else "hip" if torch.version.hip else "cuda"
    block_v, num_warps = config or row_pass_config(
        logits.shape[1], logits.element_size(), has_ref=has_ref, backend=backend
    )
    return {"BLOCK_V": block_v, "num_warps": num_warps}


def launch_row_pass_fwd(
    logits: Tensor,
    ref_logits: Tensor | None,
    out: Tensor,
    labels: Tensor,
    ce_weight: Tensor,
    kl_weight: Tensor | None,
    ref_logprobs: Tensor | None,
    *,
    bias: Tensor | None,
    ref_bias: Tensor | None,
    kl_code: int,
    label_smoothing: float,
    z_loss: float,
    scales: tuple[float, float | None, float, float | None],
    grad: bool,
    dft: bool = False,
    token_stats: Tensor | None = None,
    config: tuple[int, int] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Write the gradient to ``out``; returns ``(token_ce, token_kl, lost)``, each [c].

    logits, ref_logits: [c, V] raw logits in fp32 or fp64. out: [c, V], logits itself or its memory seen in 16 bit.
    scales: logit scale and softcap, then those of the reference. lost: what rounding the label's entry to the dtype of
    out took from it. token_stats: [2, c], filled with the entropies, and 1 where the label is the likeliest word.
    """
    count, width = logits.shape
    entropy, correct = (None, None) if token_stats is None else token_stats.unbind()
    token_ce, token_kl, lost = (logits.new_empty(count) for _ in range(3))
    if count:
        with on_device_of(logits):
            row_pass_fwd_kernel[(count,)](
                logits, ref_logits, out, bias, ref_bias, labels, ce_weight, kl_weight, ref_logprobs, token_ce, token_kl,
                lost, entropy, correct, width, logits.stride(0), 0 if ref_logits is None else ref_logits.stride(0),
                out.stride(0), kl_code, dft, label_smoothing, z_loss, *scales, grad,
                **_launch_options(logits, ref_logits is not None, config),
            )  # fmt: skip
    return token_ce, token_kl, lost


def launch_row_stats_fwd(
    logits: Tensor,
    ref_logits: Tensor | None,
    labels: Tensor,
    *,
    bias: Tensor | None,
    ref_bias: Tensor | None,
    vocab_start: int,
    kl_code: int,
    with_mean: bool,
    token_stats: bool = False,
    scales: tuple[float, float | None, float, float | None],
    config: tuple[int, int] | None = None,
) -> Tensor:
    """[5, c] of one vocabulary slice: lse, the label's logit, sum of logits, the reference's lse, E[z - z_ref].

    With token_stats [7, c]: also the slice's entropy, and its largest logit but the label's.
    """
    count, width = logits.shape
    stats = logits.new_empty(7 if token_stats else 5, count)
    if count:
        with on_device_of(logits):
            row_stats_fwd_kernel[(count,)](
                logits, ref_logits, bias, ref_bias, labels, stats, width, vocab_start, logits.stride(0),
                0 if ref_logits is None else ref_logits.stride(0), stats.stride(0), kl_code, with_mean,
                token_stats, *scales,
                **_launch_options(logits, ref_logits is not None, config),
            )  # fmt: skip
    return stats


def launch_row_gradient_bwd(
    logits: Tensor,
    ref_logits: Tensor | None,
    out: Tensor,
    labels: Tensor,
    factors: Tensor,
    *,
    bias: Tensor | None,
    ref_bias: Tensor | None,
    vocab_start: int,
    kl_code: int,
    scales: tuple[float, float | None, float, float | None],
    config: tuple[int, int] | None = None,
) -> Tensor:
    """Write the gradient to ``out``; returns ``lost`` [c], see :func:`launch_row_pass_fwd`.

    factors: [7, c], for each row lse, the reference's lse, E[z - z_ref], A, B, C and b.
    """
    count, width = logits.shape
    lost = logits.new_empty(count)
    if count:
        with on_device_of(logits):
            row_gradient_bwd_kernel[(count,)](
                logits, ref_logits, out, bias, ref_bias, labels, factors, lost, width, vocab_start, logits.stride(0),
                0 if ref_logits is None else ref_logits.stride(0), out.stride(0), factors.stride(0), kl_code,
                *scales, **_launch_options(logits, ref_logits is not None, config),
            )  # fmt: skip
    return lost
