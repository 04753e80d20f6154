"""The matrix by which an output head multiplies: its weight as it is, dequantised, or with PEFT's adapters; of a head
whose class has a forward of its own (Dory scales each word's logit), what that forward makes of it.

An adapter of low rank stays a sum of weights, ``W + s B A``. Where dropout stands before it, no single weight exists:
``[h, s A drop(h)] @ [W, B].T`` has one, with a few more columns than ``h``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastdss.errors import UserError, UserTypeError
from fastdss.upstream import bitsandbytes, deepspeed, peft, torchao


class Applied(NamedTuple):
    """The head's logits are ``hidden @ weight.T + bias``; an adapter may have widened the hidden states."""

    hidden: Tensor  # [..., D or more]
    weight: Tensor  # [V, D or more]
    bias: Tensor | None  # [V]


def applied(layer: Any, hidden: Tensor) -> Applied:
    """The head ``layer`` on ``hidden: [..., D]``; gradients reach all of its parameters that train.

    Raises ``TypeError`` for one that is not linear, ``ValueError`` for an adapter that is merged and switched off.
    """
    return _with_lora(layer, hidden) if peft.is_low_rank(layer) else Applied(hidden, *_matrix(layer, hidden))


def matrix_in_use(layer: Any, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """The weight [V, D] and the bias [V] of the head ``layer``, adapters added in; gradients reach whatever they are
    made of. dtype: that of hidden states.

    Raises as ``applied``; and ``ValueError`` where dropout stands before an adapter, since no single weight exists.
    """
    base = peft.base_of(layer)
    width = base.in_features if hasattr(base, "in_features") else plain_weight(base)[0].shape[1]
    device = next(layer.parameters()).device
    hidden = torch.linspace(-1, 1, width, dtype=dtype, device=device)[None]
    states, weight, bias = applied(layer, hidden)
    if states is not hidden:
        raise UserError(
            "the output head's adapter has dropout, with which no single weight exists: expected lora_dropout=0 or a "
            "model in eval mode; enable_dss trains such a head"
        )
    return weight, bias


def _matrix(layer: Any, hidden: Tensor) -> tuple[Tensor, Tensor | None]:
    """The weight and the bias of a layer without LoRA; ``hidden``: some of its inputs."""
    if peft.is_wrapper(layer) or _has_own_forward(layer):
        return _by_unit_vectors(layer, hidden)
    return plain_weight(layer)


def _has_own_forward(layer: Any) -> bool:
    """Whether the layer may do more than multiply by its weight; a quantised layer only dequantises besides."""
    return type(layer).forward is not nn.Linear.forward and not bitsandbytes.is_layer(layer)


def plain_weight(layer: Any) -> tuple[Tensor, Tensor | None]:
    """The weight and the bias of a linear layer; weights that bitsandbytes or torchao quantised, dequantised."""
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, Tensor) or not (bitsandbytes.is_matrix(weight) or deepspeed.is_empty_share(weight)):
        raise UserTypeError(f"expected a linear output head, got {type(layer).__name__}")
    if torchao.is_quantised(weight):  # its dtype is a floating one, yet it has no operators but torchao's own
        weight = torchao.dequantised(weight)
    elif not weight.is_floating_point():
        if not bitsandbytes.is_quantised(weight):
            raise UserTypeError(f"expected an output head in floating point, got {weight.dtype}: do not quantise it")
        weight = bitsandbytes.dequantised(layer)
    return weight, getattr(layer, "bias", None)


