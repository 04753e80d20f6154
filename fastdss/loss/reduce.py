"""One call evaluated and reduced: which gradients it needs, what a mean divides by, and by whom it is computed."""

from __future__ import annotations

import torch
from torch import Tensor

from fastdss.errors import UserError

from . import ops
from .call import LossCall
from .checks import check_num_items
from .inputs import Batch
from .kept import Evaluated, evaluate


def token_losses(call: LossCall) -> Tensor:
    """[N]"""
    found = evaluate(call, _needs(call), summed=False, main_grad=None)
    return ops.token_loss(*found)[0] if isinstance(found, LossCall) else found.loss


def _needs(call: LossCall) -> list[bool]:
    """Which of hidden, lm_head and bias get gradients."""
    return [torch.is_grad_enabled() and t is not None and t.requires_grad for t in call[:3]]


def evaluate_reduced(
    call: LossCall, batch: Batch, reduction: str, num_items_in_batch: int | Tensor | None, main_grad: Tensor | None
) -> Evaluated:
    """What the loss and its parts are, reduced."""
    if reduction not in ("mean", "sum", "none"):
        raise UserError(f"reduction: expected 'mean', 'sum' or 'none', got {reduction!r}")
    if num_items_in_batch is not None and reduction != "mean":
        raise UserError(f"num_items_in_batch goes with reduction='mean', got reduction={reduction!r}")
    check_num_items(num_items_in_batch)
    if main_grad is not None:
        batch.check_main_grad(main_grad)
    items: int | float | Tensor | None = None
    if reduction == "mean":
        call, items = _divided(call, batch.items(num_items_in_batch))
    needs = _needs(call)
    found = evaluate(call, needs, summed=reduction != "none", main_grad=main_grad)
    if isinstance(found, LossCall):
        found = ops.evaluate(found, needs, summed=reduction != "none", main_grad=main_grad)
    if items is None and reduction != "none":
        # No view: after `loss *= n`, as in Trainer, a view's hooks no longer run, and by them FSDP2 gathers.
        return found
    loss, ce, kl = (
        None if part is None else part.view(batch.shape) if items is None else part / items for part in found[:3]
    )
    assert loss is not None
    return Evaluated(loss, ce, kl, *found[3:])


def entropy_and_correct(run: Evaluated, batch: Batch) -> tuple[Tensor, Tensor]:
    """Entropies, and whether the label was the likeliest word."""
    assert run.token_stats is not None
    entropy, correct = run.token_stats.unbind()
    return entropy.view(batch.shape), correct.bool().view(batch.shape)


def _divided(call: LossCall, items: int | float | Tensor) -> tuple[LossCall, int | float | Tensor | None]:
    """The mean's divisor in the weights, which spares backward a pass over dW; and what is left to divide by.

    Where dZ is rounded to 16 bit it would round to nothing: there the loss is divided.
    """
    if call.compute_dtype.itemsize == 2:
        return call, items
    kl_weight = None if call.kl_weight is None else call.kl_weight / items
    return call._replace(ce_weight=call.ce_weight / items, kl_weight=kl_weight), None
