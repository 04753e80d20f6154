"""A head whose rows are split over the ranks of a process group: this rank's slice, and how ranks combine statistics.

Every rank sees all tokens and its own slice of the vocabulary. The softmax's denominator, the label's logit and the
expectations are sums over the vocabulary. So two reductions over the group, a maximum and a sum, turn each rank's
statistics of its slice into those of the whole vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fastdss.errors import UserError
from fastdss.upstream.torch import group_named

from .objective import Objective, RowStats


class Columns(NamedTuple):
    """Where the labels of rows lie in this rank's slice of the vocabulary."""

    local: Tensor  # [n] label minus the slice's start; outside of the slice if another rank or no rank holds the label
    column: Tensor  # [n] local clamped to the slice; the same object as ``local`` if all labels are known to lie inside

    @property
    def mine(self) -> Tensor | None:
        """[n] bool: whether this rank holds the label; None: it holds all of them."""
        return None if self.column is self.local else self.column == self.local

    def at(self, span: slice) -> Columns:
        local = self.local[span]
        return Columns(local, local if self.column is self.local else self.column[span])


class OtherWords(NamedTuple):
    """Statistics of each row's label and of all other words; every tensor is [n]."""

    label_logit: Tensor  # 0 where another rank holds the label
    others: Tensor  # log-sum-exp of the other words' logits
    entropy: Tensor | None  # entropy of the distribution over the other words alone, where it is asked for
    rival: Tensor | None  # largest logit of the other words, where it is asked for


class VocabShard(NamedTuple):
    """The slice of the vocabulary that this rank's head holds; all ranks hold equally many rows."""

    start: int  # first word of the slice
    width: int  # number of words of the slice
    size: int  # number of words of the whole vocabulary
    group: torch.distributed.ProcessGroup | None
    flaw: Tensor | None  # [] 0, or NaN if the ranks hold unequally many rows; it is added to log-sum-exps

    @staticmethod
    def of(lm_head: Tensor, group_name: str) -> VocabShard:
        """The shard of ``lm_head``.

        If ranks hold unequally many rows it raises ValueError on a CPU. On a GPU the host would have to wait to know,
        so the loss becomes NaN instead.
        """
        width = lm_head.shape[0]
        if not group_name:
            return VocabShard(0, width, width, None, None)
        dist = torch.distributed
        group = group_named(group_name)
        widths = torch.full((2,), width, device=lm_head.device)
        widths[1:].neg_()
        dist.all_reduce(widths, dist.ReduceOp.MAX, group=group)
        most, least = widths[0], -widths[1]
        if lm_head.device.type == "cpu" and most != least:
            raise UserError(f"group: every rank must hold equally many rows of lm_head, got {least} to {most}")
        flaw = torch.zeros((), device=lm_head.device).masked_fill(most != least, math.nan)
        return VocabShard(group.rank() * width, width, group.size() * width, group, flaw)

    def columns_of(self, labels: Tensor, *, checked: bool = False) -> Columns:
        """Where ``labels`` [n] lie in the slice. checked: they are known to lie in the whole vocabulary."""
        if checked and self.group is None:
            return Columns(labels, labels)
        local = labels - self.start if self.start else labels
        return Columns(local, local.clamp(0, self.width - 1))

    def combiner(self, objective: Objective) -> Callable[[RowStats], RowStats] | None:
        """:meth:`combine` for an objective; None if the vocabulary is not split."""
        return None if self.group is None else lambda local: self.combine(local, objective.kl == "reverse")

    def combine(self, local: RowStats, reverse: bool) -> RowStats:
        """Statistics of the whole vocabulary from those of this rank's slice, by a maximum and a sum over the group.

        reverse: ``mean_diff`` is an expectation under p, as in the reverse KL, and not under q.
        """
        dist = torch.distributed
        lses = torch.stack([t for t in (local.lse, local.ref_lse) if t is not None])
        lses = lses if self.flaw is None else lses + self.flaw
        peaks, rival = self._largest(lses, local.rival)
        shares = (lses - peaks).exp()
        drawn_from = shares[0 if reverse else -1]  # the share of this slice in p (reverse) or in q (forward)
        spread = None if local.entropy is None else _spread(local.entropy, shares[0], lses[0] - peaks[0])
        diff = None if local.mean_diff is None else drawn_from * local.mean_diff
        sums = torch.stack([*shares, local.label_logit, *_given(local.mean_logit, diff, spread)])
        dist.all_reduce(sums, group=self.group)
        lse, *ref_lse = peaks + sums[: len(shares)].log()
        label_logit, *rest = sums[len(shares) :]
        entropy = None if spread is None else rest.pop() / sums[0] + sums[0].log()
        mean_diff = None if diff is None else rest.pop() / sums[0 if reverse else 1]
        mean_logit = rest.pop() if rest else None
        return RowStats(lse, label_logit, mean_logit, ref_lse[0] if ref_lse else None, mean_diff, entropy, rival)

    def combine_others(self, local: OtherWords, mean_logit: Tensor | None) -> tuple[OtherWords, Tensor | None]:
        """The same statistics, and the mean logit, of the whole vocabulary, from those of this rank's slice."""
        dist = torch.distributed
        others = local.others if self.flaw is None else local.others + self.flaw
        peaks, rival = self._largest(others.unsqueeze(0), local.rival)
        distance = others - peaks[0].clamp(min=torch.finfo(others.dtype).min)
        share = distance.exp()
        spread = None if local.entropy is None else _spread(local.entropy, share, distance)
        sums = torch.stack([share, local.label_logit, *_given(mean_logit, spread)])
        dist.all_reduce(sums, group=self.group)
        entropy = None if spread is None else sums[-1] / sums[0] + sums[0].log()
        whole = OtherWords(sums[1], peaks[0] + sums[0].log(), entropy, rival)
        return whole, None if mean_logit is None else sums[2]

    def _largest(self, lses: Tensor, rival: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The largest of ``lses`` [k, n] and of ``rival`` [n] over the group, entry by entry."""
        together = lses.clone() if rival is None else torch.cat([lses, rival.unsqueeze(0)])
        torch.distributed.all_reduce(together, torch.distributed.ReduceOp.MAX, group=self.group)
        return together[: lses.shape[0]], None if rival is None else together[-1]


def _spread(entropy: Tensor, share: Tensor, log_share: Tensor) -> Tensor:
    """This slice's term in the sum for the whole entropy, ``H = sum(spread) / sum(share) + log(sum(share))``."""
    return torch.where(share == 0, 0, share * (entropy - log_share))


def _given(*optional: Tensor | None) -> list[Tensor]:
    return [t for t in optional if t is not None]
