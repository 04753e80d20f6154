"""The arguments and the results of the loss ops, as two records that the checks, the ops and the chunk driver share."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class LossCall(NamedTuple):
    """Arguments of the ops in ops.py, in the order of their schema.

    N tokens, D hidden dimensions, V words of the vocabulary that this rank holds. Vectors are contiguous, because the
    kernels read them without strides.
    """

    hidden: Tensor  # [N, D]
    lm_head: Tensor  # [V, D]
    bias: Tensor | None  # [V]
    labels: Tensor  # [N] int64, counted over the whole vocabulary
    ce_weight: Tensor  # [N] fp32 or fp64, 0 at labels that do not count
    kl_weight: Tensor | None  # [N]
    ref_logprobs: Tensor | None  # [N]
    csft_beta: Tensor | None  # [N] beta of constrained fine-tuning (objective.py), which replaces cross-entropy
    ref_slope: Tensor | None  # [N, D] minus the gradient of ref_logprobs for hidden, if they depend on it (tangent.py)
    ref_hidden: Tensor | None  # [N, D']
    ref_lm_head: Tensor | None  # [V, D']
    ref_bias: Tensor | None  # [V]
    rows: Tensor | None  # [n] int64: the only rows to compute, those with a KL weight first
    kl_rows: int  # how many of ``rows`` have a KL weight; -1: not known
    objective: str  # Objective.encode(), since an op's arguments must be of plain types
    compute_dtype: torch.dtype
    backend: str  # "torch" or "triton"
    product: str  # what multiplies rows and head to make exponentials: "vendor", "fused", or "auto", which goes by chip
    chunk_bytes: int  # memory for logits or exponentials; 0: the device's default
    compact: bool  # leave out rows without any weight
    grad_tol: float  # share of dZ that may be left out of the products; 0: none
    token_stats: bool  # whether to compute LossResult.token_stats
    group: str  # name of the process group over which the vocabulary is split, or ""

    @property
    def accumulate(self) -> torch.dtype:
        """The dtype of logits and sums."""
        return torch.float64 if self.compute_dtype == torch.float64 else torch.float32

    @property
    def dft(self) -> bool:
        """``Objective.dft``, read from the last word of its encoding.

        ``Objective.decode`` would do, but it is cached, and torch.compile warns when it traces a cached function.
        """
        return not self.objective.endswith("None")


class LossResult(NamedTuple):
    """Results of a loss op; gradients that were not asked for are None."""

    token_ce: Tensor  # [N]
    token_kl: Tensor  # [N]
    d_hidden: Tensor | None  # [N, D] in the accumulation dtype
    d_head: Tensor | None  # [V, D]
    d_bias: Tensor | None  # [V]
    token_stats: Tensor | None  # [2, N] the entropies, and 1 where the label was the likeliest word, else 0
