"""Loss terms and gradient factors of each row, from the sums of its exponentials: in torch, or by one kernel."""

from __future__ import annotations

from typing import NamedTuple

import torch
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
    if backend == "triton" and shard.group is None and sums.others.dtype == torch.float32:
        from fastdss.kernels.row_terms import launch_row_terms_fwd

        o = objective
        made = launch_row_terms_fwd(
            *sums, mean_logit, *rows, vocab_size=shard.size, kl_code=o.kl_code, dft=o.dft,
            label_smoothing=o.label_smoothing, z_loss=o.z_loss, logit_scale=o.logit_scale,
        )  # fmt: skip
        parts = [made.weighted_ce] if made.weighted_kl is None else [made.weighted_ce, made.weighted_kl]
        return RowTerms(made.ce, made.kl, parts, ExpFactors(made.row, made.label, made.const), made.token_stats)
    stats = combined(sums, mean_logit, rows.labels, objective, shard, checked=checked)
    ce, kl, factors = terms_and_factors(stats, first_weight(stats.nll, rows, objective.dft), objective, shard, dead)
    if rows.kl_weight is None and not objective.dft:
        parts = [rows.ce_weight * ce]  # safe: a row without a weight is dead, so its cross-entropy is 0
    else:  # an infinite cross-entropy may have a weight of 0, beside a KL or by dft; 0 * inf must be 0
        parts = [first_part(ce, rows, objective.dft)]
        parts += [] if rows.kl_weight is None else [rows.kl_weight * kl]
    token_stats = stats.token_stats
    if token_stats is not None and dead is not None:
        token_stats = token_stats.masked_fill(dead, 0)
    return RowTerms(ce, kl, parts, factors, token_stats)
