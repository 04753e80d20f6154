"""Losses whose forward keeps the exponentials, so that backward need not compute logits again.

Forward makes E, ``E W`` and each row's factors (exponentials.py). All factors are linear in the row's weights. So
backward multiplies the factors by the upstream gradient (one number, or one per token), and then the products of E by
the factors. With a frozen head only ``E W`` and the factors are kept. This file does it in an autograd Function. Under
torch.compile, and where E does not fit into memory, the ops of ops.py run instead.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastdss.errors import UserError
from fastdss.upstream.torch import group_named, transforms_active

from .call import LossCall
from .exp_rows import ExpPlan, ExpRows, plan_exponentials
from .exponentials import ExpFactors, ExpGradient, LocalSums, takes_exponentials
from .gemm import times_head
from .objective import Objective, scaled_weight
from .row_terms import RowTerms, row_terms
from .rows import RowPlan, gather, plan_rows, row_inputs, without_weight
from .vocab_shard import VocabShard


class Evaluated(NamedTuple):
    """A loss and its parts, each [] if summed, else [N]; only ``loss`` has a gradient."""

    loss: Tensor
    ce: Tensor | None  # the cross-entropy's part, weights included; None without KL weights, when it is the loss itself
    kl: Tensor | None  # the KL's part, weights included; None without KL weights
    token_ce: Tensor  # [N] without weights
    token_kl: Tensor  # [N] without weights
    token_stats: Tensor | None  # [2, N] as in LossResult, where they are asked for


def evaluate(call: LossCall, needs: list[bool], *, summed: bool, main_grad: Tensor | None) -> Evaluated | LossCall:
    """The loss; or, where this file cannot compute it, the call, which the ops then evaluate.

    The ops run under torch.compile, for tensor subclasses, with ``grad_tol``, where the gradient needs dZ, where E does
    not fit, and where no row has a weight, so that nothing is to be kept. needs: which of hidden, lm_head and bias get
    gradients. main_grad: as in functional.py.
    """
    if torch.compiler.is_compiling():
        return call
    if transforms_active():  # forward mode would find a derivative of 0 in the ops, for torch asks them for none
        raise UserError(
            "fastdss losses take neither transforms of torch.func (grad, vmap, jvp) nor forward mode: "
            "use torch.autograd.grad or backward()"
        )
    plain = all(type(t) in (Tensor, torch.nn.Parameter) for t in call[:2])
    if not plain or call.grad_tol:
        return call
    objective = Objective.decode(call.objective)
    if not takes_exponentials(call, objective):
        return call
    plan = plan_rows(call, full_kl=False)
    sizes = plan_exponentials(
        call, plan, head_grad=needs[1] or needs[2], main_grad=main_grad is not None, may_keep=True
    )
    if not sizes.kept or not plan.count:
        # The call takes along which rows to compute, so that they are not counted a second time.
        return call._replace(compact=False) if plan.index is None else call._replace(rows=plan.index, kl_rows=-1)
    work = _Forward(call, objective, plan, sizes)
    return Evaluated(*KeptLoss.apply(work, summed, main_grad, needs, *call[:3]))  # type: ignore[no-untyped-call]


class _Kept(NamedTuple):
    """What forward keeps for backward, besides the factors, of the n rows that it computed."""

    column: Tensor  # [n] the label's column in this rank's slice
    exponentials: Tensor | None  # [n, V] E, if the head or its bias needs a gradient
    x: Tensor | None  # [n, D] the rows of hidden, likewise
    product: Tensor | None  # [n, D] E W, if hidden needs a gradient
    rows: Tensor | None  # [n] indices of the rows in the call; None: all rows
    slope: Tensor | None  # [n, D] these rows of the call's ref_slope


class _Forward:
    """The forward of a call whose exponentials fit."""

    def __init__(self, call: LossCall, objective: Objective, plan: RowPlan, sizes: ExpPlan) -> None:
        self.call, self.objective, self.plan, self.sizes = call, objective, plan, sizes
        self.shard = VocabShard.of(call.lm_head, call.group)
        self.rows = row_inputs(call, plan)  # gathered once; chunks take slices of it
        self.dead = None if plan.trusted else without_weight(self.rows)
        # On a CPU check_values has read all labels that count (torch.compile skips it, but does not come here).
        self.checked = plan.trusted and call.labels.device.type == "cpu"

    def run(self, hidden_grad: bool, keep: bool) -> tuple[RowTerms, _Kept]:
        """The rows' terms, and what is kept for backward. keep: E is needed for the gradients of head or bias."""
        call, plan, size = self.call, self.plan, self.sizes.rows
        head = call.lm_head.to(call.compute_dtype)
        made = ExpRows(call, head, self.shard, self.sizes, store=hidden_grad or keep)
        sums = LocalSums.empty(call.hidden, plan.count, call.accumulate, self.objective, call.token_stats)
        product = call.hidden.new_empty((plan.count, head.shape[1]), dtype=call.accumulate) if hidden_grad else None
        labels = self.shard.columns_of(self.rows.labels, checked=self.checked)
        exponentials = x = None
        means = []
        for span, rows, _ in plan.chunks(size):
            whole = size >= plan.count
            dead = self.dead if whole or self.dead is None else self.dead[span]
            x = gather(call.hidden, rows, dead, call.compute_dtype)
            part = (labels, sums) if whole else (labels.at(span), sums.at(span))
            exponentials, mean_logit = made.make(x, *part)
            means.append(mean_logit)
            if product is not None:
                times_head(exponentials, head, product if whole else product[span])
        mean_logit = torch.cat(means) if means and means[0] is not None else None  # type: ignore[arg-type]
        terms = row_terms(
            sums, mean_logit, self.rows, self.objective, self.shard, self.dead, call.backend, checked=self.checked
        )
        slope = call.ref_slope if hidden_grad else None
        if slope is not None:
            terms = terms._replace(factors=terms.factors._replace(slope=self.rows.kl_weight))
            slope = slope if plan.index is None else slope[plan.index]
        kept = _Kept(labels.column, exponentials if keep else None, x if keep else None, product, plan.index, slope)
        return terms, kept


