"""From rows of hidden states to their exponentials: one product, one pass; and whether E is kept until backward.

E in 16 bit of n rows takes 2 n V bytes, an fp32 sum of the head's gradient 4 D V. Chunks of 2 D rows with such a sum
take 8 D V together, and so does E of 4 D rows, whole, which needs no sum: the gradient is then one product with a
rounded result, in backward, where the upstream gradient is known. Beyond 4 D rows there are chunks, in forward.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastdss.upstream.torch import multiplies_bf16

from .call import LossCall
from .exponentials import LocalSums, torch_exponentials
from .gemm import project
from .objective import Objective
from .rows import RowPlan, Slab, budget_of, even_rows, padded
from .vocab_shard import Columns, VocabShard

_WHOLE, _CHUNK = 4, 2  # rows of E over D: kept whole up to here, and of a chunk beyond
_BESIDE_EXPONENTIALS = 64 << 20  # bytes of fp32 logits on a CPU where E is stored apart; 32 to 128 MiB are as fast


class ExpPlan(NamedTuple):
    """How many rows of E there are at a time, and where they lie."""

    kept: bool  # until backward: all rows of E, or, where the head is frozen, none
    rows: int  # of E
    slab_rows: int  # of fp32 logits; E lies over them where it is not apart
    apart: bool
    fused: bool = False  # there are no logits: the product writes E itself

    def dtype(self, call: LossCall, accumulate: torch.dtype) -> torch.dtype:
        return call.compute_dtype if self.apart else accumulate


def plan_exponentials(
    call: LossCall, plan: RowPlan, accumulate: torch.dtype, *, head_grad: bool, main_grad: bool, may_keep: bool
) -> ExpPlan:
    """may_keep: there will be a backward that finds what is kept, or none at all."""
    on_cpu, half = call.hidden.device.type == "cpu", call.compute_dtype.itemsize == 2
    width, budget = padded(call.lm_head.shape[0]), budget_of(call)
    fused = takes_fused(call)
    row_bytes = width * accumulate.itemsize
    if may_keep and half and head_grad and _keeps_half(call, plan, width, main_grad):
        beside = _BESIDE_EXPONENTIALS if on_cpu else budget
        beside = call.chunk_bytes - plan.count * width * 2 if call.chunk_bytes else beside
        return ExpPlan(True, plan.count, 0 if fused else even_rows(plan, beside // row_bytes), True, fused)
    apart = fused or (half and not on_cpu)
    if apart and half and head_grad and not call.chunk_bytes:
        slab_rows = 0 if fused else even_rows(plan, budget // row_bytes)
        return ExpPlan(False, even_rows(plan, _CHUNK * call.hidden.shape[1]), slab_rows, apart, fused)
    stored = width * call.compute_dtype.itemsize if apart else 0
    rows = even_rows(plan, budget // (stored if fused else row_bytes + stored))
    kept = may_keep and (not head_grad or (not half and rows >= plan.count))
    return ExpPlan(kept, rows, 0 if fused else rows, apart, fused)


def takes_fused(call: LossCall) -> bool:
    """Whether the kernel of kernels/head_exponentials.py multiplies rows and head."""
    if call.backend != "triton" or call.product == "vendor":
        return False
    from fastdss.kernels.head_exponentials import takes

    asked, bias = call.product == "fused", call.bias is not None
    found: bool = takes(call.lm_head, call.compute_dtype, asked=asked, bias=bias)
    return found


def _keeps_half(call: LossCall, plan: RowPlan, width: int, main_grad: bool) -> bool:
    """Whether all of E fits, and a product with a rounded result will do."""
    if call.chunk_bytes:
        fits = plan.count * width * 2 <= call.chunk_bytes // 2
    else:
        fits = plan.count <= _WHOLE * call.hidden.shape[1]
    if call.hidden.device.type != "cpu":
        return fits  # its products have wide results where they must not be rounded
    smoothed = Objective.decode(call.objective).label_smoothing != 0
    exact_sum = main_grad or smoothed or call.lm_head.dtype != call.compute_dtype
    return fits and multiplies_bf16() and not exact_sum


class ExpRows:
    """Makes E of rows of a call, in memory that it holds."""

    def __init__(
        self, call: LossCall, head: Tensor, shard: VocabShard, plan: ExpPlan, accumulate: torch.dtype, *, store: bool
    ) -> None:
        """store: E is needed, not only its sums."""
        self.call, self.head, self.shard, self.plan, self.store = call, head, shard, plan, store
        self.objective = Objective.decode(call.objective)
        self._slab = Slab(call.hidden, plan.slab_rows, head.shape[0], accumulate)
        self._apart = None
        if plan.apart and store:
            width = padded(head.shape[0])
            self._apart = call.hidden.new_empty((plan.rows, width), dtype=head.dtype)[:, : head.shape[0]]
        self._mean_row, self._mean_bias = self._means(accumulate)

    def make(self, x: Tensor, labels: Columns, sums: LocalSums) -> tuple[Tensor, Tensor | None]:
        """``(E, this rank's share of the mean logits)`` of ``x`` [c, D], c no more than planned; fills ``sums``."""
        count = x.shape[0]
        exponentials = self._slab.logits(count) if self._apart is None else self._apart[:count]
        if self.plan.fused:
            self._fused(x, labels.local, sums, None if self._apart is None else exponentials)
            return exponentials, self._mean_logit(x)
        if count <= self.plan.slab_rows:
            logits = self._slab.logits(count)
            project(x, self.head, out=logits)
            self._pass(logits, labels, sums, None if self._apart is None else exponentials)
            return exponentials, self._mean_logit(x)
        for start in range(0, count, self.plan.slab_rows):
            part = slice(start, min(start + self.plan.slab_rows, count))
            logits = self._slab.logits(part.stop - part.start)
            project(x[part], self.head, out=logits)
            out = None if self._apart is None else exponentials[part]
            self._pass(logits, labels.at(part), sums.at(part), out)
        return exponentials, self._mean_logit(x)

    def _fused(self, x: Tensor, local_labels: Tensor, sums: LocalSums, out: Tensor | None) -> None:
        from fastdss.kernels.head_exponentials import launch_head_exponentials_fwd

        o, bias = self.objective, self.call.bias
        launch_head_exponentials_fwd(
            x, self.head, out, local_labels, *sums, bias=bias, scale=o.logit_scale, softcap=o.softcap
        )

    def _pass(self, logits: Tensor, labels: Columns, sums: LocalSums, out: Tensor | None) -> None:
        o = self.objective
        if self.call.backend == "triton":
            from fastdss.kernels.exponentials import launch_exponentials_fwd

            given = out if out is not None or not self.store else logits
            launch_exponentials_fwd(
                logits, given, labels.local, *sums, bias=self.call.bias, scale=o.logit_scale, softcap=o.softcap
            )
        else:
            torch_exponentials(logits, labels, o, self.call.bias, sums, out)

    def _means(self, accumulate: torch.dtype) -> tuple[Tensor | None, Tensor | None]:
        if not self.objective.label_smoothing:
            return None, None
        scale = self.objective.logit_scale / self.shard.size
        bias = self.call.bias
        return self.head.sum(dim=0, dtype=accumulate) * scale, None if bias is None else bias.to(
            accumulate
        ).sum() * scale

    def _mean_logit(self, x: Tensor) -> Tensor | None:
        if self._mean_row is None:
            return None
        mean = x.to(self._mean_row.dtype) @ self._mean_row
        return mean if self._mean_bias is None else mean + self._mean_bias
