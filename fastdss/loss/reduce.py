"""Evaluates one call and reduces its loss: chooses the engine, the gradients to compute, and a mean's divisor."""

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
    """[N] the loss of every token, with its weights."""
    return _evaluated(call, summed=False, main_grad=None).loss


def _evaluated(call: LossCall, *, summed: bool, main_grad: Tensor | None) -> Evaluated:
    """The loss by way of kept exponentials or, where those cannot compute it, by the ops."""
    needs = [torch.is_grad_enabled() and t is not None and t.requires_grad for t in call[:3]]
    found = evaluate(call, needs, summed=summed, main_grad=main_grad)
    return ops.evaluate(found, needs, summed=summed, main_grad=main_grad) if isinstance(found, LossCall) else found


def evaluate_reduced(
    call: LossCall, batch: Batch, reduction: str, num_items_in_batch: int | Tensor | None, main_grad: Tensor | None
) -> Evaluated:
    """The loss and its parts, reduced; the values per token stay unreduced."""
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
    found = _evaluated(call, summed=reduction != "none", main_grad=main_grad)
    if items is None and reduction != "none":
        # The loss must not be returned as a view. Trainer multiplies it in place (`loss *= n`), after which hooks on a
        # view no longer run, and FSDP2 gathers parameters in such a hook.
        return found
    loss, ce, kl = (
        None if part is None else part.view(batch.shape) if items is None else part / items for part in found[:3]
    )
    assert loss is not None
    return Evaluated(loss, ce, kl, *found[3:])


def entropy_and_correct(run: Evaluated, batch: Batch) -> tuple[Tensor, Tensor]:
    """Each token's entropy, and whether its label was the likeliest word, in the shape of the batch."""
    assert run.token_stats is not None
    entropy, correct = run.token_stats.unbind()
    return entropy.view(batch.shape), correct.bool().view(batch.shape)


def _divided(call: LossCall, items: int | float | Tensor) -> tuple[LossCall, int | float | Tensor | None]:
    """``(call, divisor)``: the call with the mean's divisor moved into its weights, and what the loss still divides by.

    Weights that are divided beforehand spare backward a pass over dW. With 16-bit parameters the weights stay and the
    loss is divided: dZ is rounded to 16 bit there, where entries divided by the number of items could round to 0.
    """
    if call.compute_dtype.itemsize == 2:
        return call, items
    kl_weight = None if call.kl_weight is None else call.kl_weight / items
    return call._replace(ce_weight=call.ce_weight / items, kl_weight=kl_weight), None