def exactly(device: torch.device) -> AbstractContextManager[Any]:
    """A context without autocast. Torch's own costs 0.01 ms even with autocast off: it is entered only with it on."""
    on = torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, enabled=False) if on else nullcontext()


class KeptLoss(torch.autograd.Function):
    """The autograd Function: forward returns the fields of :class:`Evaluated`."""

    @staticmethod
    def forward(
        ctx: Any,
        work: _Forward,
        summed: bool,
        main_grad: Tensor | None,
        needs: list[bool],
        *parameters: Tensor | None,  # hidden, lm_head, bias: as the call holds them
    ) -> tuple[Tensor | None, ...]:
        call = work.call
        with exactly(call.hidden.device):
            (ce, kl, parts, factors, token_stats), kept = work.run(needs[0], needs[1] or needs[2])
            tokens = [ce, kl] if summed else [ce, kl, *parts]
            if kept.rows is not None:
                tokens += [] if token_stats is None else [*token_stats]
                new = ce.new_zeros((len(tokens), call.labels.shape[0])).index_copy_(1, kept.rows, torch.stack(tokens))
                tokens, token_stats = list(new.unbind()), None if token_stats is None else new[-2:]
            parts = [part.sum() for part in parts] if summed else tokens[2 : 2 + len(parts)]
        loss, *parts = parts if len(parts) == 1 else (parts[0] + parts[1], *parts)
        # main_grad is not saved: other micro-batches write to it before this one's backward.
        ctx.options = main_grad, call.group, call.backend, call.compute_dtype
        ctx.save_for_backward(*parameters, *kept, *factors)
        found = (loss, *(parts or (None, None)), *tokens[:2], token_stats)
        ctx.mark_non_differentiable(*(t for t in found[1:] if t is not None))
        ctx.set_materialize_grads(False)
        return found

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        refuse_double_backward()
        found: list[Tensor | None] = [None, None, None]
        if grad is not None:
            saved = ctx.saved_tensors
            parameters, kept, factors = saved[:3], _Kept(*saved[3:9]), ExpFactors(*saved[9:])
            with exactly(grad.device):
                found = _gradients(parameters, kept, factors, grad, list(ctx.needs_input_grad[4:]), *ctx.options)
        return None, None, None, None, *found


