"""In-place softmax of rows of logits, with more exact sums than PyTorch's on a CPU, and the entropies of the rows."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

_NEVER = -1e4  # logits are clamped to this many nats below their row's largest; exp(-1e4) is 0 in float64 too

# Elements per thread in one block of rows where entropies are wanted: 1 MiB of fp32, which fits a core's own cache. A
# softmax of 85 x 49152 takes 5.5 ms; with entropies it takes 11.3 ms in one block, 7.3 in blocks of 4 rows and 8.0 in
# blocks of 2 rows (Zen 4, one thread, processor time, busy machine).
_CACHED = 1 << 18


class SoftmaxSums(NamedTuple):
    """What :func:`softmax_` computes for each row; every tensor is [n]."""

    lse: Tensor  # log-sum-exp
    total: Tensor  # the factor by which the stored softmax is too large, about 1
    peak: Tensor  # the largest logit
    entropy: Tensor | None  # computed if scratch is given


def entropy_scratch(logits: Tensor, rows: int) -> Tensor:
    """The memory that :func:`softmax_` needs to compute entropies, for up to ``rows`` rows of ``logits`` [c, V].

    On a CPU it has no more rows than its threads' own caches hold, because an entropy sweeps several times over the
    logits and over this memory. ``_CACHED`` says what that saves.
    """
    if logits.device.type == "cpu":
        rows = min(rows, max(1, _CACHED * torch.get_num_threads() // logits.shape[1]))
    return logits.new_empty((rows, logits.shape[1]))


def softmax_(z: Tensor, scratch: Tensor | None = None) -> SoftmaxSums:
    """Overwrite ``z`` with softmax(z), each row of which is too large by a factor near 1 that is returned as ``total``.

    scratch: from :func:`entropy_scratch`, if entropies are wanted. PyTorch's softmax on a CPU adds its denominator up
    in one running sum: with 262144 words it is off by 2e-5. ``sum`` adds in pairs and is more exact, so the sum of the
    result tells the error. The gradient's factors divide by it, which spares a pass over ``z``. The log-sum-exp follows
    from the largest probability: max p = exp(max z - lse). In a row of -inf alone it is -inf, and the softmax is 1 at
    the first word instead of NaN.
    """
    if scratch is not None and z.shape[0] > scratch.shape[0]:  # no more rows at a time than scratch has
        parts = [softmax_(part, scratch) for part in z.split(scratch.shape[0])]
        return SoftmaxSums(*map(torch.cat, zip(*parts, strict=True)))
    peak = z.amax(dim=1)
    z[:, 0].masked_fill_(peak == -math.inf, 0)
    below = None
    if scratch is not None:  # z - peak, clamped: for an entry of -inf, p * (z - peak) would be 0 * -inf, which is NaN
        below = torch.sub(z, peak.unsqueeze(1), out=scratch[: z.shape[0]]).clamp_(min=_NEVER)
    torch.softmax(z, dim=1, out=z)
    total = z.sum(dim=1)
    lse = peak - (z.amax(dim=1) / total).log()
    entropy = None if below is None else lse - peak - below.mul_(z).sum(dim=1) / total
    return SoftmaxSums(lse, total, peak, entropy)


def token_stats_of(entropy: Tensor | None, label_logit: Tensor, rival: Tensor | None) -> Tensor:
    """[2, n] the entropies, and 1 where the label was likelier than every other word, else 0."""
    assert entropy is not None
    assert rival is not None
    return torch.stack([entropy, (label_logit > rival).to(entropy.dtype)])
