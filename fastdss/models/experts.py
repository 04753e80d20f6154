"""The auxiliary loss that balances the load of experts: the model's forward computes it, fastdss adds it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fastdss.errors import UserTypeError

from .causal_lm import backbone

_log = logging.getLogger(__name__)
_COEFFICIENTS = ("router_aux_loss_coef", "aux_loss_coef")
_TOLD = "_dss_told_unbalanced"


def coefficient(model: Any) -> float:
    """The factor by which the model multiplies its auxiliary loss."""
    holder, name = _coefficient(model)
    return float(getattr(holder, name))


def set_coefficient(model: Any, value: float) -> None:
    holder, name = _coefficient(model)
    setattr(holder, name, value)


def tell_unbalanced(model: Any) -> None:
    """Warn once that router logits were asked for, but the model's class computes no auxiliary loss from them."""
    if not model.__dict__.get(_TOLD):
        model.__dict__[_TOLD] = True
        _log.warning("output_router_logits: %s has no auxiliary loss: it trains without one", type(model).__name__)


@contextmanager
def mask_within(model: Any, attention_mask: Any) -> Iterator[None]:
    """Within the context the backbone gets this mask, while the forward around it, which counts tokens for the
    auxiliary loss, gets another."""

    def replace(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return args, kwargs | {"attention_mask": attention_mask}

    hook = backbone(model).register_forward_pre_hook(replace, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


def _coefficient(model: Any) -> tuple[Any, str]:
    for holder in (model, model.config.get_text_config(decoder=True)):
        for name in _COEFFICIENTS:
            if hasattr(holder, name):
                return holder, name
    raise UserTypeError(
        f"{type(model).__name__}: expected the coefficient of its MoE auxiliary loss as one of {_COEFFICIENTS}, "
        "got none: set config.output_router_logits = False to train without that loss"
    )
