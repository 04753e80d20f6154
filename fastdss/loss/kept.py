"""Losses whose backward finds the exponentials that forward kept: any upstream gradient, no logits computed again.

Forward makes E and ``E W``; backward knows the weights whole, and makes of them what exponentials.py says. Both are
plain functions around one autograd Function, which is what runs where nothing is compiled; under torch.compile, and
where E does not fit, the ops of ops.py run. With a frozen head ``E W`` is all that is kept.
"""

from __future__ import annotations

from copy import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .call import LossCall
from .exp_rows import ExpPlan, ExpRows, plan_exponentials
from .exponentials import ExpGradient, ExpStats, LocalSums, combined, takes_exponentials, terms_and_factors
from .gemm import times_head
from .objective import Objective, RowInputs
from .rows import RowPlan, gather, plan_rows, without_weight
from .vocab_shard import VocabShard


class Kept(NamedTuple):
    """What forward leaves for backward of n rows."""

    stats: ExpStats  # [n]
    exponentials: Tensor | None  # [n, V]
    product: Tensor | None  # [n, D] E W


class KeptCall:
    """A call whose exponentials fit, from forward to backward."""

    def __init__(self, call: LossCall, objective: Objective, plan: RowPlan, sizes: ExpPlan) -> None:
        self.call, self.objective, self.plan, self.sizes = call, objective, plan, sizes
        self.accumulate = torch.float64 if call.compute_dtype == torch.float64 else torch.float32
        self.shard = VocabShard.of(call.lm_head, call.group)
        vectors = RowInputs(call.labels, call.ce_weight, call.kl_weight, call.ref_logprobs)
        self.rows = vectors if plan.index is None else vectors.at(plan.index)
        self.dead = None if plan.trusted else without_weight(self.rows)
        self.local, self.column = self.shard.columns_of(self.rows.labels)

    def forward(self, hidden_grad: bool, keep: bool) -> tuple[Tensor, Tensor, Kept]:
        """``(token_ce, token_kl, kept)``, the first two [N]; keep: E is needed for the gradients of head and bias."""
        call, plan = self.call, self.plan
        head = call.lm_head.to(call.compute_dtype)
        made = ExpRows(call, head, self.shard, self.sizes, self.accumulate, store=hidden_grad or keep)
        sums = LocalSums.empty(call.hidden, plan.count, self.accumulate, self.objective)
        product = call.hidden.new_empty((plan.count, head.shape[1]), dtype=self.accumulate) if hidden_grad else None
        exponentials, means = None, []
        for span, rows, _ in plan.chunks(self.sizes.rows):
            x = gather(call.hidden, rows, None if self.dead is None else self.dead[span], call.compute_dtype)
            exponentials, mean_logit = made.make(x, self.local[span], sums.at(span))
            means.append(mean_logit)
            if product is not None:
                times_head(exponentials, head, product[span])
        mean_logit = torch.cat(means) if means and means[0] is not None else None  # type: ignore[arg-type]
        stats = combined(sums, mean_logit, self.rows.labels, self.objective, self.shard)
        ce, kl, _ = terms_and_factors(stats, self.rows, self.objective, self.shard, self.dead)
        kept = Kept(stats, exponentials if keep else None, product)
        return self._spread(ce), self._spread(kl), kept

    def without_parameters(self) -> KeptCall:
        """What backward may hold on to itself; autograd keeps the parameters, where hooks and checks can see them."""
        bare = copy(self)
        nothing = self.call.labels.new_empty(0)
        bare.call = self.call._replace(hidden=nothing, lm_head=nothing, bias=None)
        return bare

    def _spread(self, terms: Tensor) -> Tensor:
        if self.plan.index is None:
            return terms
        return terms.new_zeros(self.call.labels.shape).index_copy_(0, self.plan.index, terms)

    def backward(
        self, call: LossCall, kept: Kept, upstream: Tensor, needs: list[bool], main_grad: Tensor | None
    ) -> list[Tensor | None]:
        """Gradients of hidden, lm_head and bias for ``upstream``, [] or [N]; the head's goes to main_grad, if given.

        call: with its parameters, which autograd keeps.
        """
        rows = self.rows
        factor = upstream if upstream.dim() == 0 or self.plan.index is None else upstream[self.plan.index]
        ce_weight = scaled_weight(rows.ce_weight, factor)
        kl_weight = None if rows.kl_weight is None else scaled_weight(rows.kl_weight, factor)
        weighted = rows._replace(ce_weight=ce_weight, kl_weight=kl_weight)
        _, _, factors = terms_and_factors(kept.stats, weighted, self.objective, self.shard, self.dead)
        head = call.lm_head.to(call.compute_dtype)
        e = head.new_empty((0, 0)) if kept.exponentials is None else kept.exponentials
        gradient = ExpGradient(e, factors, self.column, call.backend)
        found: list[Tensor | None] = [None, None, None]
        if needs[0]:
            assert kept.product is not None
            found[0] = self._hidden_gradient(gradient, kept.product, call.hidden, head)
        if needs[1]:
            x = gather(call.hidden, slice(None) if self.plan.index is None else self.plan.index, self.dead, head.dtype)
            found[1] = self._head_gradient(gradient, x, call.lm_head, main_grad)
        if needs[2]:
            assert call.bias is not None
            d_bias = factors.row.new_zeros(call.lm_head.shape[0])
            gradient.add_bias(d_bias)
            found[2] = d_bias.to(call.bias.dtype)
        return found

    def _hidden_gradient(self, gradient: ExpGradient, product: Tensor, hidden: Tensor, head: Tensor) -> Tensor:
        d_x = gradient.finished_hidden(product, head)
        if self.shard.group is not None:
            torch.distributed.all_reduce(d_x, group=self.shard.group)
        d_x = d_x.to(hidden.dtype)
        if self.plan.index is None:
            return d_x
        return d_x.new_zeros(hidden.shape).index_copy_(0, self.plan.index, d_x)

    def _head_gradient(self, gradient: ExpGradient, x: Tensor, head: Tensor, main_grad: Tensor | None) -> Tensor | None:
        if self.plan.count == 0:
            return torch.zeros_like(head) if main_grad is None else None
        if main_grad is not None:
            gradient.add_to_head(main_grad, x, first=False)
            return None
        if head.dtype == gradient.exponentials.dtype != self.accumulate and gradient.factors.const is None:
            return gradient.rounded_head(x, head.dtype)
        d_head = head.new_empty(head.shape, dtype=self.accumulate)
        gradient.add_to_head(d_head, x, first=True)
        return d_head.to(head.dtype)


