"""The chunk driver: logits of a few rows at a time in one reused slab, turned into gradients where they lie.

For every chunk of rows: ``slab = x @ W^T`` by the vendor's GEMM; one row pass that returns the per-token terms and
overwrites the slab with dZ; ``dX = dZ @ W``; ``dW += dZ^T @ x``. Logits and sums are fp32 (fp64 for fp64 inputs)
whatever the parameters' dtype: per-token values stay exact, and dW does not depend on the chunk size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .call import LossCall, LossResult
from .column_filter import ColumnFilter
from .gemm import project
from .objective import Objective, RowInputs, RowStats, finish_rows, torch_row_pass
from .row_gradient import RowGradient
from .vocab_shard import VocabShard

# Slab sizes; on a GPU of each slab, as the rows matter: dW is read and written once per chunk. 1 GiB is 2048 rows of a
# 128k vocabulary, where that GEMM runs at 600 TFLOP/s on an H100, as at 8192 rows; at 1024 rows it is 407. A CPU
# re-reads dW, and upcasts a 16-bit head, per chunk, and pays for every fresh page of the slab: 1024 rows of a 48k
# vocabulary take equally long with 48 to 256 MiB (Zen 4).
DEFAULT_CHUNK_BYTES = {"cpu": 128 << 20}
_DEVICE_CHUNK_BYTES = 1 << 30
_ROW_ALIGNMENT = 128  # chunk rows, where the budget allows: a GEMM tile
_COLUMN_ALIGNMENT = 32  # slab row stride in elements: 128 bytes of fp32


@dataclass(frozen=True)
class RowPlan:
    """Which rows are computed, in which order: the first ``kl_rows`` also need the reference's logits."""

    index: Tensor | None  # None: all rows as they are
    count: int
    kl_rows: int
    trusted: bool  # every planned row is known to have a weight

    def chunks(self, size: int) -> Iterator[tuple[slice, Tensor | slice, int]]:
        """(position in the plan, rows of the inputs, how many of them need the reference)"""
        for start in range(0, self.count, size):
            span = slice(start, min(start + size, self.count))
            rows = span if self.index is None else self.index[span]
            yield span, rows, min(max(self.kl_rows - start, 0), span.stop - start)


def plan_rows(call: LossCall, full_kl: bool) -> RowPlan:
    """Leave out rows without any weight. Without ``rows`` or ``compact=False`` the host waits for two counts."""
    total = call.labels.shape[0]
    if call.rows is not None:
        index, trusted = call.rows, False
        kl_rows = len(index) if call.kl_rows < 0 else call.kl_rows
    elif not call.compact:
        return RowPlan(None, total, total if full_kl else 0, False)
    else:
        (index, kl_rows), trusted = order_rows(call.ce_weight, call.kl_weight), True
    count = index.shape[0]
    whole = count == total and (not full_kl or kl_rows in (0, total))
    return RowPlan(None if whole else index, count, kl_rows if full_kl else 0, trusted)


def order_rows(ce_weight: Tensor, kl_weight: Tensor | None) -> tuple[Tensor, int]:
    """Rows with a KL weight, then the others with a cross-entropy weight; and the number of the former."""
    has_kl = torch.zeros_like(ce_weight, dtype=torch.bool) if kl_weight is None else kl_weight != 0
    live = has_kl | (ce_weight != 0)
    order = torch.argsort(torch.where(has_kl, 0, torch.where(live, 1, 2)), stable=True)
    kl_rows, count = torch.stack([has_kl.sum(), live.sum()]).tolist()
    return order[:count], kl_rows


def run_chunks(
    call: LossCall, *, hidden_grad: bool, head_grad: bool, bias_grad: bool, main_grad: Tensor | None = None
) -> LossResult:
    """Per-token terms, and the gradients asked for of ``sum(ce_weight * token_ce + kl_weight * token_kl)``.

    main_grad: [V, D] in the accumulation dtype, to which the head's gradient is added instead of to zeros.
    """
    with torch.no_grad(), torch.autocast(call.hidden.device.type, enabled=False):
        return _run_chunks(call, hidden_grad, head_grad, bias_grad, main_grad)


