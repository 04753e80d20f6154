"""What the loss ops take and what they make: the one record that the checks, the ops and the chunk driver share."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class LossCall(NamedTuple):
    """Inputs of the ops in ops.py, in schema order. N tokens, D hidden, V vocabulary (of this rank)."""

    hidden: Tensor  # [N, D]
    lm_head: Tensor  # [V, D]
    bias: Tensor | None  # [V]
    labels: Tensor  # [N] int64, over the whole vocabulary; like all vectors here contiguous, as the kernels read them
    ce_weight: Tensor  # [N] fp32/fp64, 0 at labels that do not count
    kl_weight: Tensor | None  # [N]
    ref_logprobs: Tensor | None  # [N]
    csft_beta: Tensor | None  # [N] by how much a bounded first term holds each label to ref_logprobs
    ref_slope: Tensor | None  # [N, D] minus their gradient for hidden, where they depend on it (tangent.py; k1 only)
    ref_hidden: Tensor | None  # [N, D']
    ref_lm_head: Tensor | None  # [V, D']
    ref_bias: Tensor | None  # [V]
    rows: Tensor | None  # [n] int64: the only rows that matter, those with a KL weight first
    kl_rows: int  # how many of ``rows`` have a KL weight; -1: not known
    objective: str  # Objective.encode(): ops take plain types
    compute_dtype: torch.dtype
    backend: str  # "torch" or "triton"
    product: str  # "vendor", "fused" or "auto" (by chip): who multiplies rows and head where exponentials are made
    chunk_bytes: int  # 0: the device's default
    compact: bool
    grad_tol: float  # share of dZ that may be left out of the products; 0: none
    token_stats: bool  # whether each token's entropy and whether its label was the likeliest are wanted
    group: str  # name of the process group over which the vocabulary is split, or ""

    @property
    def accumulate(self) -> torch.dtype:
        """What logits and sums are kept in."""
        return torch.float64 if self.compute_dtype == torch.float64 else torch.float32

    @property
    def dft(self) -> bool:
        """``Objective.dft``, its encoding's last word, without decoding it: torch.compile warns of the cache there."""
        return not self.objective.endswith("None")


class LossResult(NamedTuple):
    token_ce: Tensor  # [N]
    token_kl: Tensor  # [N]
    d_hidden: Tensor | None  # [N, D] in the accumulation dtype
    d_head: Tensor | None  # [V, D]
    d_bias: Tensor | None  # [V]
    token_stats: Tensor | None  # [2, N] entropies; 1 where the label was the likeliest word, else 0
