"""The objective: the loss of one row (one token), and its gradient for the row's logits.

Derivation. Let ``r`` be the raw logits of a row, ``s`` the logit scale and ``c`` the softcap, so that

    z = s * r                      or, with a softcap,      z = c * tanh(s * r / c)
    p = softmax(z),   lse = logsumexp(z),   y = one-hot label,   logp = z_y - lse

With weights ``a`` (cross-entropy) and ``b`` (KL), label smoothing ``e`` and z-loss ``g`` the row's loss is

    L  = a * CE + b * KL
    CE = (1 - e) * (lse - z_y) + e * (lse - mean(z)) + g * lse^2

    dCE/dz = p * (1 + 2 g lse) - (1 - e) y - e / V                              since d lse / dz = p

KL on the label alone, with ``d = logp - ref_logp`` (http://joschu.net/blog/kl-approx.html) and d d/dz = y - p:

    k1 = d,  k2 = d^2 / 2,  k3 = exp(-d) - 1 + d         k1' = 1,  k2' = d,  k3' = 1 - exp(-d)
    dKL/dz = k'(d) * (y - p)

Two options replace the first term: ``dft`` weighs a label by its own probability, held constant; constrained
fine-tuning bounds the gradient. Either only changes what ``a`` is in the gradient, see :func:`first_weight`:

    dft            a * stop(p_y) * -logp                      a becomes a * p_y
    constrained    a * (2 / beta) * log(1 + exp(-beta d))     a becomes a * 2 * sigmoid(-beta d)

KL over the vocabulary, with q the reference's distribution and ``D = z - z_ref``. In the gradient of the reverse form
the two log-sum-exps cancel, which leaves only D and its mean:

    reverse  KL(p||q) = E_p[D] - lse + ref_lse          dKL/dz = p * (D - E_p[D])
    forward  KL(q||p) = lse - ref_lse - E_q[D]          dKL/dz = p - q

So every gradient has one form, which both row passes (torch's below and the kernel's) write over the logits,

    dz = p * (A + b * (D - E_p[D]) if reverse) - b * q (if forward) + B * y + C
    A = a * (1 + 2 g lse) - b * k'(d) (label forms) + b (forward),   B = b * k'(d) - a * (1 - e),   C = -a * e / V

and dr = dz * s * (1 - (z / c)^2). ``lse`` and the expectations are sums over the vocabulary, so a vocabulary split over
ranks only has to combine them: that is :class:`RowStats`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .softmax import entropy_scratch, softmax_, token_stats_of


class KL(StrEnum):
    """The forms of the KL term: estimators on the label, and the full divergences over the vocabulary."""

    K1 = "k1"  # d = log p(label) - log q(label), p the model's and q the reference's
    K2 = "k2"  # half of d squared, as in the paper
    K3 = "k3"  # exp(-d) - 1 + d
    REVERSE = "reverse"  # KL(p || q), over the vocabulary
    FORWARD = "forward"  # KL(q || p), over the vocabulary

    @property
    def code(self) -> int:
        """The form's number in the kernels, where 0 means no KL term."""
        return list(KL).index(self) + 1


KLName = KL | Literal["k1", "k2", "k3", "reverse", "forward"]
NO_KL = "none"
LABEL_KL = (KL.K1, KL.K2, KL.K3)
FULL_KL = (KL.REVERSE, KL.FORWARD)

# Elements per block of rows in the torch pass: 16 MiB of fp32 mostly stay in the last-level cache between the passes
# over them. Smaller blocks are no faster (512 x 49152 on 2 Zen 4 cores: 24 ms with 4 to 16 rows per block, 40 ms in one
# block). They start more parallel regions, each of which can wait 8 ms to be scheduled if others use the cores.
BLOCK_ELEMENTS = 1 << 22


@dataclass(frozen=True)
class Objective:
    """The options of the loss that are the same for all rows."""

    kl: str = NO_KL  # NO_KL or one of KL
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    logit_scale: float = 1.0
    softcap: float | None = None
    ref_logit_scale: float = 1.0
    ref_softcap: float | None = None
    dft: bool = False

    @property
    def full_kl(self) -> bool:
        return self.kl in FULL_KL

    @property
    def kl_code(self) -> int:
        return 0 if self.kl == NO_KL else KL(self.kl).code

    def encode(self) -> str:
        """The objective as one string, for an op's argument. An f-string, because torch.compile can trace it."""
        policy = f"{_hex(self.label_smoothing)} {_hex(self.z_loss)} {_hex(self.logit_scale)} {_hex(self.softcap)}"
        reference = f"{_hex(self.ref_logit_scale)} {_hex(self.ref_softcap)}"
        return f"{self.kl} {policy} {reference} {1.0 if self.dft else None}"

    @staticmethod
    @lru_cache(maxsize=128)
    def decode(text: str) -> Objective:
        kl, *numbers, dft = text.split()
        values = (None if number == "None" else float.fromhex(number) for number in numbers)
        return Objective(kl, *values, dft=dft != "None")  # type: ignore[arg-type,misc]