def _gradients(
    parameters: tuple[Tensor, Tensor, Tensor | None],
    kept: _Kept,
    factors: ExpFactors,
    upstream: Tensor,
    needs: list[bool],
    main_grad: Tensor | None,
    group: str,
    backend: str,
    compute_dtype: torch.dtype,
) -> list[Tensor | None]:
    """Gradients of hidden, lm_head and bias for ``upstream`` ([] or [N]); the head's goes to main_grad, if given."""
    hidden, lm_head, bias = parameters
    if upstream.dim():
        upstream = upstream if kept.rows is None else upstream[kept.rows]
        factors = ExpFactors(*(None if t is None else scaled_weight(t, upstream) for t in factors))  # type: ignore[arg-type]
    elif not is_one(upstream):
        factors = ExpFactors(*(None if t is None else t * upstream for t in factors))  # type: ignore[arg-type]
    head = lm_head.to(compute_dtype)
    e = factors.row.new_empty((0, 0)) if kept.exponentials is None else kept.exponentials
    gradient = ExpGradient(e, factors, kept.column, backend)
    found: list[Tensor | None] = [None, None, None]
    if needs[0]:
        assert kept.product is not None
        more = group or kept.slope is not None  # then terms are added below, before d_x may be rounded
        d_x = gradient.finished_hidden(kept.product, head, kept.product.dtype if more else hidden.dtype)
        if group:
            torch.distributed.all_reduce(d_x, group=group_named(group))
        if kept.slope is not None and factors.slope is not None:  # after the sum over ranks, or each would add it
            d_x.addcmul_(kept.slope.to(d_x.dtype), factors.slope.unsqueeze(1))
        d_x = d_x.to(hidden.dtype)
        found[0] = d_x if kept.rows is None else d_x.new_zeros(hidden.shape).index_copy_(0, kept.rows, d_x)
    if needs[1]:
        assert kept.x is not None
        found[1] = _head_gradient(gradient, kept.x, lm_head, main_grad)
    if needs[2]:
        assert bias is not None
        d_bias = factors.row.new_zeros(lm_head.shape[0])
        gradient.add_bias(d_bias)
        found[2] = d_bias.to(bias.dtype)
    return found


def _head_gradient(gradient: ExpGradient, x: Tensor, lm_head: Tensor, main_grad: Tensor | None) -> Tensor | None:
    """The head's gradient in its dtype, or None if it was added to main_grad."""
    if main_grad is not None:
        gradient.add_to_head(main_grad, x, first=False)
        return None
    wide = gradient.factors.row.dtype
    if lm_head.dtype == gradient.exponentials.dtype != wide and gradient.factors.const is None:
        return gradient.rounded_head(x, lm_head.dtype)
    d_head = lm_head.new_empty(lm_head.shape, dtype=wide)
    gradient.add_to_head(d_head, x, first=True)
    return d_head.to(lm_head.dtype)


def is_one(factor: Tensor) -> bool:
    """Whether ``factor`` is 1; False if the host cannot know without waiting for a GPU, or because it is traced."""
    if torch.compiler.is_compiling() or type(factor) is not Tensor:
        return False
    return factor.device.type == "cpu" and factor.item() == 1


def refuse_double_backward() -> None:
    """Raise if backward was called with ``create_graph=True``, when its own gradient would be missing."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            "fastdss losses can be differentiated once only, but backward ran with create_graph=True; "
            "use the plain PyTorch expression from the docstring where second derivatives are needed"
        )