def _run_chunks(
    call: LossCall, hidden_grad: bool, head_grad: bool, bias_grad: bool, main_grad: Tensor | None
) -> LossResult:
    objective = Objective.decode(call.objective)
    accumulate = torch.float64 if call.compute_dtype == torch.float64 else torch.float32
    shard = VocabShard.of(call.lm_head, call.group)
    plan = plan_rows(call, objective.full_kl)
    new = call.hidden.new_zeros if plan.count == 0 or plan.index is not None else call.hidden.new_empty
    d_hidden = new(call.hidden.shape, dtype=accumulate) if hidden_grad else None
    filtered = ColumnFilter.of(call) if hidden_grad or head_grad else None
    fills = plan.count > 0 and filtered is None  # the first chunk does
    new_head = call.hidden.new_empty if fills else call.hidden.new_zeros
    d_head = new_head(call.lm_head.shape, dtype=accumulate) if head_grad and main_grad is None else main_grad
    d_bias = call.hidden.new_zeros(call.lm_head.shape[0], dtype=accumulate) if bias_grad else None
    token_ce, token_kl = (call.hidden.new_zeros(call.labels.shape, dtype=accumulate) for _ in range(2))
    head = call.lm_head.to(call.compute_dtype)
    size = chunk_rows(call, plan, accumulate, objective.full_kl)
    slab = _slab(call.hidden, size, head.shape[0], accumulate)
    ref_slab = _slab(call.hidden, min(size, plan.kl_rows), head.shape[0], accumulate)
    vectors = RowInputs(call.labels, call.ce_weight, call.kl_weight, call.ref_logprobs)
    vectors = vectors if plan.index is None else vectors.at(plan.index)  # once, then slices
    for span, rows, with_ref in plan.chunks(size):
        inputs = vectors.at(span)
        dead = None if plan.trusted else _without_weight(inputs)
        x = _gather(call.hidden, rows, dead, call.compute_dtype)
        logits = slab[: span.stop - span.start]
        project(x, head, out=logits)
        if with_ref:
            assert call.ref_hidden is not None
            assert call.ref_lm_head is not None
            assert inputs.kl_weight is not None
            unused = None if plan.trusted else inputs.kl_weight[:with_ref] == 0
            ref_rows = rows[:with_ref] if isinstance(rows, Tensor) else slice(span.start, span.start + with_ref)
            x_ref = _gather(call.ref_hidden, ref_rows, unused, call.ref_hidden.dtype)
            project(x_ref, call.ref_lm_head, out=ref_slab[:with_ref])
        grad = hidden_grad or head_grad or bias_grad
        gradient, ce, kl = _pass_rows(call, objective, shard, logits, ref_slab[:with_ref], inputs, grad)
        token_ce[rows] = ce if dead is None else ce.masked_fill(dead, 0)
        token_kl[rows] = kl
        d_x = None if d_hidden is None else _rows_to_fill(d_hidden, rows)
        columns = None if filtered is None else filtered.keep(gradient.dz, x, rows)
        first = filtered is None and main_grad is None and span.start == 0
        gradient.multiply(head, x, d_x, d_head, columns=columns, first=first)
        if d_hidden is not None and d_x is not None and isinstance(rows, Tensor):
            d_hidden.index_copy_(0, rows, d_x)
        if d_bias is not None:
            gradient.add_bias(d_bias)
    if filtered is not None:
        filtered.put_back(head, d_hidden, d_head)
    if d_hidden is not None and shard.group is not None:
        torch.distributed.all_reduce(d_hidden, group=shard.group)
    return LossResult(token_ce, token_kl, d_hidden, d_head, d_bias)


