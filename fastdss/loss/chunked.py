"""The chunk driver: computes the logits of a few rows at a time in one reused slab, and the gradients from them.

For every chunk of rows it computes ``slab = x @ W^T`` by the vendor's GEMM, makes a pass over the slab, and computes
``dX`` and ``dW`` by two products. The pass leaves exponentials where the gradient follows from them by a number per row
(exponentials.py). Otherwise it leaves dZ (the row pass of objective.py: the full KL, fp16, label smoothing with a
softcap). Logits and sums are fp32 (fp64 for fp64 inputs) whatever the dtype of the parameters: values per token are not
rounded to 16 bit, and the rounding of dW does not depend on the chunk size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .call import LossCall, LossResult
from .column_filter import ColumnFilter
from .exp_rows import ExpRows, plan_exponentials
from .exponentials import ExpGradient, LocalSums, takes_exponentials
from .gemm import project
from .objective import Objective, RowInputs, RowStats, finish_rows, torch_row_pass
from .row_gradient import Gradient, RowGradient
from .row_terms import row_terms
from .rows import Slab, chunk_rows, gather, plan_rows, row_inputs, without_weight
from .softmax import token_stats_of
from .vocab_shard import VocabShard


def run_chunks(
    call: LossCall, *, hidden_grad: bool, head_grad: bool, bias_grad: bool, main_grad: Tensor | None = None
) -> LossResult:
    """The terms of each token, and the gradients that are asked for.

    The gradients are those of ``sum(ce_weight * token_ce + kl_weight * token_kl)``.

    main_grad: [V, D] in the accumulation dtype, to which the head's gradient is added instead of to zeros.
    """
    with torch.no_grad(), torch.autocast(call.hidden.device.type, enabled=False):
        run = _Run(call, hidden_grad, head_grad, bias_grad, main_grad)
        if takes_exponentials(call, run.objective):
            run.exponentials()
        else:
            run.row_pass()
        return run.result()


class _Run:
    """One call: the tensors that all its chunks share, and the results that they are added to."""

    def __init__(
        self, call: LossCall, hidden_grad: bool, head_grad: bool, bias_grad: bool, main_grad: Tensor | None
    ) -> None:
        self.call, self.objective = call, Objective.decode(call.objective)
        self.accumulate = call.accumulate
        self.shard = VocabShard.of(call.lm_head, call.group)
        self.plan = plan_rows(call, self.objective.full_kl)
        self.grad, self.given = hidden_grad or head_grad or bias_grad, main_grad
        self.filtered = ColumnFilter.of(call) if hidden_grad or head_grad else None
        new = call.hidden.new_zeros if self.plan.count == 0 or self.plan.index is not None else call.hidden.new_empty
        self.d_hidden = new(call.hidden.shape, dtype=self.accumulate) if hidden_grad else None
        fills = self.plan.count > 0 and self.filtered is None  # then the first chunk overwrites all of d_head
        new = call.hidden.new_empty if fills else call.hidden.new_zeros
        self.d_head = new(call.lm_head.shape, dtype=self.accumulate) if head_grad and main_grad is None else main_grad
        self.d_bias = call.hidden.new_zeros(call.lm_head.shape[0], dtype=self.accumulate) if bias_grad else None
        self.token_ce, self.token_kl = (
            call.hidden.new_zeros(call.labels.shape, dtype=self.accumulate) for _ in range(2)
        )
        self.token_stats = (
            call.hidden.new_zeros((2, *call.labels.shape), dtype=self.accumulate) if call.token_stats else None
        )
        self.head = call.lm_head.to(call.compute_dtype)
        self.vectors = row_inputs(call, self.plan)  # gathered once; chunks take slices of it

    def exponentials(self) -> None:
        """Run all chunks by way of exponentials."""
        plan = plan_exponentials(
            self.call, self.plan, head_grad=self.d_head is not None, main_grad=False, may_keep=False
        )
        made = ExpRows(self.call, self.head, self.shard, plan, store=self.grad)
        sums = LocalSums.empty(
            self.call.hidden, min(plan.rows, self.plan.count), self.accumulate, self.objective, self.call.token_stats
        )
        for span, rows, _ in self.plan.chunks(plan.rows):
            inputs = self.vectors.at(span)
            dead = None if self.plan.trusted else without_weight(inputs)
            x = gather(self.call.hidden, rows, dead, self.call.compute_dtype)
            part = sums.at(slice(0, x.shape[0]))
            labels = self.shard.columns_of(inputs.labels)
            e, mean_logit = made.make(x, labels, part)
            terms = row_terms(part, mean_logit, inputs, self.objective, self.shard, dead, self.call.backend)
            self._put(rows, terms.ce, terms.kl, terms.token_stats)
            if self.grad:
                self._add(ExpGradient(e, terms.factors, labels.column, self.call.backend), x, rows, span.start == 0)

    def row_pass(self) -> None:
        """Run all chunks by way of dZ."""
        call = self.call
        size = chunk_rows(call, self.plan, self.objective.full_kl)
        slab = Slab(call.hidden, size, self.head.shape[0], self.accumulate)
        ref_slab = Slab(call.hidden, min(size, self.plan.kl_rows), self.head.shape[0], self.accumulate)
        for span, rows, with_ref in self.plan.chunks(size):
            inputs = self.vectors.at(span)
            dead = None if self.plan.trusted else without_weight(inputs)
            x = gather(call.hidden, rows, dead, call.compute_dtype)
            project(x, self.head, out=slab.logits(x.shape[0]))
            ref = ref_slab.logits(with_ref)
            if with_ref:
                assert call.ref_lm_head is not None
                project(self._ref_rows(rows, span, with_ref, inputs), call.ref_lm_head, out=ref)
            token_stats = None if self.token_stats is None else ref.new_empty((2, x.shape[0]))
            gradient, ce, kl = _pass_rows(
                call, self.objective, self.shard, slab, x.shape[0], ref, inputs, self.grad, token_stats
            )
            if dead is not None:
                ce = ce.masked_fill(dead, 0)
                token_stats = None if token_stats is None else token_stats.masked_fill(dead, 0)
            self._put(rows, ce, kl, token_stats)
            if self.grad:
                self._add(gradient, x, rows, span.start == 0)

    def _ref_rows(self, rows: Tensor | slice, span: slice, with_ref: int, inputs: RowInputs) -> Tensor:
        assert self.call.ref_hidden is not None
        assert inputs.kl_weight is not None
        unused = None if self.plan.trusted else inputs.kl_weight[:with_ref] == 0
        ref_rows = rows[:with_ref] if isinstance(rows, Tensor) else slice(span.start, span.start + with_ref)
        return gather(self.call.ref_hidden, ref_rows, unused, self.call.ref_hidden.dtype)

    def _put(self, rows: Tensor | slice, ce: Tensor, kl: Tensor, token_stats: Tensor | None) -> None:
        self.token_ce[rows] = ce
        self.token_kl[rows] = kl
        if self.token_stats is not None and token_stats is not None:
            self.token_stats[:, rows] = token_stats

    def _add(self, gradient: Gradient, x: Tensor, rows: Tensor | slice, first: bool) -> None:
        d_x = None if self.d_hidden is None else _rows_to_fill(self.d_hidden, rows)
        columns = None if self.filtered is None else self.filtered.keep(gradient.entries(), x, rows)
        first = first and self.filtered is None and self.given is None
        gradient.multiply(self.head, x, d_x, self.d_head, columns=columns, first=first)
        if self.d_hidden is not None and d_x is not None and isinstance(rows, Tensor):
            self.d_hidden.index_copy_(0, rows, d_x)
        if self.d_bias is not None:
            gradient.add_bias(self.d_bias)

    def result(self) -> LossResult:
        if self.filtered is not None:
            self.filtered.put_back(self.head, self.d_hidden, self.d_head)
        if self.d_hidden is not None and self.shard.group is not None:
            torch.distributed.all_reduce(self.d_hidden, group=self.shard.group)
        if self.d_hidden is not None and self.call.ref_slope is not None:
            assert self.call.kl_weight is not None
            self.d_hidden.addcmul_(self.call.ref_slope.to(self.accumulate), self.call.kl_weight.unsqueeze(1))
        return LossResult(self.token_ce, self.token_kl, self.d_hidden, self.d_head, self.d_bias, self.token_stats)


def _gradient_dtype(call: LossCall, accumulate: torch.dtype) -> torch.dtype:
    """The dtype of dZ. A GPU multiplies 16-bit dZ into fp32 sums; a CPU has no such GEMM, so dZ stays wide there."""
    return accumulate if call.hidden.device.type == "cpu" else call.compute_dtype


def _rows_to_fill(d_hidden: Tensor, rows: Tensor | slice) -> Tensor:
    return d_hidden[rows] if isinstance(rows, slice) else d_hidden.new_empty((rows.shape[0], d_hidden.shape[1]))


def _pass_rows(
    call: LossCall,
    objective: Objective,
    shard: VocabShard,
    slab: Slab,
    count: int,
    ref: Tensor,
    inputs: RowInputs,
    grad: bool,
    token_stats: Tensor | None,
) -> tuple[RowGradient, Tensor, Tensor]:
    """The row pass over one chunk: ``(gradient, token_ce, token_kl)``.

    ref: logits of the reference for the chunk's first rows; the others have no KL weight. token_stats: [2, c], filled
    like LossResult.token_stats.
    """
    logits, with_ref = slab.logits(count), ref.shape[0]
    dtype = _gradient_dtype(call, logits.dtype)
    out = logits if dtype == logits.dtype else slab.narrow(count, dtype) if call.backend == "triton" else None
    parts = []
    for part, ref_logits in ((slice(0, with_ref), ref), (slice(with_ref, count), None)):
        if part.start == part.stop:
            continue
        rows, stats_here = inputs.at(part), None if token_stats is None else token_stats[:, part]
        if call.backend == "triton":
            assert out is not None
            given = logits[part], ref_logits, out[part], rows, grad, stats_here
            parts.append(triton_row_pass(call, objective, shard, *given))
        else:
            terms = torch_row_pass(
                logits[part],
                ref_logits,
                rows,
                objective,
                bias=call.bias,
                ref_bias=call.ref_bias,
                vocab_start=shard.start,
                vocab_size=shard.size,
                combine=shard.combiner(objective),
                grad=grad,
                token_stats=stats_here,
            )
            parts.append((*terms, terms[0]))  # where the kernel returns ``lost``: a placeholder, never read
    ce, kl, lost = parts[0] if len(parts) == 1 else (torch.cat(pair) for pair in zip(*parts, strict=True))
    labels = shard.columns_of(inputs.labels)
    if out is None:
        out = logits.to(dtype)
        exact, rounded = (t.gather(1, labels.column.unsqueeze(1)).squeeze(1) for t in (logits, out))
        inside = labels.mine
        assert inside is not None
        lost = torch.where(inside, exact - rounded, 0)
    return RowGradient(out, None if dtype == logits.dtype else lost, labels.column, call.backend), ce, kl


def triton_row_pass(
    call: LossCall,
    objective: Objective,
    shard: VocabShard,
    logits: Tensor,
    ref_logits: Tensor | None,
    out: Tensor,
    rows: RowInputs,
    grad: bool,
    token_stats: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """``(token_ce, token_kl, lost)`` by the kernels; lost is as in :class:`RowGradient`.

    One kernel does it all, unless ranks split the vocabulary: then two, between which the ranks combine statistics.
    """
    from fastdss.kernels import row_pass as kernels

    o = objective
    common = {
        "bias": call.bias,
        "ref_bias": None if ref_logits is None else call.ref_bias,
        "kl_code": o.kl_code,
        "scales": (o.logit_scale, o.softcap, o.ref_logit_scale, o.ref_softcap),
    }
    combine = shard.combiner(o)
    if combine is None:
        smooth = {"label_smoothing": o.label_smoothing, "z_loss": o.z_loss}
        given = logits, ref_logits, out, rows.labels, rows.ce_weight, rows.kl_weight, rows.ref_logprobs
        ce, kl, lost = kernels.launch_row_pass_fwd(
            *given, dft=o.dft, grad=grad, token_stats=token_stats, **smooth, **common
        )
        return ce, kl, lost
    with_mean = bool(o.label_smoothing)
    lse, label_logit, logit_sum, ref_lse, mean_diff, *more = kernels.launch_row_stats_fwd(
        logits, ref_logits, rows.labels, vocab_start=shard.start, with_mean=with_mean,
        token_stats=token_stats is not None, **common,
    )  # fmt: skip
    has_ref = ref_logits is not None
    local = RowStats(
        lse,
        label_logit,
        logit_sum / shard.size if with_mean else None,
        ref_lse if has_ref else None,
        mean_diff if has_ref else None,
        *more,
    )
    stats = combine(local)
    if token_stats is not None:
        token_stats.copy_(token_stats_of(stats.entropy, stats.label_logit, stats.rival))
    ce, kl, coefficients = finish_rows(stats, rows, o, shard.size)
    if not grad:
        return ce, kl, torch.zeros_like(ce)
    factors = (stats.lse, stats.ref_lse, stats.mean_diff, *coefficients)
    stacked = torch.stack([torch.zeros_like(ce) if t is None else t for t in factors])
    lost = kernels.launch_row_gradient_bwd(
        logits, ref_logits, out, rows.labels, stacked, vocab_start=shard.start, **common
    )
    return ce, kl, lost
