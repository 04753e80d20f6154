"""The chunk driver: logits of a few rows at a time in one reused slab, turned into gradients where they lie.

For every chunk of rows: ``slab = x @ W^T`` by the vendor's GEMM; one row pass that returns the per-token terms and
overwrites the slab with dZ; ``dX = dZ @ W``; ``dW += dZ^T @ x``. Logits and sums are fp32 (fp64 for fp64 inputs)
whatever the parameters' dtype: per-token values stay exact, and dW does not depend on the chunk size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .objective import Objective, RowInputs, RowStats, finish_rows, torch_row_pass
from .vocab_shard import VocabShard

# Slab sizes; on a GPU of each slab, as the rows matter: dW is read and written once per chunk. 1 GiB is 2048 rows of a
# 128k vocabulary, where that GEMM runs at 600 TFLOP/s on an H100, as at 8192 rows; at 1024 rows it is 407. A CPU
# re-reads dW, and upcasts a 16-bit head, per chunk, and pays for every fresh page of the slab: 1024 rows of a 48k
# vocabulary take equally long with 48 to 256 MiB (Zen 4).
DEFAULT_CHUNK_BYTES = {"cpu": 128 << 20}
_DEVICE_CHUNK_BYTES = 1 << 30
_ROW_ALIGNMENT = 128  # chunk rows, where the budget allows: a GEMM tile
_COLUMN_ALIGNMENT = 32  # slab row stride in elements: 128 bytes of fp32
_UPCAST_ROWS = 4096  # head rows upcast at a time where the CPU has no GEMM from 16 to 32 bit


class LossCall(NamedTuple):
    """Inputs of the ops in :mod:`fastdss._ops`, in schema order. N tokens, D hidden, V vocabulary (of this rank)."""

    hidden: Tensor  # [N, D]
    lm_head: Tensor  # [V, D]
    bias: Tensor | None  # [V]
    labels: Tensor  # [N] int64, over the whole vocabulary; like all vectors here contiguous, as the kernels read them
    ce_weight: Tensor  # [N] fp32/fp64, 0 at labels that do not count
    kl_weight: Tensor | None  # [N]
    ref_logprobs: Tensor | None  # [N]
    ref_hidden: Tensor | None  # [N, D']
    ref_lm_head: Tensor | None  # [V, D']
    ref_bias: Tensor | None  # [V]
    rows: Tensor | None  # [n] int64: the only rows that matter, those with a KL weight first
    kl_rows: int  # how many of ``rows`` have a KL weight; -1: not known
    objective: str
    compute_dtype: torch.dtype
    impl: str  # "torch" or "triton"
    chunk_bytes: int  # 0: the device's default
    compact: bool
    group: str  # name of the process group over which the vocabulary is split, or ""


class LossResult(NamedTuple):
    token_ce: Tensor  # [N]
    token_kl: Tensor  # [N]
    d_hidden: Tensor | None  # [N, D] in the accumulation dtype
    d_head: Tensor | None  # [V, D]
    d_bias: Tensor | None  # [V]


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
    new_head = call.hidden.new_empty if plan.count else call.hidden.new_zeros  # the first chunk fills it
    d_head = new_head(call.lm_head.shape, dtype=accumulate) if head_grad and main_grad is None else main_grad
    d_bias = call.hidden.new_zeros(call.lm_head.shape[0], dtype=accumulate) if bias_grad else None
    token_ce, token_kl = (call.hidden.new_zeros(call.labels.shape, dtype=accumulate) for _ in range(2))
    head = call.lm_head.to(call.compute_dtype)
    size = chunk_rows(call, plan, accumulate, objective.full_kl)
    slab = _slab(call.hidden, size, head.shape[0], accumulate)
    ref_slab = _slab(call.hidden, min(size, plan.kl_rows), head.shape[0], accumulate)
    for span, rows, with_ref in plan.chunks(size):
        inputs = RowInputs(*(None if t is None else t[rows] for t in call[3:7]))  # type: ignore[arg-type]
        dead = None if plan.trusted else _without_weight(inputs)
        x = _gather(call.hidden, rows, dead, call.compute_dtype)
        logits = slab[: span.stop - span.start]
        _project(x, head, out=logits)
        if with_ref:
            assert call.ref_hidden is not None
            assert call.ref_lm_head is not None
            assert inputs.kl_weight is not None
            unused = None if plan.trusted else inputs.kl_weight[:with_ref] == 0
            ref_rows = rows[:with_ref] if isinstance(rows, Tensor) else slice(span.start, span.start + with_ref)
            x_ref = _gather(call.ref_hidden, ref_rows, unused, call.ref_hidden.dtype)
            _project(x_ref, call.ref_lm_head, out=ref_slab[:with_ref])
        grad = hidden_grad or head_grad or bias_grad
        gradient, ce, kl = _pass_rows(call, objective, shard, logits, ref_slab[:with_ref], inputs, grad)
        token_ce[rows] = ce if dead is None else ce.masked_fill(dead, 0)
        token_kl[rows] = kl
        if d_hidden is not None:
            _hidden_gradient(gradient, head, d_hidden, rows)
        if d_head is not None:
            _head_gradient(gradient, x, d_head, first=main_grad is None and span.start == 0)
        if d_bias is not None:
            _bias_gradient(gradient, d_bias)
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


class RowGradient(NamedTuple):
    """dZ of a chunk, and what rounding it dropped at each row's label, where half of a loss gradient's energy lies."""

    dz: Tensor  # [c, V] in the dtype of the GEMMs that read it
    lost: Tensor | None  # [c]; None: nothing was rounded
    labels: Tensor  # [c] columns of dz, 0 where another rank holds the label (nothing is lost there)
    impl: str  # of the call

    def return_lost(self, target: Tensor, source: Tensor, *, scatter: bool) -> None:
        """``target[r] += lost[r] * source[labels[r]]``; scatter: ``target[labels[r]] += lost[r] * source[r]``."""
        if self.lost is None:
            return
        if self.impl == "triton" and target.is_cuda and not torch.are_deterministic_algorithms_enabled():
            from fastdss.kernels.label_rows import launch_label_rows_bwd

            launch_label_rows_bwd(target, source, self.lost, self.labels, scatter=scatter)
        elif scatter:
            target.index_add_(0, self.labels, source.to(target.dtype) * self.lost.unsqueeze(1))
        else:
            target.addcmul_(source[self.labels].to(target.dtype), self.lost.unsqueeze(1))


def _gradient_dtype(call: LossCall, accumulate: torch.dtype) -> torch.dtype:
    """A GPU multiplies 16-bit dZ into fp32 sums; the CPU has no such GEMM."""
    return accumulate if call.hidden.device.type == "cpu" else call.compute_dtype


def _pass_rows(
    call: LossCall, objective: Objective, shard: VocabShard, logits: Tensor, ref: Tensor, inputs: RowInputs, grad: bool
) -> tuple[RowGradient, Tensor, Tensor]:
    """Row pass over one chunk, whose first rows have reference logits: ``(gradient, token_ce, token_kl)``."""
    count, with_ref = logits.shape[0], ref.shape[0]
    dtype = _gradient_dtype(call, logits.dtype)
    out = logits if dtype == logits.dtype else _overlay(logits, dtype) if call.impl == "triton" else None
    parts = []
    for part, ref_logits in ((slice(0, with_ref), ref), (slice(with_ref, count), None)):
        if part.start == part.stop:
            continue
        rows = RowInputs(*(None if t is None else t[part] for t in inputs))  # type: ignore[arg-type]
        if call.impl == "triton":
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
    return RowGradient(out, None if dtype == logits.dtype else lost, labels, call.impl), ce, kl


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
        "kl": o.kl,
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


def _project(x: Tensor, head: Tensor, out: Tensor) -> None:
    """``out = x @ head.T`` with ``out`` in the accumulation dtype: logits are never rounded to 16 bit."""
    if out.dtype == head.dtype:
        torch.mm(x, head.t(), out=out)
    elif out.device.type == "cpu":
        x = x.to(out.dtype)
        for block, part in _upcast_blocks(head, out.dtype):
            torch.mm(x, part.t(), out=out[:, block])
    else:
        torch.mm(x, head.t(), out_dtype=out.dtype, out=out)


def _hidden_gradient(gradient: RowGradient, head: Tensor, d_hidden: Tensor, rows: Tensor | slice) -> None:
    """``d_hidden[rows] = dz @ head``"""
    dz = gradient.dz
    target = d_hidden[rows] if isinstance(rows, slice) else d_hidden.new_empty((dz.shape[0], head.shape[1]))
    if dz.dtype == head.dtype == target.dtype:
        torch.mm(dz, head, out=target)
    elif dz.device.type == "cpu":
        _hidden_gradient_16_bit(gradient, head, target)
    else:
        torch.mm(dz, head, out_dtype=target.dtype, out=target)
    gradient.return_lost(target, head, scatter=False)
    if not isinstance(rows, slice):
        d_hidden.index_copy_(0, rows, target)


def _hidden_gradient_16_bit(gradient: RowGradient, head: Tensor, target: Tensor) -> None:
    """The CPU's 16-bit GEMM rounds its result too, yet is twice as fast: parts of the vocabulary, summed in fp32."""
    target.zero_()
    part, product = gradient.dz.new_empty((target.shape[0], min(_UPCAST_ROWS, head.shape[0])), dtype=head.dtype), None
    for start in range(0, head.shape[0], _UPCAST_ROWS):
        dz = gradient.dz[:, start : start + _UPCAST_ROWS]
        product = torch.mm(part[:, : dz.shape[1]].copy_(dz), head[start : start + _UPCAST_ROWS], out=product)
        target += product
    if gradient.lost is None:
        exact = gradient.dz.gather(1, gradient.labels.unsqueeze(1))
        target.addcmul_(head[gradient.labels].to(target.dtype), exact - exact.to(head.dtype).to(exact.dtype))


