"""What a trainer's arguments and a model with DSS on must agree on: the loss's options, its smoothing, its forward."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from fastdss.errors import UserError

from .config import DSSConfig
from .enable import dss_config, enable_dss


def agreed_config(model: Any, config: DSSConfig | None, said: Mapping[str, Any]) -> DSSConfig:
    """The model's configuration, enabled here if it was not; refuses contradictions.

    said: the shortcuts among a trainer's keywords.
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


def enabled_init(model_init: Callable[..., Any], config: DSSConfig) -> Callable[..., Any]:
    """``model_init``, of the same number of arguments as Trainer counts them, whose models have DSS on."""
    if inspect.signature(model_init).parameters:
        return lambda trial: enable_dss(model_init(trial), config)
    return lambda: enable_dss(model_init(), config)


def agree_on_smoothing(model: Any, factor: float) -> None:
    config = dss_config(model)
    if config is None or factor in (0, config.label_smoothing):
        return
    if config.label_smoothing:
        raise UserError(f"label_smoothing_factor: expected {config.label_smoothing} as in DSSConfig, got {factor}")
    enable_dss(model, replace(config, label_smoothing=factor))


def fuses_head(liger: Mapping[str, Any] | None) -> bool:
    """Whether Liger puts a forward of its own, with the head and the loss in one, in place of the model's."""
    chosen = {"fused_linear_cross_entropy": True, "cross_entropy": False} | dict(liger or {})
    return bool(chosen["fused_linear_cross_entropy"] or chosen["cross_entropy"])