def _hex(number: float | None) -> str:
    """All digits of ``number``, in the one notation that torch.compile can trace where the number is symbolic."""
    return "None" if number is None else float(number).hex()


class RowInputs(NamedTuple):
    """What the row pass is given for each row besides its logits; every tensor is [rows]."""

    labels: Tensor  # int64, counted over the whole vocabulary
    ce_weight: Tensor
    kl_weight: Tensor | None
    ref_logprobs: Tensor | None
    csft_beta: Tensor | None = None  # as in LossCall; kernels get the ce_weight that first_weight makes of it

    def at(self, rows: Tensor | slice) -> RowInputs:
        return RowInputs(*(None if t is None else t[rows] for t in self))  # type: ignore[arg-type]


class RowStats(NamedTuple):
    """Sums over the vocabulary for each row: of this rank's slice at first, of all ranks once they are combined."""

    lse: Tensor  # log-sum-exp of the logits
    label_logit: Tensor  # 0 where another rank holds the label
    mean_logit: Tensor | None  # sum of the slice's logits, divided by the size of the whole vocabulary
    ref_lse: Tensor | None  # log-sum-exp of the reference's logits
    mean_diff: Tensor | None  # E[z - z_ref] under p (reverse) or q (forward)
    entropy: Tensor | None = None  # of p, where it is asked for
    rival: Tensor | None = None  # the largest logit but the label's, where it is asked for


class RowCoefficients(NamedTuple):
    """A, B, C and b of the module's docstring, each times the logit scale."""

    prob: Tensor
    label: Tensor
    const: Tensor | None
    kl: Tensor | None


def label_kl(kind: str, d: Tensor) -> tuple[Tensor, Tensor]:
    """``(k(d), k'(d))`` for the label estimators."""
    if kind == "k1":
        return d, torch.ones_like(d)
    if kind == "k2":
        return d * d * 0.5, d
    return torch.expm1(-d) + d, -torch.expm1(-d)


def finish_rows(
    stats: RowStats, rows: RowInputs, objective: Objective, vocab_size: int
) -> tuple[Tensor, Tensor, RowCoefficients]:
    """``(token_ce, token_kl, coefficients)``, all [rows], from the (combined) statistics of the rows.

    A label outside the vocabulary makes its row NaN.
    """
    o, b = objective, rows.kl_weight
    nll = stats.lse - in_vocabulary(stats.label_logit, rows.labels, vocab_size)
    rows = first_weight(nll, rows, o.dft)
    ce, kl, slope = label_terms(nll, stats.lse, stats.mean_logit, rows, o)
    prob = rows.ce_weight * (1 + 2 * o.z_loss * stats.lse)
    label = rows.ce_weight * (o.label_smoothing - 1)
    if slope is not None:
        prob, label = prob - slope, label + slope
    elif b is not None and stats.ref_lse is not None:
        assert stats.mean_diff is not None
        sign = 1 if o.kl == "reverse" else -1
        kl = (sign * (stats.mean_diff + stats.ref_lse - stats.lse)).masked_fill(b == 0, 0)
        prob = prob + b if o.kl == "forward" else prob
    s = o.logit_scale
    scaled = RowCoefficients(
        prob * s,
        label * s,
        smoothing_term(rows.ce_weight, o, vocab_size),
        None if b is None or stats.ref_lse is None else b * s,
    )
    return ce, kl, scaled


def first_weight(nll: Tensor, rows: RowInputs, dft: bool) -> RowInputs:
    """``rows`` with the ``ce_weight`` of the first term's gradient: ``a`` as changed in the module's docstring."""
    if dft:
        return rows._replace(ce_weight=scaled_weight(rows.ce_weight, (-nll).exp()))
    if rows.csft_beta is None:
        return rows
    assert rows.ref_logprobs is not None
    below = rows.csft_beta * (nll + rows.ref_logprobs)
    return rows._replace(ce_weight=scaled_weight(rows.ce_weight, 2 * below.sigmoid()))