def chunk_rows(call: LossCall, plan: RowPlan, accumulate: torch.dtype, full_kl: bool) -> int:
    """Rows per chunk: what the byte budget allows, spread evenly over the chunks that makes necessary."""
    slabs = 2 if full_kl and plan.kl_rows else 1
    budget = call.chunk_bytes or DEFAULT_CHUNK_BYTES.get(call.hidden.device.type, slabs * _DEVICE_CHUNK_BYTES)
    width = _padded(call.lm_head.shape[0])
    most = max(1, budget // (width * accumulate.itemsize * slabs))
    if most > _ROW_ALIGNMENT:
        most -= most % _ROW_ALIGNMENT
    chunks = max(1, -(-plan.count // most))
    even = max(1, -(-plan.count // chunks))
    return min(most, -(-even // _ROW_ALIGNMENT) * _ROW_ALIGNMENT) if chunks > 1 else even


def _padded(width: int) -> int:
    return -(-width // _COLUMN_ALIGNMENT) * _COLUMN_ALIGNMENT


def _slab(like: Tensor, rows: int, width: int, dtype: torch.dtype) -> Tensor:
    return like.new_empty((rows, _padded(width)), dtype=dtype)[:, :width]


def _without_weight(inputs: RowInputs) -> Tensor:
    dead = inputs.ce_weight == 0
    return dead if inputs.kl_weight is None else dead & (inputs.kl_weight == 0)


def _gather(source: Tensor, rows: Tensor | slice, dead: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The chunk's rows of ``source``, zero where they have no weight (a NaN there must not reach dW)."""
    x = source[rows].to(dtype)
    return x if dead is None else torch.where(dead.unsqueeze(1), 0, x)


def _gradient_dtype(call: LossCall, accumulate: torch.dtype) -> torch.dtype:
    """A GPU multiplies 16-bit dZ into fp32 sums; the CPU has no such GEMM."""
    return accumulate if call.hidden.device.type == "cpu" else call.compute_dtype


def _rows_to_fill(d_hidden: Tensor, rows: Tensor | slice) -> Tensor:
    return d_hidden[rows] if isinstance(rows, slice) else d_hidden.new_empty((rows.shape[0], d_hidden.shape[1]))


def _pass_rows(
    call: LossCall, objective: Objective, shard: VocabShard, logits: Tensor, ref: Tensor, inputs: RowInputs, grad: bool
) -> tuple[RowGradient, Tensor, Tensor]:
    """Row pass over one chunk, whose first rows have reference logits: ``(gradient, token_ce, token_kl)``."""
    count, with_ref = logits.shape[0], ref.shape[0]
    dtype = _gradient_dtype(call, logits.dtype)
    out = logits if dtype == logits.dtype else _overlay(logits, dtype) if call.backend == "triton" else None
    parts = []
    for part, ref_logits in ((slice(0, with_ref), ref), (slice(with_ref, count), None)):
        if part.start == part.stop:
            continue
        rows = inputs.at(part)
        if call.backend == "triton":
            assert out is not None
            parts.append(triton_row_pass(call, objective, shard, logits[part], ref_logits, out[part], rows, grad))
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
            )
            parts.append((*terms, terms[0]))  # the third is of use only where a kernel rounds
    ce, kl, lost = parts[0] if len(parts) == 1 else (torch.cat(pair) for pair in zip(*parts, strict=True))
    local = inputs.labels - shard.start
    labels = torch.where((local >= 0) & (local < logits.shape[1]), local, 0)
    if out is None:
        out = logits.to(dtype)
        exact, rounded = (t.gather(1, labels.unsqueeze(1)).squeeze(1) for t in (logits, out))
        lost = torch.where(labels == local, exact - rounded, 0)
    return RowGradient(out, None if dtype == logits.dtype else lost, labels, call.backend), ce, kl


def _overlay(logits: Tensor, dtype: torch.dtype) -> Tensor:
    """The upper half of every row of ``logits``, seen in a dtype half as wide; the kernels write it back to front."""
    count, stride = logits.shape[0], logits.stride(0)
    return logits.as_strided((count, stride), logits.stride()).view(dtype)[:, stride : stride + logits.shape[1]]


def triton_row_pass(
    call: LossCall,
    objective: Objective,
    shard: VocabShard,
    logits: Tensor,
    ref_logits: Tensor | None,
    out: Tensor,
    rows: RowInputs,
    grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """``(token_ce, token_kl, lost)`` by the kernels: one, or two with the ranks' statistics combined in between."""
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
        return kernels.launch_row_pass_fwd(logits, ref_logits, out, *rows, grad=grad, **smooth, **common)
    with_mean = bool(o.label_smoothing)
    lse, label_logit, logit_sum, ref_lse, mean_diff = kernels.launch_row_stats_fwd(
        logits, ref_logits, rows.labels, vocab_start=shard.start, with_mean=with_mean, **common
    )
    has_ref = ref_logits is not None
    local = RowStats(
        lse,
        label_logit,
        logit_sum / shard.size if with_mean else None,
        ref_lse if has_ref else None,
        mean_diff if has_ref else None,
    )
    stats = combine(local)
    ce, kl, coefficients = finish_rows(stats, rows, o, shard.size)
    if not grad:
        return ce, kl, torch.zeros_like(ce)
    factors = (stats.lse, stats.ref_lse, stats.mean_diff, *coefficients)
    stacked = torch.stack([torch.zeros_like(ce) if t is None else t for t in factors])
    lost = kernels.launch_row_gradient_bwd(
        logits, ref_logits, out, rows.labels, stacked, vocab_start=shard.start, **common
    )
    return ce, kl, lost