def _with_lora(layer: Any, hidden: Tensor) -> Applied:
    """The base weight and the adapters as one wider product, since the base weight alone would leave them out."""
    inner = peft.base_of(layer)
    base = _matrix(inner, hidden)
    if peft.is_merged(layer) and peft.is_off(layer):
        raise UserError("the output head's adapter is merged and switched off: unmerge it first")
    if peft.is_merged(layer) or peft.is_off(layer):
        return Applied(hidden, *base)
    (weight, bias), terms = base, [(hidden, base[0])]  # the products of these and the bias are the logits so far
    for part in peft.low_rank_parts(layer):
        dropped = part.dropout(hidden) if peft.drops(part.dropout) else None
        if part.kind not in ("LoRA", "DoRA"):
            raise UserTypeError(
                f"an adapter on the output head: expected LoRA or DoRA, got {part.kind} ({part.name!r}): take "
                "the head out of target_modules or put it in modules_to_save"
            )
        if part.magnitude is not None:
            terms, bias = _with_dora(
                part, plain_weight(inner) if _has_own_forward(inner) else base, terms, bias, dropped
            )
        elif dropped is not None:
            down = nn.functional.linear(dropped.to(part.down.weight.dtype), part.down.weight)
            terms.append((part.scaling * down.to(hidden.dtype), part.up.weight.to(weight.dtype)))
        else:
            terms[0] = hidden, terms[0][1] + part.delta().to(weight.dtype)
        if part.has_bias:
            bias = part.scaling * part.up.bias if bias is None else bias + part.scaling * part.up.bias
    if len(terms) == 1:
        return Applied(hidden, terms[0][1], bias)
    states, weights = zip(*terms, strict=True)
    return Applied(torch.cat(states, -1), torch.cat(weights, 1), bias)


def _with_dora(
    part: peft.LowRank,
    stored: tuple[Tensor, Tensor | None],
    terms: list[tuple[Tensor, Tensor]],
    bias: Tensor | None,
    dropped: Tensor | None,
) -> tuple[list[tuple[Tensor, Tensor]], Tensor | None]:
    """The terms of the logits and their bias after DoRA: ``m (W + s B A) / |W + s B A|`` in place of ``W``.

    ``stored`` is the wrapped layer's own weight and bias, which PEFT reads, whatever the layer's forward makes of them.
    """
    own, own_bias = stored
    delta = part.delta().to(own.dtype)
    assert part.magnitude is not None
    factor = part.magnitude[:, None] / torch.linalg.norm(own + delta, dim=1, keepdim=True).detach()
    if dropped is not None:
        return [*terms, (dropped, factor * (own + delta) - own)], bias
    (hidden, weight), *others = terms  # PEFT scales what it has so far but the stored bias: earlier adapters too
    terms = [(hidden, factor * (weight + delta)), *((states, factor * columns) for states, columns in others)]
    if bias is not None:
        kept = torch.zeros_like(bias) if own_bias is None else own_bias
        bias = kept + factor[:, 0] * (bias - kept)
    return terms, bias


def _by_unit_vectors(layer: Any, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """The matrix of any linear layer, found by applying it to unit vectors; it costs as much as D more tokens."""
    if any(peft.drops(module) for module in layer.modules()):
        raise UserTypeError(
            f"{type(layer).__name__} on the output head has dropout: set it to 0, take the head out of "
            "target_modules or put it in modules_to_save"
        )
    width = hidden.shape[-1]

    def product(states: Tensor) -> Tensor:  # by the class's forward: the instance's own is replaced while the loss runs
        found: Tensor = type(layer).forward(layer, states)
        return found

    bias = product(hidden.new_zeros((1, width)))
    made = product(torch.eye(width, dtype=hidden.dtype, device=hidden.device)) - bias
    probe = hidden.detach().reshape(-1, width)[:2]
    known = probe.to(made.dtype) @ made
    eps = max(torch.finfo(made.dtype).eps, torch.finfo(hidden.dtype).eps)
    off = (product(probe) - bias - known).abs().max()
    if off > 64 * eps * known.abs().max().clamp(min=1):
        raise UserTypeError(f"expected a linear output head, got {type(layer).__name__}, off by {off.item():.2g}")
    return made.T.to(hidden.dtype), bias[0].to(hidden.dtype)
