"""From the sums of each row's exponentials to its loss terms and its gradient's factors: in torch, or by one kernel."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .exponentials import ExpFactors, LocalSums, combined, terms_and_factors
from .objective import Objective, RowInputs
from .vocab_shard import VocabShard


class RowTerms(NamedTuple):
    """Every tensor is [n]."""

    ce: Tensor
    kl: Tensor
    parts: list[Tensor]  # both times their weights; the KL's only where it has some
    factors: ExpFactors
    told: Tensor | None  # [2, n] as LossResult.token_stats


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
    """mean_logit: this rank's share of it. dead: rows without any weight, None where all have one. checked: every label
    is known to be in the vocabulary.

    Where ranks share the vocabulary their sums meet in between, and sums in float64 have no kernel: in torch then.
    """
    if backend == "triton" and shard.group is None and sums.others.dtype == torch.float32:
        from fastdss.kernels.row_terms import launch_row_terms_fwd

        o = objective
        made = launch_row_terms_fwd(
            *sums, mean_logit, *rows, vocab_size=shard.size, kl_code=o.kl_code,
            label_smoothing=o.label_smoothing, z_loss=o.z_loss, logit_scale=o.logit_scale,
        )  # fmt: skip
        parts = [made.weighted_ce] if made.weighted_kl is None else [made.weighted_ce, made.weighted_kl]
        return RowTerms(made.ce, made.kl, parts, ExpFactors(made.row, made.label, made.const), made.told)
    stats = combined(sums, mean_logit, rows.labels, objective, shard, checked=checked)
    ce, kl, factors = terms_and_factors(stats, rows, objective, shard, dead)
    if rows.kl_weight is None:  # every row without a weight is dead, and its cross-entropy 0
        parts = [rows.ce_weight * ce]
    else:  # a row without a KL weight has a KL of 0, but without one for it a cross-entropy may be infinite
        parts = [scaled_weight(rows.ce_weight, ce), rows.kl_weight * kl]
    told = stats.told if stats.told is None or dead is None else stats.told.masked_fill(dead, 0)
    return RowTerms(ce, kl, parts, factors, told)


def scaled_weight(weight: Tensor, factor: Tensor) -> Tensor:
    """``weight * factor``, and 0 where the weight is 0 whatever the factor is."""
    return torch.where(weight == 0, 0, weight * factor)
