"""Losses of other fine-tuning methods, which ask no guard, to compare shaping with.

DFT weighs each label's cross-entropy with its own probability: https://arxiv.org/abs/2508.05629. Constrained SFT keeps
the first tokens of a response near the reference's: equation 3 of https://arxiv.org/abs/2406.05946, with its settings.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdss.star.align import IGNORE

FIRST, EARLY, LATER = 0.5, 2.0, 0.1  # that paper's beta at a response's first token, at the next four, at the others
EARLY_TOKENS = 5


def dft_loss(logprobs: Tensor) -> Tensor:
    """``-exp(logp) * logp`` per label, with no gradient through ``exp(logp)``. logprobs: [...], 0 at ignored labels."""
    return -logprobs.exp().detach() * logprobs


def constrained_loss(logprobs: Tensor, ref_logprobs: Tensor, labels: Tensor) -> Tensor:
    """``-2 / beta * logsigmoid(beta * (logp - logp_ref))`` per label; beta depends on its position in the response.

    Where policy and reference agree, the gradient is that of the cross-entropy. It fades as the label becomes likelier
    than under the reference, sooner where beta is large. logprobs, ref_logprobs, labels: [B, T], aligned with the
    labels, 0 where those are ignored.
    """
    counted = labels != IGNORE
    place = counted.cumsum(-1)
    beta = torch.where(place == 1, FIRST, torch.where(place <= EARLY_TOKENS, EARLY, LATER))
    return counted * 2 / beta * F.softplus(-beta * (logprobs - ref_logprobs))
