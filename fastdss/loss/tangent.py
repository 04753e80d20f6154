"""The forward KL with a frozen head from one vector per token, without the reference's logits in the training loop.

Policy and reference share the head W [V, D], its bias c and the logit scale s. The log-partition of a hidden state,
``A(h) = logsumexp(s (W h + c))``, is convex, and ``log p_j = s (W_j h + c_j) - A(h)`` is otherwise linear in h. So with
the reference's hidden state g and distribution q = softmax(s (W g + c)),

    KL(q||p) = sum_j q_j (log q_j - log p_j) = A(h) - A(g) - s (W^T q) . (h - g)

is how far A lies above its tangent at g. Written about the label y, whose logit is linear, with nll(h) = -log p_y(h):

    slope = d nll(g) / dg = s (W^T q - W_y)              offset = slope . g - nll(g)
    KL(q||p) = nll(h) - slope . h + offset               dKL/dh = s W^T (p - y) - slope

Only nll(h) depends on the head, and its gradient is that of cross-entropy. So the engine computes the estimator
``k1 = log p_y - r`` with ``r = offset - slope . h`` and the weight negated, and adds ``-slope`` times the weight to the
finished gradient for h. It never needs q.

- If the slope is rounded to 16 bit, KL = 0 at h = g still holds, because the offset is made from the rounded slope.
- Policy and reference must have the same head: if W or c is trained, A changes, and the line above is no longer its
  tangent. So a head or bias that requires a gradient is refused. A KL below zero, which convexity rules out, shows that
  the head is not the one that the reference had.
- With a softcap the logits are not linear in h. Then the sum over q, and with it the reference's logits, is needed.

Another derivation: A is the log-partition of an exponential family in h, and its Bregman divergence is the KL (Banerjee
et al., "Clustering with Bregman divergences", 2005).
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from fastdss.errors import UserError, UserTypeError

from .checks import check_devices, check_gathered, on_host, sizes
from .chunked import run_chunks
from .inputs import Batch, LabelReference, LiveRows, RunOptions, shifted
from .objective import Objective

# By how much rounding may push a KL below 0: so many nats, and such a share of the terms that it is the difference of.
_SLACK, _SHARE = 0.1, 2.0**-8


class ForwardReference(NamedTuple):
    """What the forward KL needs to know of a reference that has the policy's head; all 0 at ignored labels."""

    logprobs: Tensor  # [...] log q(label)
    slope: Tensor  # [..., D]
    offset: Tensor  # [...]


def forward_reference(
    hidden: Tensor,
    lm_head: Tensor,
    labels: Tensor,
    *,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    shift: bool = False,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    dtype: torch.dtype | None = None,
    rows: LiveRows | Tensor | None = None,
    compact: bool = True,
    backend: Literal["auto", "torch", "triton", "fused"] = "auto",
    chunk_bytes: int | None = None,
    group: Any = None,
) -> ForwardReference:
    """Make the reference's part of the forward KL, for ``dss_loss(…, kl="forward", ref_slope=…, ref_offset=…)``.

    ```python
    nll    = F.cross_entropy(F.linear(hidden, lm_head, bias).float() * logit_scale, labels, reduction="none")
    slope, = torch.autograd.grad(nll.sum(), hidden)
    return -nll, slope, (slope * hidden).sum(-1) - nll
    ```

    It takes two GEMMs in fp32, for which a 16-bit head is copied to fp32. The results have no gradients. The derivation
    stands in this file.

    Args:
        hidden: [..., D] the reference's last hidden states.
        lm_head: [V, D] the reference's head, which the policy must keep.
        labels: [...] integers.
        bias: [V] of the head.
        ignore_index: the label that does not count.
        shift: return each label's values at the position of the hidden state that predicts it, one before the label.
        logit_scale: the factor of the logits.
        softcap: must be None; with a softcap the logits are not linear in the hidden states.
        dtype: what the slope is rounded to; None: fp32 (fp64 for fp64).
        rows: as in ``weighted_ce``, like the next four.
        compact: leave out rows whose label does not count.
        backend: which engine computes it.
        chunk_bytes: how much memory logits may take.
        group: the process group over which the vocabulary is split.

    Returns:
        ForwardReference: log-probabilities of the labels, slopes and offsets, 0 at ignored labels.

    Raises:
        ValueError: for a softcap, and as ``weighted_ce``.
        TypeError: as ``weighted_ce``.
    """
    check_softcap(softcap)
    batch = Batch.weighted(
        hidden.detach(), lm_head.detach(), labels, None, ignore_index=ignore_index, shift=shift, group=group
    )
    spec = Objective("none", 0.0, 0.0, logit_scale, None)
    call = batch.call(spec, RunOptions(rows, compact, backend, chunk_bytes, group), bias=bias)
    # In fp32, so that the products with the head are not rounded: an error of the slope is multiplied by h - g.
    wide = call.lm_head.to(call.compute_dtype).to(call.accumulate)
    call = call._replace(hidden=call.hidden.to(call.compute_dtype), lm_head=wide, compute_dtype=call.accumulate)
    found = run_chunks(call, hidden_grad=True, head_grad=False, bias_grad=False)
    assert found.d_hidden is not None
    slope = found.d_hidden if dtype is None else found.d_hidden.to(dtype)
    offset = torch.where(batch.counts, _products(batch, slope) - found.token_ce, 0)
    return ForwardReference(
        (-found.token_ce).view(batch.shape), slope.view(*batch.shape, slope.shape[1]), offset.view(batch.shape)
    )


