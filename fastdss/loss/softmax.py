"""The softmax of rows of logits where they lie, with sums more exact than the CPU's own, and entropies."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

_NEVER = -1e4  # nats below the largest logit: exp of it is 0 in float64 too

# Elements a thread and block where entropies are wanted: 1 MiB of fp32. A softmax of 85 x 49152 takes 5.5 ms, with
# entropies 11.3 in one block, 7.3 in blocks of 4 rows, 8.0 of 2 (Zen 4, one thread, processor time, busy machine).
_CACHED = 1 << 18


class SoftmaxSums(NamedTuple):
    """What :func:`softmax_` tells of each row; every tensor is [n]."""

    lse: Tensor
    total: Tensor  # by what the softmax is too large, about 1
    peak: Tensor  # the largest entry
    entropy: Tensor | None  # where there is scratch


def entropy_scratch(logits: Tensor, rows: int) -> Tensor:
    """What :func:`softmax_` needs for entropies of ``rows`` of ``logits`` [c, V]: on a CPU as much as its threads' own
    caches hold, for an entropy sweeps over the logits and over as much again (see ``_CACHED`` for what that saves)."""
    if logits.device.type == "cpu":
        rows = min(rows, max(1, _CACHED * torch.get_num_threads() // logits.shape[1]))
    return logits.new_empty((rows, logits.shape[1]))


def softmax_(z: Tensor, scratch: Tensor | None = None) -> SoftmaxSums:
    """``z`` becomes softmax(z) times a number per row; scratch: of :func:`entropy_scratch`, if entropies are wanted.

    The CPU's softmax adds its denominator up in one go: with 262144 words it is off by 2e-5. Its own sum, added in
    pairs, says by how much; the gradient's factors divide by it, which spares a pass. logsumexp is read off the largest
    entry: max p = exp(max z - lse). Where every entry is -inf, logsumexp is too, and z a softmax of no consequence.
    """
    if scratch is not None and z.shape[0] > scratch.shape[0]:  # as many rows at a time
        parts = [softmax_(part, scratch) for part in z.split(scratch.shape[0])]
        return SoftmaxSums(*map(torch.cat, zip(*parts, strict=True)))
    peak = z.amax(dim=1)
    z[:, 0].masked_fill_(peak == -math.inf, 0)
    below = None
    if scratch is not None:  # how far below the largest; an impossible entry, infinitely far, must not meet its p of 0
        below = torch.sub(z, peak.unsqueeze(1), out=scratch[: z.shape[0]]).clamp_(min=_NEVER)
    torch.softmax(z, dim=1, out=z)
    total = z.sum(dim=1)
    lse = peak - (z.amax(dim=1) / total).log()
    entropy = None if below is None else lse - peak - below.mul_(z).sum(dim=1) / total
    return SoftmaxSums(lse, total, peak, entropy)


def token_stats_of(entropy: Tensor | None, label_logit: Tensor, rival: Tensor | None) -> Tensor:
    """[2, n] entropies, and 1 where the label was likelier than every other word."""
    assert entropy is not None
    assert rival is not None
    return torch.stack([entropy, (label_logit > rival).to(entropy.dtype)])
