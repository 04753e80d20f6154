"""The log-probabilities of labels under a reference that is given by its hidden states and head."""

from __future__ import annotations

from torch import Tensor

from .call import LossCall
from .objective import Objective
from .reduce import token_losses


def logprobs_of_reference(call: LossCall, *, at_every_row: bool) -> Tensor:
    """[N] log-probabilities of the labels under the reference of ``call``, and 0 at rows that are not computed.

    The rows with a KL weight are computed; with ``at_every_row`` those with a cross-entropy weight as well.
    """
    o = Objective.decode(call.objective)
    assert call.kl_weight is not None
    needed, rows = call.kl_weight != 0, call.rows
    if at_every_row:
        needed = needed | (call.ce_weight != 0)
    elif rows is not None and call.kl_rows >= 0:
        rows = rows[: call.kl_rows]
    assert call.ref_hidden is not None
    assert call.ref_lm_head is not None
    reference = call._replace(
        hidden=call.ref_hidden,
        lm_head=call.ref_lm_head,
        bias=call.ref_bias,
        ce_weight=-needed.to(call.kl_weight.dtype),  # a weight of -1 turns the loss, -log p, into log p
        kl_weight=None,
        ref_hidden=None,
        ref_lm_head=None,
        ref_bias=None,
        rows=rows,
        objective=Objective("none", logit_scale=o.ref_logit_scale, softcap=o.ref_softcap).encode(),
        compute_dtype=call.ref_hidden.dtype,
        token_stats=False,
    )
    return token_losses(reference)
