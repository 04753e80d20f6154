"""What an output head multiplies: its weight as it is, dequantised, or with what PEFT has put on it.

An adapter of low rank stays a sum of weights, ``W + s B A``. Where dropout stands before it, no single weight exists:
``[h, s A drop(h)] @ [W, B].T`` has one, with a few more columns than ``h``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastdss.errors import UserError, UserTypeError


class Applied(NamedTuple):
    """``hidden @ weight.T + bias`` is what the head makes of the hidden states given to ``applied``."""

    hidden: Tensor  # [..., D or more]
    weight: Tensor  # [V, D or more]
    bias: Tensor | None  # [V]


def applied(layer: Any, hidden: Tensor) -> Applied:
    """The head ``layer`` on ``hidden: [..., D]``; gradients reach all of its parameters that train.

    Raises ``TypeError`` for one that is not linear, ``ValueError`` for an adapter that is merged and switched off.
    """
    if hasattr(layer, "lora_A") and hasattr(layer, "base_layer"):
        return _with_lora(layer, hidden)
    if hasattr(layer, "base_layer") or hasattr(layer, "token_adapter"):
        return _by_unit_vectors(layer, hidden)
    return Applied(hidden, *plain_weight(layer))


def plain_weight(layer: Any) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of a linear layer; what bitsandbytes or torchao keep in fewer bits as they multiply it."""
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, Tensor) or (weight.ndim != 2 and not hasattr(weight, "quant_state")):
        raise UserTypeError(f"expected a linear output head, got {type(layer).__name__}")
    if _of_torchao(weight):  # it says that it is floating point, but knows only the operators of its own
        weight = weight.dequantize().detach()
    elif not weight.is_floating_point():
        weight = _dequantised(layer, weight)
    return weight, getattr(layer, "bias", None)


def _of_torchao(weight: Tensor) -> bool:
    return any(kind.__module__.partition(".")[0] == "torchao" for kind in type(weight).__mro__)


def _dequantised(layer: Any, weight: Tensor) -> Tensor:
    if type(weight).__name__ not in ("Params4bit", "Int8Params"):
        raise UserTypeError(f"expected an output head in floating point, got {weight.dtype}: do not quantise it")
    from peft.utils.integrations import dequantize_module_weight

    found: Tensor = dequantize_module_weight(layer)
    return found.detach().to(getattr(layer, "compute_dtype", None) or found.dtype)


def _with_lora(layer: Any, hidden: Tensor) -> Applied:
    """Reading the base weight alone would drop the adapter in silence."""
    weight, bias = base, _ = plain_weight(layer.base_layer)
    if layer.merged and layer.disable_adapters:
        raise UserError("the output head's adapter is merged and switched off: unmerge it first")
    if layer.merged or layer.disable_adapters:
        return Applied(hidden, weight, bias)
    features, weights = [hidden], []
    for name in (name for name in layer.active_adapters if name in layer.lora_A):
        scaling, down, up = layer.scaling[name], layer.lora_A[name], layer.lora_B[name]
        dropped = layer.lora_dropout[name](hidden) if _drops(layer.lora_dropout[name]) else None
        variant = layer.lora_variant.get(name)
        if variant is not None and type(variant).__name__ != "DoraLinearVariant":
            raise UserTypeError(
                f"an adapter on the output head: expected LoRA or DoRA, got {type(variant).__name__} ({name!r}): take "
                "the head out of target_modules or put it in modules_to_save"
            )
        if variant is None and dropped is not None:
            features.append(scaling * nn.functional.linear(dropped.to(down.weight.dtype), down.weight).to(hidden.dtype))
            weights.append(up.weight.to(weight.dtype))
        elif variant is None:
            weight = weight + layer.get_delta_weight(name).to(weight.dtype)
        else:  # m (W + s B A) / |W + s B A|, in place of W
            whole = base + layer.get_delta_weight(name).to(base.dtype)
            norm = torch.linalg.norm(whole, dim=1, keepdim=True).detach()
            change = layer.lora_magnitude_vector[name].weight[:, None] / norm * whole - base
            if dropped is None:
                weight = weight + change
            else:
                features.append(dropped)
                weights.append(change)
        if layer.lora_bias.get(name, False):
            bias = scaling * up.bias if bias is None else bias + scaling * up.bias
    if weights:
        return Applied(torch.cat(features, -1), torch.cat([weight, *weights], 1), bias)
    return Applied(hidden, weight, bias)


def _by_unit_vectors(layer: Any, hidden: Tensor) -> Applied:
    """Whatever the adapter is, a linear layer is what it makes of unit vectors; as costly as D more tokens."""
    if any(_drops(module) for module in layer.modules()):
        raise UserTypeError(
            f"{type(layer).__name__} on the output head has dropout: set it to 0, take the head out of "
            "target_modules or put it in modules_to_save"
        )
    forward = type(layer).forward  # the instance's stands in for the head while the loss runs
    width = hidden.shape[-1]
    bias = forward(layer, hidden.new_zeros((1, width)))
    made = forward(layer, torch.eye(width, dtype=hidden.dtype, device=hidden.device)) - bias
    probe = hidden.detach().reshape(-1, width)[:2]
    off = (forward(layer, probe) - bias - probe @ made).abs().max()
    if off > 64 * torch.finfo(made.dtype).eps * (probe @ made).abs().max().clamp(min=1):
        raise UserTypeError(f"expected a linear output head, got {type(layer).__name__}, off by {off.item():.2g}")
    return Applied(hidden, made.T, bias[0])


def _drops(module: Any) -> bool:
    return isinstance(module, nn.Dropout) and module.training and module.p > 0
