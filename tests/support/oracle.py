"""The losses by their definitions, for autograd to differentiate in float64: the truth of the tests."""

from __future__ import annotations

import torch
from torch import Tensor

from fastdss.loss.objective import LABEL_KL, Objective, RowInputs


def oracle_terms(
    raw: Tensor, rows: RowInputs, objective: Objective, *, raw_ref: Tensor | None = None, ignore_index: int = -100
) -> tuple[Tensor, Tensor]:
    """``(token_ce, token_kl)`` by the definitions, for autograd to differentiate; shares no code with the row pass.

    raw, raw_ref: [N, V] raw logits (bias added), float64. Both terms are [N], 0 where they have no weight.
    """
    o = objective
    log_p = _oracle_log_softmax(raw, o.logit_scale, o.softcap)
    counts = (rows.labels != ignore_index) & ((rows.ce_weight != 0) | (_or_zero(rows.kl_weight, rows.ce_weight) != 0))
    column = torch.where(counts, rows.labels, 0).unsqueeze(1)
    logp = log_p.gather(1, column).squeeze(1)
    ce = -(1 - o.label_smoothing) * logp - o.label_smoothing * log_p.mean(dim=1)
    if o.z_loss:
        z = raw * o.logit_scale if o.softcap is None else o.softcap * torch.tanh(raw * o.logit_scale / o.softcap)
        ce = ce + o.z_loss * z.logsumexp(dim=1) ** 2
    ce = torch.where(counts, ce, 0)
    if o.kl == "none" or rows.kl_weight is None:
        return ce, torch.zeros_like(ce)
    if o.kl in LABEL_KL:
        assert rows.ref_logprobs is not None
        ratio = rows.ref_logprobs - logp  # log(q / p)
        kl = {"k1": -ratio, "k2": ratio**2 / 2, "k3": ratio.exp() - 1 - ratio}[o.kl]
    else:
        assert raw_ref is not None
        log_q = _oracle_log_softmax(raw_ref, o.ref_logit_scale, o.ref_softcap)
        pair = (log_q, log_p) if o.kl == "reverse" else (log_p, log_q)
        kl = torch.nn.functional.kl_div(*pair, reduction="none", log_target=True).sum(dim=1)
    return ce, torch.where(counts & (rows.kl_weight != 0), kl, 0)


def oracle_stats(
    raw: Tensor, rows: RowInputs, objective: Objective, *, ignore_index: int = -100
) -> tuple[Tensor, Tensor]:
    """``(entropy, whether the label is the likeliest word)``, [N], 0 and False where a token has no weight."""
    log_p = _oracle_log_softmax(raw, objective.logit_scale, objective.softcap)
    live = (rows.ce_weight != 0) | (_or_zero(rows.kl_weight, rows.ce_weight) != 0)
    counts = (rows.labels != ignore_index) & live
    entropy = torch.special.entr(log_p.exp()).sum(dim=1)
    return torch.where(counts, entropy, 0), counts & (log_p.argmax(dim=1) == rows.labels)


def _oracle_log_softmax(raw: Tensor, scale: float, softcap: float | None) -> Tensor:
    z = raw * scale
    return torch.log_softmax(z if softcap is None else softcap * torch.tanh(z / softcap), dim=1)


def _or_zero(tensor: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if tensor is None else tensor