def tangent_of(batch: Batch, slope: Tensor, offset: Tensor | None) -> LabelReference:
    """``r`` for the batch's hidden states, and the slope, as a reference for the label forms; 0 without a KL weight."""
    if offset is None:
        raise UserError("ref_slope needs ref_offset: forward_reference makes both")
    check_gathered(ref_slope=slope, ref_offset=offset)
    wanted = [*batch.shape, batch.hidden.shape[1]]
    if list(slope.shape) != wanted or offset.shape != batch.shape:
        raise UserError(
            f"ref_slope: expected {wanted} with ref_offset {list(batch.shape)}, got {sizes(slope)}, {sizes(offset)}"
        )
    for name, value in (("ref_slope", slope), ("ref_offset", offset)):
        if not value.is_floating_point():
            raise UserTypeError(f"{name}: expected a floating dtype, got {value.dtype}")
    check_devices(batch.hidden, ref_slope=slope, ref_offset=offset)
    assert batch.kl_weight is not None
    unused = batch.kl_weight == 0
    slope = shifted(slope.detach(), batch.shift, 0, dim=-2).reshape(-1, slope.shape[-1])
    slope = slope.masked_fill(unused.unsqueeze(1), 0)
    offset = shifted(offset.detach(), batch.shift, 0).reshape(-1).to(batch.kl_weight.dtype)
    return LabelReference((offset - _products(batch, slope)).masked_fill(unused, 0), slope)


def _products(batch: Batch, slope: Tensor) -> Tensor:
    """[N] slope . h, with h rounded to the dtype in which it is multiplied by the head.

    A product and a sum, because autocast would round a matrix product.
    """
    accumulate = batch.ce_weight.dtype
    return (batch.hidden.detach().to(batch.compute_dtype).to(accumulate) * slope.to(accumulate)).sum(-1)


def check_softcap(softcap: float | None) -> None:
    """Refuse a softcap."""
    if softcap is not None:
        raise UserError(
            f"softcap={softcap}: the forward KL from one vector a token needs logits that are linear in the hidden "
            "states: give the reference as ref_hidden with ref_lm_head"
        )


def check_one_head(lm_head: Tensor, bias: Tensor | None) -> None:
    """Refuse a head or bias that is trained: it would no longer be the reference's."""
    for name, tensor in (("lm_head", lm_head), ("bias", bias)):
        if tensor is not None and tensor.requires_grad:
            raise UserError(
                f"{name} requires a gradient, but ref_slope is of the head that the reference had, which a trained one "
                f"leaves: freeze it (pass {name}.detach()), or give the reference as ref_hidden with ref_lm_head"
            )


def refuse_another_head(loss: Tensor, token_ce: Tensor, token_kl: Tensor, reference: LabelReference) -> Tensor:
    """Return ``loss`` ([] or [...]) if no KL is below 0 by more than rounding explains, else raise ``UserError``.

    On a device the host would have to wait to raise an error; there the loss becomes NaN instead.
    """
    below = token_kl < -(_SLACK + _SHARE * (token_ce.abs() + reference.logprobs.abs()))
    if not on_host(token_kl):
        return loss.masked_fill(below.any() if loss.dim() == 0 else below.view(loss.shape), math.nan)
    if below.any():
        at = int(below.nonzero()[0])
        raise UserError(
            f"ref_slope[{at}] (of the flat batch): its forward KL is {token_kl[at].item():.3g}, below 0, as it cannot "
            "be with the reference's own head: make the reference anew, with the head that the policy has"
        )
    return loss