def _head_gradient(gradient: RowGradient, x: Tensor, d_head: Tensor, first: bool) -> None:
    """``d_head += dz.T @ x``, at the first ``=``, in the accumulation dtype and without a [V, D] temporary."""
    dz = gradient.dz
    if dz.device.type == "cpu" or dz.dtype == d_head.dtype:
        d_head.addmm_(dz.t().to(d_head.dtype), x.to(d_head.dtype), beta=0 if first else 1)
    elif first:
        torch.mm(dz.t(), x, out_dtype=d_head.dtype, out=d_head)
    else:
        torch.addmm(d_head, dz.t(), x, out_dtype=d_head.dtype, out=d_head)
    gradient.return_lost(d_head, x, scatter=True)


def _bias_gradient(gradient: RowGradient, d_bias: Tensor) -> None:
    d_bias += gradient.dz.sum(dim=0, dtype=d_bias.dtype)
    if gradient.lost is not None:
        d_bias.index_add_(0, gradient.labels, gradient.lost)


def _upcast_blocks(head: Tensor, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """The CPU has no GEMM from 16 to 32 bit: a few rows of the head at a time, upcast into one reused buffer."""
    buffer = head.new_empty((min(_UPCAST_ROWS, head.shape[0]), head.shape[1]), dtype=dtype)
    for start in range(0, head.shape[0], _UPCAST_ROWS):
        part = head[start : start + _UPCAST_ROWS]
        yield slice(start, start + part.shape[0]), buffer[: part.shape[0]].copy_(part)
