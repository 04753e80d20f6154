"""From logits to exponentials on a GPU: a kernel that reads each logit once and writes E and the sums of each row.

Formulas and names: the docstring of fastdss/loss/exponentials.py. A row's offset must be known before the row is read,
so it is guessed: 16 nats above the label's logit or, if another rank holds the label, the largest logit of the first
block. If the guess was so low that the row's sum exceeds a bound (the label's logit is then about 57 nats below the
largest), or so high that the sum has lost its digits, the row is read once more with its largest logit as offset. Where
E overwrites its logits (fp32 and fp64) they cannot be read again, so there the largest logit is found first, by another
pass.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .primitives import entropy_of, load_logits, log_weighted, on_device_of
from .row_pass import label_logit_of, launch_options

ROOM = tl.constexpr(16.0)  # how many nats the guessed offset lies above the label's logit
# The largest sum of a row that is accepted: the row's product with the head, and the factor v, which may then be 2**-60
# of a weight, still fit in fp32 and bf16. Beyond it (60 log 2 = 41.6 nats above the offset) the row is read again: the
# label then lies ROOM + 41.6, about 57 nats, below the largest logits.
LARGEST = tl.constexpr(2.0**60)
# The smallest: below it fp32 loses digits. The label is then 71 nats above all other words, or the guess was that of
# words that a bias of -inf rules out.
SMALLEST = tl.constexpr(2.0**-126)


@triton.jit
def store_exponentials(
    row_ptr, bias_ptr, out_ptr, width, local_label, offset,
    SCALE: tl.constexpr, SOFTCAP: tl.constexpr, SPREAD: tl.constexpr, ACC: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """Store E of a row, times the softcap's slope if there is one (out_ptr None: store nothing).

    Returns (sum of E, largest logit, sum of E log E if SPREAD) of the row without its label.
    """
    total = tl.zeros((), ACC)
    spread = tl.zeros((), ACC)
    peak = tl.full((), float("-inf"), ACC)
    for start in range(0, width, BLOCK_V):
        columns = start + tl.arange(0, BLOCK_V)  # [BLOCK_V]
        mask = columns < width
        logits = load_logits(row_ptr, bias_ptr, columns, mask, SCALE, SOFTCAP, ACC)
        other = mask & (columns != local_label)
        peak = tl.maximum(peak, tl.max(tl.where(other, logits, float("-inf")), axis=0))
        exponential = tl.where(other, tl.exp(logits - offset), 0.0)
        total += tl.sum(exponential, axis=0)
        if SPREAD:
            spread += tl.sum(log_weighted(exponential, logits - offset), axis=0)
        if SOFTCAP is not None:
            slope = logits / SOFTCAP
            exponential *= tl.where(mask, 1.0 - slope * slope, 0.0)
        if out_ptr is not None:
            tl.store(out_ptr + columns, exponential.to(out_ptr.dtype.element_ty), mask=mask)
    return total, peak, spread


@triton.jit
def largest_other(
    row_ptr, bias_ptr, width, local_label,
    SCALE: tl.constexpr, SOFTCAP: tl.constexpr, ACC: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """The largest logit of the row, its label's left out."""
    peaks = tl.full((BLOCK_V,), float("-inf"), ACC)
    for start in range(0, width, BLOCK_V):
        columns = start + tl.arange(0, BLOCK_V)  # [BLOCK_V]
        mask = columns < width
        logits = load_logits(row_ptr, bias_ptr, columns, mask, SCALE, SOFTCAP, ACC)
        peaks = tl.maximum(peaks, tl.where(columns != local_label, logits, float("-inf")))
    return tl.max(peaks, axis=0)


@triton.jit
def exponentials_fwd_kernel(
    logits_ptr, out_ptr, bias_ptr, label_ptr, label_logit_ptr, others_ptr, total_ptr, cap_slope_ptr,
    entropy_ptr, rival_ptr, width, stride_logits, stride_out,
    SCALE: tl.constexpr, SOFTCAP: tl.constexpr, IN_PLACE: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    ACC: tl.constexpr = others_ptr.dtype.element_ty
    row = tl.program_id(0).to(tl.int64)
    row_ptr = logits_ptr + row * stride_logits
    out_row_ptr = out_ptr
    if out_ptr is not None:
        out_row_ptr = out_ptr + row * stride_out
    label = tl.load(label_ptr + row).to(tl.int64)
    mine = (label >= 0) & (label < width)
    label_logit = label_logit_of(row_ptr, bias_ptr, label, width, SCALE, SOFTCAP, ACC)
    if IN_PLACE:
        offset = largest_other(row_ptr, bias_ptr, width, label, SCALE, SOFTCAP, ACC, BLOCK_V)
    else:
        columns = tl.arange(0, BLOCK_V)
        first = tl.max(load_logits(row_ptr, bias_ptr, columns, columns < width, SCALE, SOFTCAP, ACC), axis=0)
        offset = tl.where(mine & (label_logit > float("-inf")), label_logit + ROOM, first)
    offset = tl.where(offset > float("-inf"), offset, 0.0)
    SPREAD: tl.constexpr = entropy_ptr is not None
    total, peak, spread = store_exponentials(
        row_ptr, bias_ptr, out_row_ptr, width, label, offset, SCALE, SOFTCAP, SPREAD, ACC, BLOCK_V
    )
    if not IN_PLACE:  # noqa: SIM102  # this condition is known at compile time, the next one is not
        if not ((total >= SMALLEST) & (total <= LARGEST)):
            offset = tl.where(peak > float("-inf"), peak, 0.0)
            total, peak, spread = store_exponentials(
                row_ptr, bias_ptr, out_row_ptr, width, label, offset, SCALE, SOFTCAP, SPREAD, ACC, BLOCK_V
            )
    tl.store(label_logit_ptr + row, label_logit)
    tl.store(others_ptr + row, offset + tl.log(total))
    tl.store(total_ptr + row, total)
    if entropy_ptr is not None:
        tl.store(entropy_ptr + row, entropy_of(total, spread))
        tl.store(rival_ptr + row, peak)
    if SOFTCAP is not None:
        slope = label_logit / SOFTCAP
        tl.store(cap_slope_ptr + row, 1.0 - slope * slope)


def launch_exponentials_fwd(
    logits: Tensor,
    out: Tensor | None,
    local_labels: Tensor,
    label_logit: Tensor,
    others: Tensor,
    total: Tensor,
    cap_slope: Tensor | None,
    entropy: Tensor | None = None,
    rival: Tensor | None = None,
    *,
    bias: Tensor | None,
    scale: float,
    softcap: float | None,
    config: tuple[int, int] | None = None,
) -> None:
    """Write E to ``out``, and the sums of each row to label_logit, others, total and, with a softcap, cap_slope.

    entropy and rival, if given, are filled too: the entropy of the distribution over the words other than the label,
    and the largest logit of these words. All sums are [c], as in ``LocalSums``.

    logits: [c, V] fp32 or fp64. out: [c, V], either logits itself or another tensor in the dtype of the products; None:
    E is not needed. local_labels: [c] int64, outside of [0, V) where another rank holds the label.
    """
    count, width = logits.shape
    if count:
        with on_device_of(logits):
            exponentials_fwd_kernel[(count,)](
                logits, out, bias, local_labels, label_logit, others, total, cap_slope, entropy, rival,
                width, logits.stride(0),
                0 if out is None else out.stride(0), scale, softcap, out is logits,
                **launch_options(logits, False, config),
            )  # fmt: skip
