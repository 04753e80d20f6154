"""Cross-entropy and the label forms of the KL without dZ: exponentials of the logits are stored instead.

The gradient of these losses is ``dZ = A p + B y + C`` with one A, B and C per row (objective.py). So the matrix that
the products read need not contain A, B and C: they enter before or after the products, as factors of rows. With the
label's logit z_y left out, and an offset ``o`` that may differ from row to row,

    E_j = exp(z_j - o) for j != y,   E_y = 0         T = sum_j E_j         others = o + log T
    d = others - z_y                                 -log p_y = log(1 + e^d)        1 - p_y = sigmoid(d)
    p_j = E_j sigmoid(d) / T  for j != y

No digits are lost where p_y is near 1 or near 0, because nothing is subtracted from 1. In the columns of the other
words dZ is v E + C with ``v = A sigmoid(d) / T``. At the label, with C left out,

    dZ_y = A p_y + B = (A + B) - A sigmoid(d)        A + B = a (2 g lse + e)

    dX = v * (E W) + dZ_y W[y] + C (sum of W's rows)
    dW = E^T (v * X), + dZ_y X in row y, + sum_r C_r X_r in every row           db = E^T v, + dZ_y at y, + sum_r C_r

Weights, estimators, the z-loss and any upstream gradient only change v, dZ_y and C. So E may be kept until backward
brings the upstream gradient: ``reduction="none"`` then computes no logits again, and nothing is rounded twice.

The entropy H of p, where it is asked for, is split in two: whether the word is the label, and if it is not, which of
the other words it is. Their distribution E / T has the entropy H'. No term is negative, so nothing cancels.

    H = (1 - p_y) (H' - log(1 - p_y)) - p_y log p_y         H' = log T - sum_j E_j log(E_j) / T

Three cases do not fit this form and take the row pass (objective.py). With a softcap, E is multiplied by the softcap's
slope after T was summed; label smoothing would need its C multiplied by that slope as well, which is no number per row.
The full KL sums over the reference's logits too. In fp16 small exponentials would become 0.

The label's entry carries about half of the energy (the sum of squares) of a row's gradient and is exact here. E is
rounded to 16 bit where the parameters are. If a vocabulary is split over ranks, each rank has its own o and T, and the
ranks combine ``others`` and z_y.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .call import LossCall
from .column_filter import Entries, multiply_columns
from .gemm import add_product, label_rows, times_head
from .objective import (
    BLOCK_ELEMENTS,
    FULL_KL,
    Objective,
    RowInputs,
    in_vocabulary,
    label_terms,
    smoothing_term,
    transform,
)
from .softmax import entropy_scratch, softmax_, token_stats_of
from .vocab_shard import Columns, OtherWords, VocabShard

# Rows or columns of E that are read at a time for a product with an fp32 result. A choice: it bounds the memory of the
# part that is gathered or converted for it.
_LABELS = 512


def takes_exponentials(call: LossCall, objective: Objective) -> bool:
    """Whether the call's gradient has the form that the module's docstring derives."""
    smoothed_cap = objective.label_smoothing != 0 and objective.softcap is not None
    return objective.kl not in FULL_KL and call.compute_dtype != torch.float16 and not smoothed_cap


class LocalSums(NamedTuple):
    """What one pass over the logits of this rank's vocabulary computes for each row; every tensor is [n]."""

    label_logit: Tensor  # z_y; 0 where another rank holds the label
    others: Tensor  # log-sum-exp of the logits without the label's
    total: Tensor  # T
    cap_slope: Tensor | None  # derivative of the softcap at the label
    entropy: Tensor | None  # H', where it is asked for
    rival: Tensor | None  # the largest logit but the label's, where it is asked for

    @staticmethod
    def empty(like: Tensor, rows: int, dtype: torch.dtype, objective: Objective, token_stats: bool) -> LocalSums:
        label_logit, others, total, slope, *asked = like.new_empty(
            (6 if token_stats else 4, rows), dtype=dtype
        ).unbind()
        entropy, rival = asked or (None, None)
        return LocalSums(label_logit, others, total, None if objective.softcap is None else slope, entropy, rival)

    def at(self, span: slice) -> LocalSums:
        return LocalSums(*(None if t is None else t[span] for t in self))  # type: ignore[arg-type]