def first_part(ce: Tensor, rows: RowInputs, dft: bool) -> Tensor:
    """[n] the first term times its weight. rows: as they were before :func:`first_weight`."""
    if rows.csft_beta is None:
        return scaled_weight(first_weight(ce, rows, dft).ce_weight, ce)
    assert rows.ref_logprobs is not None
    below = rows.csft_beta * (ce + rows.ref_logprobs)
    return scaled_weight(rows.ce_weight, torch.nn.functional.softplus(below) * 2 / rows.csft_beta)


def scaled_weight(weight: Tensor, factor: Tensor) -> Tensor:
    """``weight * factor``, and 0 where the weight is 0, even if the factor is infinite or NaN."""
    return torch.where(weight == 0, 0, weight * factor)


def in_vocabulary(label_logit: Tensor, labels: Tensor, vocab_size: int) -> Tensor:
    """``label_logit``, but NaN where the label is outside the vocabulary: on a device, where no check reads the labels
    because the host would have to wait, the loss becomes NaN."""
    return label_logit.masked_fill(labels.clamp(0, vocab_size - 1) != labels, math.nan)


def label_terms(
    nll: Tensor, lse: Tensor, mean_logit: Tensor | None, rows: RowInputs, objective: Objective
) -> tuple[Tensor, Tensor, Tensor | None]:
    """``(CE, KL, b k')`` for the label forms; ``(CE, 0, None)`` without a KL or with a full one."""
    o, b = objective, rows.kl_weight
    ce = nll
    if o.label_smoothing:
        assert mean_logit is not None
        ce = (1 - o.label_smoothing) * nll + o.label_smoothing * (lse - mean_logit)
    if o.z_loss:
        ce = ce + o.z_loss * lse.square()
    if b is None or o.kl not in LABEL_KL:
        return ce, torch.zeros_like(nll), None
    assert rows.ref_logprobs is not None
    kl, slope = label_kl(o.kl, (-nll - rows.ref_logprobs).masked_fill(b == 0, 0))
    return ce, kl, b * slope


def smoothing_term(ce_weight: Tensor, objective: Objective, vocab_size: int) -> Tensor | None:
    """C of the module's docstring, times the logit scale."""
    e = objective.label_smoothing
    return ce_weight * (-e / vocab_size * objective.logit_scale) if e else None


