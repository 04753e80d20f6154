"""Losses of fine-tuning methods that ask no guard, to hold shaping against.

DFT weighs each label's cross-entropy with its own probability: https://arxiv.org/abs/2508.05629. Constrained SFT keeps
the first tokens of a response near the reference's: equation 3 of https://arxiv.org/abs/2406.05946, with its settings.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdss.star.align import IGNORE

FIRST, EARLY, LATER = 0.5, 2.0, 0.1  # the constraint's strength at a response's first token, the next four, the others
EARLY_TOKENS = 5


def dft_loss(logprobs: Tensor) -> Tensor:
    """Per label, with no gradient through the weight: ``-exp(logp) * logp``. logprobs: [...], 0 where none counts."""
    return -logprobs.exp().detach() * logprobs


def constrained_loss(logprobs: Tensor, ref_logprobs: Tensor, labels: Tensor) -> Tensor:
    """Per label: ``-2 / beta * logsigmoid(beta * (logp - logp_ref))``, beta by the label's place in its response.

    At the reference its gradient is that of the cross-entropy; it fades as the label grows likelier than the reference
    has it, soon where beta is large. logprobs, ref_logprobs, labels: [B, T], at the labels' places, 0 where ignored.
    """
    counted = labels != IGNORE
    place = counted.cumsum(-1)
    beta = torch.where(place == 1, FIRST, torch.where(place <= EARLY_TOKENS, EARLY, LATER))
    return counted * 2 / beta * F.softplus(-beta * (logprobs - ref_logprobs))
