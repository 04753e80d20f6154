"""What fastdss needs to know of a transformers causal LM: its backbone, and its head with scale and softcap."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastdss.errors import UserError, UserTypeError
from fastdss.upstream.deepspeed import is_engine
from fastdss.upstream.peft import copy_in_use
from fastdss.upstream.transformers import attention_of

from .adapted_head import matrix_in_use
from .probes import evaluating, failing_as, some_tokens
from .split_params import is_split

_MULTIPLIERS = ("logit_scale", "output_multiplier", "lm_head_multiplier")
_SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap", "final_logits_soft_cap", "output_logit_soft_cap")
_MEASURED = "_dss_logit_scale_and_softcap"
_CHECKED = "_dss_head_checked"
_SCALING_MULTIPLIES = ("hyperclovax",)  # every other family divides by `logits_scaling`


class LMHead(NamedTuple):
    """``logits = softcap * tanh(logit_scale * (hidden @ weight.T + bias) / softcap)``; without a softcap, no tanh.

    ``weight: [V, D]`` and ``bias: [V]`` are the model's own parameters, so gradients reach them.
    """

    weight: Tensor
    bias: Tensor | None
    logit_scale: float
    softcap: float | None

    def logits(self, hidden: Tensor, rows: Tensor | None = None) -> Tensor:
        """``model(...).logits[..., rows]`` from ``hidden: [..., D]``; without ``rows: [R]``, all of the vocabulary."""
        weight = self.weight if rows is None else self.weight[rows]
        bias = self.bias if rows is None or self.bias is None else self.bias[rows]
        return self.after_head(nn.functional.linear(hidden, weight, bias))

    def after_head(self, product: Tensor) -> Tensor:
        """The logits, from the product with the head and its bias."""
        logits = product * self.logit_scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)


def backbone(model: Any) -> nn.Module:
    """The module whose ``(...).last_hidden_state`` feeds the head; sees through PEFT wrappers (adapters stay active).

    Args:
        model: a causal LM of transformers.

    Returns:
        nn.Module: its part without the head.

    Raises:
        TypeError: for a module that is not a transformers model with a separate backbone.
    """
    model = _unwrap(model)
    base = getattr(model, "base_model", None)
    if base is model:  # Llama 4's backbone has another name than its class's base_model_prefix
        base = getattr(model, "model", None)
    if base is None or base is model:
        raise UserTypeError(f"expected a transformers causal LM with a backbone and a head, got {type(model).__name__}")
    found: nn.Module = base
    return found


def lm_head(model: Any, *, check: bool = True) -> LMHead:
    """The output head of a transformers causal LM, with the scale and softcap that its config asks for.

    Adapters of PEFT on the head are part of the weight, which is then computed from theirs: read it anew in each step.

    Args:
        model: a causal LM of transformers, or what PEFT or DeepSpeed wrapped around it.
        check: at a model's first call compare ``head.logits(backbone(model)(...).last_hidden_state)`` with
            ``model(...).logits`` on three tokens, since some classes do more between the two (ModernBERT's decoder).
            Not done where weights are split over ranks or on the meta device, nor within ``torch.compile``.

    Returns:
        LMHead: weight, bias, ``logit_scale`` and ``softcap``, as ``dss_loss`` takes them. Gradients reach the head's
        parameters and its adapters'.

    Raises:
        TypeError: where the model has no output embeddings, its head is not linear, or it cannot be tried on tokens.
        ValueError: where an adapter of the head has dropout that is at work, or is merged and switched off; where the
            model computes its logits in another way.
    """
    model = _unwrap(model)
    layer = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    weight, bias = (None, None) if layer is None else matrix_in_use(copy_in_use(layer), model.dtype)
    if weight is None or weight.ndim != 2:
        within = ": call enable_dss on the model that it wraps, before it does" if hasattr(model, "module") else ""
        raise UserTypeError(f"{type(model).__name__} has no linear output head that fastdss can read{within}")
    tried = model.__dict__.get(_CHECKED) or torch.compiler.is_compiling() or weight.is_meta
    if check and not tried and not is_split(model):
        check_head(model)
        model.__dict__[_CHECKED] = True
    return LMHead(weight, bias, *logit_scale_and_softcap(model))


def logit_scale_and_softcap(model: Any) -> tuple[float, float | None]:
    """What stands between the model's head and its logits, see ``LMHead``: as measured, or as its config asks for."""
    model = _unwrap(model)
    if (measured := getattr(model, "__dict__", {}).get(_MEASURED)) is not None:
        scale, softcap = measured
        return scale, softcap
    config = model.config.get_text_config(decoder=True)
    return _logit_scale(config), _softcap(config)


@contextmanager
def measuring_scale(model: Any) -> Iterator[list[tuple[float, float | None]]]:
    """What may stand between head and logits: what the config asks for, or none of it, as some classes around
    a text model have it (AyaVision). Whatever ``use_scale`` set last stays, unless an error leaves the block."""
    model = _unwrap(model)
    model.__dict__.pop(_MEASURED, None)
    scale, softcap = logit_scale_and_softcap(model)
    try:
        yield list(dict.fromkeys([(scale, softcap), (1.0, softcap), (scale, None), (1.0, None)]))
    except BaseException:
        model.__dict__.pop(_MEASURED, None)
        raise


def use_scale(model: Any, measured: tuple[float, float | None]) -> None:
    _unwrap(model).__dict__[_MEASURED] = measured


def check_head(model: Any, atol: float = 1e-3) -> None:
    """Raise ``ValueError`` unless backbone, head, scale and softcap give the model's own logits of a few tokens,
    ``TypeError`` where it cannot be run on them."""
    model = _unwrap(model)
    with evaluating(model):
        head = lm_head(model, check=False)
        ids = some_tokens(head.weight.device)
        with failing_as(
            lambda got: UserTypeError(
                f"{type(model).__name__}: whether backbone and head give its logits cannot be tried on a few tokens of "
                f"text alone ({got}); lm_head(model, check=False) trusts you"
            )
        ):
            own = model(input_ids=ids, use_cache=False).logits.float()
            ours = head.logits(backbone(model)(input_ids=ids, use_cache=False).last_hidden_state).float()
    off = (own - ours.to(own.device)).abs().max().item()
    limit = max(atol, 4 * torch.finfo(head.weight.dtype).eps) * max(1.0, own.abs().max().item())
    if not off <= limit:
        raise UserError(
            f"{type(model).__name__} computes its logits in a way fastdss does not know: "
            f"head, scale {head.logit_scale} and softcap {head.softcap} miss them by {off:.3g}"
        )


def vocabulary(model: Any) -> int:
    """The size of the vocabulary, as the model's config has it."""
    return int(_unwrap(model).config.get_text_config(decoder=True).vocab_size)


def ignores_softcap(model: Any) -> bool:
    """Whether the model's attention leaves out its softcap: transformers 5.17 chose sdpa for Gemma2, which has none."""
    config = model.config.get_text_config(decoder=True)
    return bool(_number(config, "attn_logit_softcapping")) and attention_of(config) == "sdpa"


def _unwrap(model: Any) -> Any:
    """The transformers model within DeepSpeed's engine, whose own ``config`` is DeepSpeed's, and within PEFT."""
    model = model.module if is_engine(model) else model
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _logit_scale(config: Any) -> float:
    scale = 1.0
    for name in _MULTIPLIERS:
        scale *= _number(config, name) or 1.0
    scaling = _number(config, "logits_scaling") or 1.0
    multiplies = getattr(config, "model_type", "").startswith(_SCALING_MULTIPLIES)
    return scale * scaling if multiplies else scale / scaling


def _softcap(config: Any) -> float | None:
    return next((value for name in _SOFTCAPS if (value := _number(config, name))), None)


def _number(config: Any, name: str) -> float | None:
    value = getattr(config, name, None)
    return float(value) if isinstance(value, int | float) else None
