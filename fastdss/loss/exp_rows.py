"""Makes the exponentials E of rows of hidden states, by a product and a pass over it; decides if backward finds E kept.

E of n rows takes 2 n V bytes in 16 bit, and an fp32 sum of the head's gradient takes 4 D V. If rows are computed in
chunks, the chunks' gradients need such a sum: with E of 2 D rows at a time that is 8 D V bytes. All of E for 4 D rows
takes the same 8 D V bytes, and needs no sum: the head's gradient is then one product with a rounded result, made in
backward, where the upstream gradient is known. So up to 4 D rows E is kept whole; for more rows, chunks are computed in
forward.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from fastdss.upstream.torch import multiplies_bf16

from .call import LossCall
from .exponentials import LocalSums, torch_exponentials
from .gemm import project
from .objective import Objective
from .rows import RowPlan, Slab, budget_of, even_rows, padded
from .vocab_shard import Columns, VocabShard

_WHOLE, _CHUNK = 4, 2  # E is kept whole for up to 4 D rows, else a chunk has 2 D rows: see above
# Bytes of fp32 logits at a time on a CPU where E has memory of its own. 32 to 128 MiB were equally fast.
_BESIDE_EXPONENTIALS = 64 << 20


class ExpPlan(NamedTuple):
    """How many rows of E are made at a time, and in which memory."""

    kept: bool  # whether KeptLoss runs, whose backward finds all rows of E kept (none if the head is frozen)
    rows: int  # rows of E at a time
    slab_rows: int  # rows of fp32 logits at a time
    apart: bool  # E has memory of its own; otherwise it overwrites the logits
    fused: bool = False  # a kernel's product writes E itself, so that there are no logits


def plan_exponentials(call: LossCall, plan: RowPlan, *, head_grad: bool, main_grad: bool, may_keep: bool) -> ExpPlan:
    """Plan the exponentials of the rows of ``plan``. head_grad: the head or its bias needs a gradient. main_grad: that
    gradient is added to a given buffer. may_keep: backward can use what forward kept, as an autograd Function's can.
    """
    on_cpu, half = call.hidden.device.type == "cpu", call.compute_dtype.itemsize == 2
    width, budget = padded(call.lm_head.shape[0]), budget_of(call)
    fused = takes_fused(call)
    row_bytes = width * call.accumulate.itemsize
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
    """Whether all rows of a 16-bit E fit, and the head's gradient may be one product whose result is rounded."""
    if call.chunk_bytes:
        fits = plan.count * width * 2 <= call.chunk_bytes // 2
    else:
        fits = plan.count <= _WHOLE * call.hidden.shape[1]
    if call.hidden.device.type != "cpu":
        return fits  # a GPU's GEMM can also write an fp32 result, which is taken where it must not be rounded
    smoothed = Objective.decode(call.objective).label_smoothing != 0
    exact_sum = main_grad or smoothed or call.lm_head.dtype != call.compute_dtype
    return fits and multiplies_bf16() and not exact_sum


class ExpRows:
    """Makes E for a call's rows, in memory that is reused from one chunk to the next."""

    def __init__(self, call: LossCall, head: Tensor, shard: VocabShard, plan: ExpPlan, *, store: bool) -> None:
        """Allocate the memory. store: whether E itself is needed; otherwise only its sums are."""
        self.call, self.head, self.shard, self.plan, self.store = call, head, shard, plan, store
        self.objective = Objective.decode(call.objective)
        self._slab = Slab(call.hidden, plan.slab_rows, head.shape[0], call.accumulate)
        self._apart = None
        if plan.apart and store:
            width = padded(head.shape[0])
            self._apart = call.hidden.new_empty((plan.rows, width), dtype=head.dtype)[:, : head.shape[0]]
        self._mean_row, self._mean_bias = self._means()

    def make(self, x: Tensor, labels: Columns, sums: LocalSums) -> tuple[Tensor, Tensor | None]:
        """``(E, this rank's share of the mean logits)`` of ``x`` [c, D], with c at most ``plan.rows``; fills ``sums``.

        The mean logits are None without label smoothing.
        """
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

    def _means(self) -> tuple[Tensor | None, Tensor | None]:
        """([D], []): what a row's product with the first gives, and what is added to it, is its mean logit."""
        if not self.objective.label_smoothing:
            return None, None
        scale, dtype, bias = self.objective.logit_scale / self.shard.size, self.call.accumulate, self.call.bias
        return self.head.sum(dim=0, dtype=dtype) * scale, None if bias is None else bias.sum(dtype=dtype) * scale

    def _mean_logit(self, x: Tensor) -> Tensor | None:
        if self._mean_row is None:
            return None
        mean = x.to(self._mean_row.dtype) @ self._mean_row
        return mean if self._mean_bias is None else mean + self._mean_bias