def torch_row_pass(
    logits: Tensor,
    ref_logits: Tensor | None,
    rows: RowInputs,
    objective: Objective,
    *,
    bias: Tensor | None,
    ref_bias: Tensor | None,
    vocab_start: int,
    vocab_size: int,
    combine: Callable[[RowStats], RowStats] | None,
    grad: bool,
    token_stats: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The row pass in plain torch: returns ``(token_ce, token_kl)``, each [c], and writes the gradient over ``logits``.

    logits: [c, V] raw logits in fp32 or fp64. ref_logits: [c, V], overwritten as well. combine: joins the statistics of
    ranks that split the vocabulary, for all rows at once; without it blocks of rows run one after the other, so that
    they stay in cache. grad: whether the gradient is needed. token_stats: [2, c], filled if given.
    """
    count, width = logits.shape
    step = max(1, count if combine else BLOCK_ELEMENTS // width)
    token_ce, token_kl = logits.new_empty(count), logits.new_empty(count)
    block_shape = (min(step, count), width)
    scratch = None if ref_logits is None else logits.new_empty(block_shape)
    below = None if token_stats is None else entropy_scratch(logits, block_shape[0])
    finite = bias is None and ref_bias is None  # only a bias of -inf gives a token a probability of exactly 0
    for start in range(0, count, step):
        block = slice(start, start + step)
        part = rows.at(block)
        z, jacobian = transform(logits[block], bias, objective.logit_scale, objective.softcap, grad)
        z_ref = None
        if ref_logits is not None:
            z_ref, _ = transform(
                ref_logits[block], ref_bias, objective.ref_logit_scale, objective.ref_softcap, grad=False
            )
        local, sums, other = _local_stats(z, z_ref, scratch, below, part, vocab_start, objective, vocab_size, finite)
        stats = combine(local) if combine else local
        token_ce[block], token_kl[block], coefficients = finish_rows(stats, part, objective, vocab_size)
        if token_stats is not None:
            token_stats[:, block] = token_stats_of(stats.entropy, stats.label_logit, stats.rival)
        if grad:
            _write_gradient(z, other, part.labels - vocab_start, local, sums, stats, coefficients, objective)
            if jacobian is not None:
                z.mul_(jacobian)
    return token_ce, token_kl


def transform(
    z: Tensor, bias: Tensor | None, scale: float, softcap: float | None, grad: bool
) -> tuple[Tensor, Tensor | None]:
    """``(logits, slope)``: raw logits turned into logits, in place, and the softcap's derivative (None without one)."""
    if bias is not None:
        z.add_(bias)
    if softcap is None:
        return (z if scale == 1.0 else z.mul_(scale)), None
    z.mul_(scale / softcap).tanh_()
    jacobian = (1 - z.square()) if grad else None
    return z.mul_(softcap), jacobian


class _SliceSums(NamedTuple):
    """The factors, about 1, by which the stored softmaxes of a slice are too large: see :func:`softmax_`."""

    p: Tensor
    q: Tensor | None


def _local_stats(
    z: Tensor,
    z_ref: Tensor | None,
    scratch: Tensor | None,
    below: Tensor | None,
    rows: RowInputs,
    vocab_start: int,
    objective: Objective,
    vocab_size: int,
    finite: bool,
) -> tuple[RowStats, _SliceSums, Tensor | None]:
    """Statistics of one vocabulary slice, and z - z_ref (reverse) or q (forward). ``z`` becomes p.

    ``z_ref``, ``scratch`` (at least as large) and ``below`` (given if entropies are wanted) are overwritten: allocating
    fresh memory for each block would cost more than the arithmetic. finite: no logit is -inf.
    """
    local_labels = rows.labels - vocab_start
    mine = (local_labels >= 0) & (local_labels < z.shape[1])
    column = torch.where(mine, local_labels, 0).unsqueeze(1)
    label_logit = z.gather(1, column).squeeze(1).masked_fill(~mine, 0)
    mean_logit = z.sum(dim=1) / vocab_size if objective.label_smoothing else None
    rival = None if below is None else _largest_but(z, column, mine)
    if z_ref is None or scratch is None:
        p = softmax_(z, below)
        return RowStats(p.lse, label_logit, mean_logit, None, None, p.entropy, rival), _SliceSums(p.total, None), None
    reverse = objective.kl == "reverse"
    diff = torch.sub(z, z_ref, out=scratch[: z.shape[0]])
    if not finite:
        silent = (z if reverse else z_ref) == -math.inf  # a token of probability 0 (bias -inf) adds nothing to the KL
        if rows.kl_weight is not None:
            silent |= (rows.kl_weight == 0).unsqueeze(1)  # a row without a weight may have an infinite KL
        diff.masked_fill_(silent, 0)
    q, p = softmax_(z_ref), softmax_(z, below)
    if reverse:
        mean_diff, other = torch.mul(z, diff, out=z_ref).sum(dim=1) / p.total, diff
    else:
        mean_diff, other = torch.mul(z_ref, diff, out=diff).sum(dim=1) / q.total, z_ref
    stats = RowStats(p.lse, label_logit, mean_logit, q.lse, mean_diff, p.entropy, rival)
    return stats, _SliceSums(p.total, q.total), other


def _largest_but(z: Tensor, column: Tensor, mine: Tensor) -> Tensor:
    """[n] the largest entry of each row; where ``mine``, its entry at ``column`` is left out."""
    there = z.gather(1, column)
    z.scatter_(1, column, there.masked_fill(mine.unsqueeze(1), -math.inf))
    rival = z.amax(dim=1)
    z.scatter_(1, column, there)
    return rival


def _write_gradient(
    p: Tensor,
    other: Tensor | None,
    local_labels: Tensor,
    local: RowStats,
    sums: _SliceSums,
    stats: RowStats,
    coefficients: RowCoefficients,
    objective: Objective,
) -> None:
    """Overwrite ``p`` with dz. other: from :func:`_local_stats`, and overwritten."""
    share = (local.lse - stats.lse).exp() / sums.p  # scales the slice's softmax to the whole vocabulary's
    if other is not None and objective.kl == "reverse":
        assert coefficients.kl is not None
        assert stats.mean_diff is not None
        kl = coefficients.kl * share
        level = coefficients.prob * share - kl * stats.mean_diff
        p.mul_(other.mul_(kl.unsqueeze(1)).add_(level.unsqueeze(1)))
    else:
        p.mul_((coefficients.prob * share).unsqueeze(1))
    if other is not None and objective.kl == "forward":
        assert coefficients.kl is not None
        assert local.ref_lse is not None
        assert stats.ref_lse is not None
        assert sums.q is not None
        ref_share = (local.ref_lse - stats.ref_lse).exp() / sums.q
        p.sub_(other.mul_((coefficients.kl * ref_share).unsqueeze(1)))
    if coefficients.const is not None:
        p.add_(coefficients.const.unsqueeze(1))
    mine = (local_labels >= 0) & (local_labels < p.shape[1])
    column = torch.where(mine, local_labels, 0).unsqueeze(1)
    p.scatter_add_(1, column, torch.where(mine, coefficients.label, 0).unsqueeze(1))
