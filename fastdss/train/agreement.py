"""Options that can be given both to ``enable_dss`` and to a trainer: a contradiction is refused, never resolved."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from fastdss.errors import UserError

from .config import DSSConfig
from .enable import dss_config, enable_dss


def agreed_config(model: Any, config: DSSConfig | None, said: Mapping[str, Any]) -> DSSConfig:
    """The model's configuration. Enables DSS where it is off; raises ``UserError`` where the model has other options.

    said: the shortcuts to fields of ``DSSConfig`` among a trainer's keywords.
    """
    known = dss_config(model)
    if known is None:
        known = dss_config(enable_dss(model, config, **said))
        assert known is not None
    elif differing := known.contradicted(config, **said):
        here = (config or known).with_said(**said)
        words = [f"{n}: expected {getattr(known, n)} as in enable_dss, got {getattr(here, n)}" for n in differing]
        raise UserError(f"{'; '.join(words)}: say it once")
    return known


def by_name(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call of ``function`` by their names; raises ``TypeError`` as the call would."""
    signature = inspect.signature(function)
    given = signature.bind_partial(*args, **kwargs).arguments
    for name, parameter in signature.parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            given |= given.pop(name, {})
    return given


def enabled_init(model_init: Callable[..., Any], config: DSSConfig) -> Callable[..., Any]:
    """A ``model_init`` that enables DSS in the models it makes. It takes as many arguments as the given one, since
    Trainer counts them."""
    if inspect.signature(model_init).parameters:
        return lambda trial: enable_dss(model_init(trial), config)
    return lambda: enable_dss(model_init(), config)


def agree_on_smoothing(model: Any, factor: float) -> None:
    """Take over Trainer's ``label_smoothing_factor``; raise ``UserError`` where the model has another one."""
    config = dss_config(model)
    if config is None or factor in (0, config.label_smoothing):
        return
    if config.label_smoothing:
        raise UserError(f"label_smoothing_factor: expected {config.label_smoothing} as in DSSConfig, got {factor}")
    enable_dss(model, replace(config, label_smoothing=factor))


def fuses_head(liger: Mapping[str, Any] | None) -> bool:
    """Whether Liger replaces the model's forward by one that fuses the head with its own loss."""
    chosen = {"fused_linear_cross_entropy": True, "cross_entropy": False} | dict(liger or {})
    return bool(chosen["fused_linear_cross_entropy"] or chosen["cross_entropy"])
