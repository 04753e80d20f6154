"""What ``enable_dss`` tries out on a few tokens, so that no class of transformers is trained on another loss unnoticed:
its logits, what stands between its head and them, its own loss, and whether its tokens see later ones."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fastdss.errors import UserError, UserTypeError
from fastdss.models.causal_lm import LMHead, measuring_scale, use_scale
from fastdss.models.experts import coefficient
from fastdss.models.inputs import input_names
from fastdss.models.probes import distance, evaluating, failing_as, other_ending, some_tokens
from fastdss.models.split_params import layers_gathered

from .forward import NEEDED, DSSOutput

_log = logging.getLogger(__name__)
_STEEP = 64.0  # the largest probed logit: far into any softcap in use (20 to 50), and its halves are exact in bf16
_LOSS_TOLERANCE = 1e-3  # the smallest known factor of an extra term, a z-loss of 1e-4, moves a first loss by more
Scale = tuple[float, float | None]


def check_forward(model: Any, bare: Any, atol: float = 1e-3) -> None:
    """Raise where fastdss does not compute the logits of a few tokens as the model itself does, where the class's own
    loss has more terms than their cross-entropy, or where a token sees later ones: its label would be among its inputs.

    model: ``bare`` or what wraps it.
    """
    layer = bare.get_input_embeddings()
    embedding = getattr(layer, "weight", None)
    if embedding is None:  # Musicgen has one for each codebook
        raise UserTypeError(f"{type(bare).__name__}: expected one embedding of tokens, got {type(layer).__name__}")
    if embedding.is_meta:
        raise UserError("the model is on the meta device: load its weights first, or pass check=False")
    ids = some_tokens(embedding.device)
    eps = torch.finfo(embedding.dtype).eps

    def logits(ids: Tensor, **inputs: Any) -> Tensor:
        output = model(input_ids=ids, **inputs)
        if "dss_ask" in inputs and not isinstance(output, DSSOutput):  # its unshaped loss would be trained unnoticed
            raise UserError(
                f"{type(model).__name__} calls the forward that this {type(bare).__name__} had before: something "
                "around it has kept that (PEFT's adaption prompt does); enable DSS on the bare model first"
            )
        found: Tensor = output.logits
        return found.float()

    with evaluating(model), layers_gathered(bare):
        with measuring_scale(bare) as candidates:
            with failing_as(
                lambda got: UserTypeError(
                    f"{type(bare).__name__} cannot be tried on a few tokens of text alone, so whether its loss would "
                    f"be right is not known: expected logits, got {got}"
                )
            ):
                own = logits(ids, use_cache=False, return_dict=True)
            limit = max(atol, 4 * eps) * max(1.0, own.abs().max().item())
            for candidate in _fitting(bare, ids, candidates, max(1e-4, 4 * eps)):
                use_scale(bare, candidate)
                ours = logits(ids, dss_ask="logits")
                off = (own - ours.to(own.device)).abs().max().item() if own.shape == ours.shape else float("inf")
                if off <= limit:
                    break
            else:
                raise _unknown_logits(bare, own, limit, ours, off)
        _check_own_loss(bare, ids)
        _check_causal(bare, logits, ids, ours, max(1e-5, 2 * eps))


def _unknown_logits(bare: Any, own: Tensor, limit: float, ours: Tensor, off: float) -> UserError:
    return UserError(
        f"{type(bare).__name__} computes its logits in a way fastdss does not know: "
        f"expected {tuple(own.shape)} within {limit:.3g}, got {tuple(ours.shape)} off by {off:.3g}"
    )


def _fitting(bare: Any, ids: Tensor, candidates: list[Scale], tolerance: float) -> list[Scale]:
    """Which of the candidates may stand between the model's head and its logits.

    The model runs with a ladder of numbers in place of its head's output. So all that the class does to its logits
    shows, word by word and far into a softcap, however small the logits of a model are that was just made.
    """
    ladders: list[Tensor] = []

    def instead(_: Any, __: Any, found: Tensor) -> Tensor:
        words = torch.arange(found.shape[-1], device=found.device)
        steps = (words * 37 + 11) % 257 / 128 - 1  # unlike at neighbouring words, and the same at hardly any two
        rows = [steps, -steps, steps / 2]
        ladders.append(torch.stack(rows).mul(2 * _STEEP).round().div(2).to(found.dtype).expand_as(found))
        torch.set_grad_enabled(True)  # until the forward ends: what trains behind the head then shows
        return ladders[-1].clone()  # classes change their logits in place

    head = bare.get_output_embeddings()
    if head is None:  # refused where it is looked for
        return candidates
    with head.register_forward_hook(instead), torch.no_grad():
        own = bare(input_ids=ids, use_cache=False, return_dict=True).logits
    if own.requires_grad:
        raise UserTypeError(
            f"{type(bare).__name__} changes its logits by a parameter that trains (a learned scale, say), which the "
            "shaped loss would leave as it is: freeze that parameter"
        )
    if len(ladders) != 1:  # a compiled forward runs no new hooks; a head called twice is refused where it is called
        return candidates
    fitting, errors = [], []
    for scale, softcap in candidates:
        expected = LMHead(ladders[0], None, scale, softcap).after_head(ladders[0].double())
        if own.shape != expected.shape:
            break
        error = (own.double() - expected).abs()
        errors.append(error.max().item())
        if bool((error <= tolerance * (1 + expected.abs())).all()):
            fitting.append((scale, softcap))
    if not fitting:
        raise _unknown_logits(bare, own, tolerance, ladders[0], min(errors, default=float("inf")))
    return fitting


def _check_own_loss(bare: Any, ids: Tensor) -> None:
    """Raise where the class adds a term to its own loss (a z-loss, say), which the shaped loss would leave out; warn
    where its own loss does not shift the labels, which the shaped loss does."""
    try:
        output = bare(input_ids=ids, labels=ids, use_cache=False, return_dict=True)
    except Exception:  # a class that computes no loss of these labels has none that could be left out
        return
    loss, logits = output.loss, output.logits
    if loss is None or loss.ndim or logits.shape[:2] != ids.shape:
        return
    if getattr(output, "aux_loss", None) is not None:
        loss = loss - coefficient(bare) * output.aux_loss.to(loss.device)
    labels = ids[0].to(logits.device)
    # Most classes compute their loss in single precision, older ones in the logits' own.
    found = [(name, kept[0]) for name, kept in (("shifted", logits[:, :-1]), ("unshifted", logits))]
    for name, kept in found:
        for given in (kept.float(), kept):
            plain = cross_entropy(given, labels[len(labels) - len(kept) :])
            if abs(loss - plain) <= _LOSS_TOLERANCE * max(1.0, abs(plain.item())):
                if name == "unshifted":
                    _tell_unshifted(bare)
                return
    plain = cross_entropy(logits[0, :-1].float(), labels[1:])
    raise UserError(
        f"{type(bare).__name__} adds a term to its loss beside the cross-entropy (expected {plain.item():.4g}, got "
        f"{loss.item():.4g}), which the shaped loss would leave out: set that term's coefficient in the config to 0 "
        "(z_loss_coefficient, say)"
    )


def _tell_unshifted(bare: Any) -> None:
    _log.warning(
        "%s does not shift labels in its own loss: shaped rows are shifted here, but rows without token_weights need "
        "labels that stand one place to the left",
        type(bare).__name__,
    )


def _check_causal(bare: Any, logits: Callable[..., Tensor], ids: Tensor, ours: Tensor, tolerance: float) -> None:
    """Raise where logits before the last token depend on it, unless ``token_type_ids`` tell the model what to hide."""
    other = other_ending(ids)

    def differs(first: Tensor, second: Tensor) -> bool:
        return distance(first[:, :-1], second[:, :-1]) > tolerance

    if not differs(ours, logits(other, dss_ask="logits")):
        return
    answer = {"token_type_ids": torch.ones_like(ids), "dss_ask": "logits"}
    takes_types = "token_type_ids" in input_names(bare)
    if takes_types and not differs(logits(ids, **answer), logits(other, **answer)):
        bare.__dict__[NEEDED] = "token_type_ids"  # PaliGemma: 0 in the prefix, 1 in the answer
        return
    raise UserTypeError(
        f"{type(bare).__name__} is no causal LM as it is configured: its tokens see those after them "
        "(is_decoder=False?), so it cannot be trained to predict them"
    )
