"""Loss terms and gradient factors of each row, from the sums of its exponentials: in torch, or by one kernel."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .exponentials import ExpFactors, LocalSums, combined, terms_and_factors
from .objective import Objective, RowInputs, first_part, first_weight
from .vocab_shard import VocabShard


class RowTerms(NamedTuple):
    """Every tensor is [n]."""

    ce: Tensor  # cross-entropy, without its weight
    kl: Tensor  # KL term, without its weight
    parts: list[Tensor]  # the weighted cross-entropy and, if there are KL weights, the weighted KL
    factors: ExpFactors
    token_stats: Tensor | None  # [2, n] as LossResult.token_stats


def row_terms(
    sums: LocalSums,
    mean_logit: Tensor | None,
    rows: RowInputs,
    objective: Objective,
    shard: VocabShard,
    dead: Tensor | None,
    backend: str,
    *,
    checked: bool = False,
) -> RowTerms:
    """The terms of ``rows``. mean_logit: this rank's share of each row's mean logit. dead: which rows have no weight,
    None if all have one. checked: every label is known to be in the vocabulary.

    The kernel computes fp32 sums of an unsplit vocabulary. Torch computes the rest: ranks that share a vocabulary must
    first combine their sums, and there is no kernel for float64.
    """
    given = rows
    if backend == "triton" and shard.group is None and sums.others.dtype == torch.float32:
        from fastdss.kernels.row_terms import launch_row_terms_fwd

        o = objective
        if o.dft or rows.csft_beta is not None:
            rows = first_weight(F.softplus(sums.others - sums.label_logit, threshold=40.0), rows, o.dft)
        made = launch_row_terms_fwd(
            *sums, mean_logit, rows.labels, rows.ce_weight, rows.kl_weight, rows.ref_logprobs,
            vocab_size=shard.size, kl_code=o.kl_code, label_smoothing=o.label_smoothing, z_loss=o.z_loss,
            logit_scale=o.logit_scale,
        )  # fmt: skip
        first = made.weighted_ce if rows.csft_beta is None else first_part(made.ce, given, o.dft)
        parts = [first] if made.weighted_kl is None else [first, made.weighted_kl]
        return RowTerms(made.ce, made.kl, parts, ExpFactors(made.row, made.label, made.const), made.token_stats)
    stats = combined(sums, mean_logit, rows.labels, objective, shard, checked=checked)
    rows = first_weight(stats.nll, rows, objective.dft)
    ce, kl, factors = terms_and_factors(stats, rows, objective, shard, dead)
    if rows.kl_weight is None:  # a plain product is safe: a row without a weight is dead, so its cross-entropy is 0
        parts = [rows.ce_weight * ce]
    else:  # a row with a KL weight alone is not dead: its cross-entropy may be infinite, and 0 * inf must be 0
        parts = [first_part(ce, given, objective.dft), rows.kl_weight * kl]
    token_stats = (
        stats.token_stats if stats.token_stats is None or dead is None else stats.token_stats.masked_fill(dead, 0)
    )
    return RowTerms(ce, kl, parts, factors, token_stats)