class ExpStats(NamedTuple):
    """The same for the whole vocabulary, as losses and gradients need it; every tensor is [n]."""

    nll: Tensor  # -log p_y
    miss: Tensor  # 1 - p_y
    unit: Tensor  # (1 - p_y) / T: p is E times this
    lse: Tensor | None  # where the z-loss or smoothing need it
    mean_logit: Tensor | None
    cap_slope: Tensor | None
    token_stats: Tensor | None  # [2, n] as LossResult.token_stats


def torch_exponentials(
    logits: Tensor, labels: Columns, objective: Objective, bias: Tensor | None, sums: LocalSums, out: Tensor | None
) -> None:
    """Overwrite ``logits`` [c, V] with E and fill ``sums``; ``out`` (16 bit), if given, becomes a copy of E.

    A few rows at a time, so that they stay in cache between the passes over them. E is made by PyTorch's softmax over
    the other words: its offset o is their log-sum-exp, and T is about 1.
    """
    count, width = logits.shape
    step = max(1, BLOCK_ELEMENTS // width)
    scratch = None if sums.entropy is None else entropy_scratch(logits, min(step, count))
    if count <= step:
        return _block_exponentials(logits, labels, objective, bias, sums, out, scratch)
    for start in range(0, count, step):
        block = slice(start, start + step)
        part = None if out is None else out[block]
        _block_exponentials(logits[block], labels.at(block), objective, bias, sums.at(block), part, scratch)
    return None


def _block_exponentials(
    logits: Tensor,
    labels: Columns,
    objective: Objective,
    bias: Tensor | None,
    sums: LocalSums,
    out: Tensor | None,
    scratch: Tensor | None,
) -> None:
    z, cap_slope = transform(logits, bias, objective.logit_scale, objective.softcap, grad=True)
    column = labels.column.unsqueeze(1)
    label_logit = torch.gather(z, 1, column)
    inside = labels.mine
    if inside is None:
        z.scatter_(1, column, -torch.inf)
    else:
        mine = inside.unsqueeze(1)
        z.scatter_(1, column, label_logit.masked_fill(mine, -torch.inf))
        label_logit = torch.where(mine, label_logit, 0)
    sums.label_logit.copy_(label_logit.squeeze(1))
    found = softmax_(z, scratch)
    sums.others.copy_(found.lse)
    sums.total.copy_(found.total)
    if sums.entropy is not None and sums.rival is not None and found.entropy is not None:
        sums.entropy.copy_(found.entropy)
        sums.rival.copy_(found.peak)
    if cap_slope is not None and sums.cap_slope is not None:
        sums.cap_slope.copy_(cap_slope.gather(1, column).squeeze(1))
        z.mul_(cap_slope)
    if out is not None:
        out.copy_(z)


def combined(
    sums: LocalSums, mean_logit: Tensor | None, labels: Tensor, o: Objective, shard: VocabShard, *, checked: bool
) -> ExpStats:
    """The sums of all ranks combined, and what follows from them.

    labels: [n], counted over the whole vocabulary; checked: they are known to lie in it, else a label outside makes its
    loss NaN. mean_logit: this rank's share of each row's mean logit.
    """
    words = OtherWords(sums.label_logit, sums.others, sums.entropy, sums.rival)
    if shard.group is not None:
        words, mean_logit = shard.combine_others(words, mean_logit)
    label_logit, others = words.label_logit, words.others
    if not checked:
        label_logit = in_vocabulary(label_logit, labels, shard.size)
    # An infinite logit makes its row NaN, as inf - inf is; without this line p_y would be 1.
    label_logit = label_logit.nan_to_num(nan=math.nan, posinf=math.nan, neginf=-math.inf)
    distance = others - label_logit
    nll, miss = F.softplus(distance, threshold=40.0), distance.sigmoid()
    unit = miss / sums.total.clamp(min=torch.finfo(miss.dtype).tiny)
    if shard.group is not None:
        share = (sums.others - others).exp()  # of this rank among the other words; no share if all are ruled out
        unit = unit * share.masked_fill(others == -math.inf, 0)
    lse = None
    if o.z_loss or o.label_smoothing:  # logaddexp of the two, starting from the larger one: the other may be -inf
        lse = torch.where(distance > 0, others + F.softplus(-distance, threshold=40.0), label_logit + nll)
    token_stats = None
    if words.entropy is not None:
        token_stats = token_stats_of(_entropy(distance, nll, miss, words.entropy), label_logit, words.rival)
    return ExpStats(nll, miss, unit, lse, mean_logit, sums.cap_slope, token_stats)


def _entropy(distance: Tensor, nll: Tensor, miss: Tensor, others: Tensor) -> Tensor:
    """H of the module's docstring. A term whose probability is 0 is 0, even if its logarithm is infinite or NaN."""
    hit = (-nll).exp()
    away = torch.where(miss == 0, 0, miss * (others + F.softplus(-distance, threshold=40.0)))
    return away + torch.where(hit == 0, 0, hit * nll)


class ExpFactors(NamedTuple):
    """The factors that turn E into the gradient; every tensor is [n]."""

    row: Tensor  # v
    label: Tensor  # dZ_y
    const: Tensor | None  # C
    slope: Tensor | None = None  # how many times a row of the call's ref_slope is added to that row of dX


def terms_and_factors(
    stats: ExpStats, rows: RowInputs, o: Objective, shard: VocabShard, dead: Tensor | None
) -> tuple[Tensor, Tensor, ExpFactors]:
    """``(token_ce, token_kl, factors)``; dead: which rows have no weight, whose terms and factors are 0."""
    lse = stats.nll if stats.lse is None else stats.lse
    ce, kl, slope = label_terms(stats.nll, lse, stats.mean_logit, rows, o)
    prob = rows.ce_weight if slope is None else rows.ce_weight - slope
    label = -prob * stats.miss
    if stats.lse is not None:
        more = rows.ce_weight * (2 * o.z_loss * stats.lse)
        prob = prob + more
        label = rows.ce_weight * o.label_smoothing + more - prob * stats.miss
    if stats.cap_slope is not None:
        label = label * stats.cap_slope
    row = prob * stats.unit
    if o.logit_scale != 1.0:
        row, label = row * o.logit_scale, label * o.logit_scale
    const = smoothing_term(rows.ce_weight, o, shard.size)
    if shard.group is not None:
        local = rows.labels - shard.start
        label = label.masked_fill(local.clamp(0, shard.width - 1) != local, 0)
    if dead is not None:
        ce, row, label = (t.masked_fill(dead, 0) for t in (ce, row, label))
    return ce, kl, ExpFactors(row, label, const)


class ExpGradient(NamedTuple):
    """E of some rows, and the factors that turn it into their gradient."""

    exponentials: Tensor  # [c, V] in the dtype of the GEMMs that read it
    factors: ExpFactors
    labels: Tensor  # [c] columns of E; where another rank holds the label, any column, and factors.label is 0
    backend: str  # LossCall.backend

    def multiply(
        self,
        head: Tensor,
        x: Tensor,
        d_x: Tensor | None,
        d_head: Tensor | None,
        *,
        columns: Tensor | None = None,
        first: bool = False,
    ) -> None:
        if columns is not None:
            multiply_columns(self.exponentials, columns, head, self._scaled(x), d_x, d_head)
        elif d_x is not None:
            times_head(self.exponentials, head, d_x)
        if d_x is not None:
            self._finish(d_x, head, d_x)
        if d_head is not None and columns is None:
            self.add_to_head(d_head, x, first=first)
        elif d_head is not None:
            self._add_labels_to_head(d_head, x)

    def entries(self) -> Entries:
        return Entries(self.exponentials, self.factors.row, self.factors.label)

    def finished_hidden(self, product: Tensor, head: Tensor, dtype: torch.dtype) -> Tensor:
        """dX from ``product`` = E W [c, D], rounded once, to ``dtype``."""
        out = torch.empty_like(product, dtype=dtype)
        self._finish(product, head, out)
        return out

    def _finish(self, product: Tensor, head: Tensor, out: Tensor) -> None:
        """Write dX, made from ``product`` = E W, to ``out``, which may be ``product`` itself."""
        row, label, const = self.factors.row, self.factors.label, self.factors.const
        if self.backend == "triton":
            from fastdss.kernels.scaled_rows import launch_hidden_rows_bwd

            launch_hidden_rows_bwd(product, row, head, label, self.labels, const, out)
            return
        d_x = torch.mul(product, row.unsqueeze(1), out=out if out.dtype == product.dtype else None)
        label_rows(d_x, head, label, self.labels, self.backend, scatter=False)
        if const is not None:
            d_x.addr_(const, head.sum(dim=0, dtype=d_x.dtype))
        if d_x is not out:
            out.copy_(d_x)

    def add_to_head(self, d_head: Tensor, x: Tensor, *, first: bool) -> None:
        """``d_head += dZ.T @ x``, with ``first`` ``d_head = dZ.T @ x``; d_head is fp32 or fp64, and so are the sums."""
        add_product(d_head, self.exponentials.t(), self._scaled(x), first=first)
        self._add_labels_to_head(d_head, x)

    def _scaled(self, x: Tensor) -> Tensor:
        """``v * x`` in the dtype of E, which the next product needs."""
        return self._times(x, self.factors.row, self.exponentials.dtype)

    def _times(self, x: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
        """``(x * factor[:, None]).to(dtype)``, multiplied in factor's dtype."""
        if self.backend == "triton":
            from fastdss.kernels.scaled_rows import launch_scaled_rows_bwd

            scaled: Tensor = launch_scaled_rows_bwd(x, factor, dtype)
            return scaled
        return (x.to(factor.dtype) * factor.unsqueeze(1)).to(dtype)

    def _add_labels_to_head(self, d_head: Tensor, x: Tensor) -> None:
        label_rows(d_head, x, self.factors.label, self.labels, self.backend, scatter=True)
        if self.factors.const is not None:
            d_head += self.factors.const @ x.to(d_head.dtype)

    def rounded_head(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """``dZ.T @ x`` [V, D] in 16 bit, rounded once.

        The vendor's product rounds its result. Rows of words that are labels get a second term, and adding it to a
        rounded sum would round twice, so those rows are summed again in fp32.
        """
        scaled = self._scaled(x)
        d_head = torch.mm(self.exponentials.t(), scaled)
        columns, place = _distinct(self.labels)
        label = self.factors.label
        label_sums = label.new_zeros((columns.shape[0], x.shape[1]))
        label_sums.index_add_(0, place, self._times(x, label, label.dtype))
        if columns.device.type != "cpu":
            label_sums = label_sums[torch.searchsorted(columns, columns)]
        for part, sums in zip(columns.split(_LABELS), label_sums.split(_LABELS), strict=True):
            add_product(sums, self.exponentials.index_select(1, part).t(), scaled)
            d_head.index_copy_(0, part, sums.to(dtype))
        return d_head

    def add_bias(self, d_bias: Tensor) -> None:
        for e, v in zip(self.exponentials.split(_LABELS), self.factors.row.split(_LABELS), strict=True):
            d_bias.addmv_(e.t().to(d_bias.dtype), v)
        d_bias.index_add_(0, self.labels, self.factors.label)
        if self.factors.const is not None:
            d_bias += self.factors.const.sum()


def _distinct(labels: Tensor) -> tuple[Tensor, Tensor]:
    """``(columns, place)``: the labels in rising order, and the first place of each label in ``columns``.

    On a CPU each label occurs once in ``columns``. On a GPU it may repeat: the host would have to wait for the number
    of different labels.
    """
    if labels.device.type == "cpu":
        columns, place = torch.unique(labels, return_inverse=True)
        return columns, place
    columns = labels.sort().values
    return columns, torch.searchsorted(columns, labels)
