"""Logits to exponentials on a GPU: each fp32 logit is read once, E and the row's sum are written, and that is all.

Formulas and names: the docstring of fastdss/loss/exponentials.py. The offset must be known before the row is read, so
it is guessed: a little above the label's logit, or where another rank holds the label the largest of the first block. A
row whose guess was too low for fp32 sums (a label about 57 nats below the largest logit) is read once more. Where E
lies over its logits (fp32 and fp64) nothing is left to read again: there the largest logit is found first.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .configs import row_pass_config
from .primitives import entropy_of, load_logits, log_weighted, on_device_of
from .row_pass import interpreted, label_logit_of

ROOM = tl.constexpr(16.0)  # nats above the label's logit
LARGEST = tl.constexpr(
    2.0**60
)  # sum of a row: its products with the head, and 2**-60 of a weight, fit in fp32 and bf16


@triton.jit
def store_exponentials(
    row_ptr, bias_ptr, out_ptr, width, local_label, offset,
    SCALE: tl.constexpr, SOFTCAP: tl.constexpr, SPREAD: tl.constexpr, ACC: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """(sum of the exponentials, largest logit, with SPREAD sum of E log E) of the row without its label.

    E times the softcap's slope is stored.
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
    """The largest logit of the row without its label's."""
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
    if not IN_PLACE:  # noqa: SIM102  # known when compiled; what follows only when the row is read
        if not (total <= LARGEST):
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
    """``out`` becomes E; label_logit, others, total and cap_slope (with a softcap) are filled, and if given entropy, of
    the words but the label among themselves, and rival, their largest logit.

    logits: [c, V] fp32 or fp64. out: [c, V] logits itself, or apart from it in the products' dtype; None: not needed.
    local_labels: [c] int64, outside of [0, V) where another rank holds the label.
    """
    count, width = logits.shape
    backend = "interpreter" if interpreted() else "hip" if torch.version.hip else "cuda"
    block_v, num_warps = config or row_pass_config(width, logits.element_size(), has_ref=False, backend=backend)
    if count:
        with on_device_of(logits):
            exponentials_fwd_kernel[(count,)](
                logits, out, bias, local_labels, label_logit, others, total, cap_slope, entropy, rival,
                width, logits.stride(0),
                0 if out is None else out.stride(0), scale, softcap, out is logits,
                BLOCK_V=block_v, num_warps=num_warps,
            )  # fmt: skip