def scaled_weight(weight: Tensor, factor: Tensor) -> Tensor:
    """``weight * factor``, and 0 where the weight is 0 whatever the factor is."""
    return torch.where(weight == 0, 0, weight * factor)


def evaluate(
    call: LossCall, needs: list[bool], *, summed: bool, main_grad: Tensor | None
) -> tuple[Tensor, Tensor, Tensor] | LossCall:
    """``(loss, token_ce, token_kl)``, or the call for the ops where its gradient needs dZ or E does not fit.

    needs: which of hidden, lm_head and bias get gradients.
    """
    plain = all(type(t) in (Tensor, torch.nn.Parameter) for t in call[:2])
    if torch.compiler.is_compiling() or not plain:
        return call
    objective = Objective.decode(call.objective)
    if not takes_exponentials(call, objective):
        return call
    plan = plan_rows(call, full_kl=False)
    accumulate = torch.float64 if call.compute_dtype == torch.float64 else torch.float32
    sizes = plan_exponentials(
        call, plan, accumulate, head_grad=needs[1] or needs[2], main_grad=main_grad is not None, may_keep=True
    )
    if sizes.kept:
        return KeptLoss.apply(KeptCall(call, objective, plan, sizes), summed, main_grad, needs, *call[:3])
    # What is known of the rows by now is not found a second time.
    return call._replace(compact=False) if plan.index is None else call._replace(rows=plan.index, kl_rows=-1)


class KeptLoss(torch.autograd.Function):
    """``(loss, token_ce, token_kl)``: the loss [] if summed, else [N]."""

    @staticmethod
    def forward(
        ctx: Any,
        kept_call: KeptCall,
        summed: bool,
        main_grad: Tensor | None,
        needs: list[bool],
        *parameters: Tensor | None,  # hidden, lm_head, bias: as the call holds them
    ) -> tuple[Tensor, Tensor, Tensor]:
        call = kept_call.call
        with torch.autocast(call.hidden.device.type, enabled=False):
            token_ce, token_kl, kept = kept_call.forward(needs[0], needs[1] or needs[2])
            loss = scaled_weight(call.ce_weight, token_ce)
            if call.kl_weight is not None:
                loss = loss + scaled_weight(call.kl_weight, token_kl)
        ctx.kept_call = kept_call.without_parameters()
        ctx.main_grad = main_grad  # not saved: other micro-batches write to it before this one's backward
        ctx.save_for_backward(*parameters, kept.exponentials, kept.product, *kept.stats)
        ctx.mark_non_differentiable(token_ce, token_kl)
        ctx.set_materialize_grads(False)
        return loss.sum() if summed else loss, token_ce, token_kl

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        refuse_double_backward()
        found: list[Tensor | None] = [None, None, None]
        if grad is not None:
            hidden, lm_head, bias, exponentials, product, *stats = ctx.saved_tensors
            call = ctx.kept_call.call._replace(hidden=hidden, lm_head=lm_head, bias=bias)
            kept = Kept(ExpStats(*stats), exponentials, product)
            with torch.autocast(grad.device.type, enabled=False):
                found = ctx.kept_call.backward(call, kept, grad, list(ctx.needs_input_grad[4:]), ctx.main_grad)
        return None, None, None, None, *found


def refuse_double_backward() -> None:
    if torch.is_grad_enabled():
        raise RuntimeError(
            "fastdss losses can be differentiated once only, but backward ran with create_graph=True; "
            "use the plain PyTorch expression from the docstring where second derivatives are needed"
        )
