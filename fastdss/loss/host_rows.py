"""Finds the rows that a loss has to compute while labels and weights are still on the host."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .checks import check_gathered, check_kl_scale, check_labels, check_values
from .inputs import LiveRows, plain_weights, shaping_weights
from .rows import order_rows


def live_rows(
    labels: Tensor,
    weights: Tensor | None = None,
    *,
    kl_scale: float = 0.0,
    ignore_index: int = -100,
    shift: bool = False,
    vocab_size: int | None = None,
) -> LiveRows:
    """Find the positions that a loss has to compute, to be passed as its ``rows=``.

    ```python
    kl = (1 - weights) * kl_scale
    torch.nonzero((labels != ignore_index) & ((weights > 0) | (kl > 0)))      # those with kl > 0 first
    ```

    Call it where labels and weights are still on the host, as in a collator: the loss then never waits for the GPU.

    Args:
        labels: [...] the same labels that the loss gets.
        weights: [...] the same weights; None: all 1.
        kl_scale: 0 for ``weighted_ce``, else the same as in ``dss_loss``.
        ignore_index: the label that does not count.
        shift: as in the loss.
        vocab_size: labels of this value or more are errors; None: not checked.

    Returns:
        LiveRows: positions in the flattened batch, and how many of them have a KL weight.

    Raises:
        ValueError: if labels or weights are on a CPU and no loss would accept them.
    """
    check_gathered(labels=labels, weights=weights)
    check_labels(labels)
    check_kl_scale(kl_scale)
    dtype = torch.float64 if weights is not None and weights.dtype == torch.float64 else torch.float32
    placed: dict[str, Any] = {"ignore_index": ignore_index, "shift": shift, "dtype": dtype}
    if weights is not None and kl_scale:
        found = shaping_weights(labels, weights, "weights", kl_scale, **placed)
    else:
        found = plain_weights(labels, weights, **placed)
    if labels.device.type == "cpu":
        check_values(labels, weights, "weights", ignore_index, vocab_size, unit_interval=kl_scale > 0)
    return LiveRows(*order_rows(found.ce, found.kl))
