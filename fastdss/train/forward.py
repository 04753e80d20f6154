"""The forward of a model with DSS on: the model's own, with the shaped loss where the model would compute logits."""

from __future__ import annotations

import functools
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from transformers.utils import ModelOutput

from fastdss.errors import UserError, UserTypeError
from fastdss.loss.functional import LiveRows, dss_loss, forward_reference, token_logprobs
from fastdss.loss.objective import KL
from fastdss.models.causal_lm import LMHead
from fastdss.models.experts import coefficient, mask_within, tell_unbalanced
from fastdss.models.head_call import Operation, head_is_adapted, head_trains, through_head
from fastdss.models.packing import is_packed, packed_inputs
from fastdss.upstream.transformers import CACHES

from .config import DSSConfig
from .example import COLUMNS

CONFIG = "_dss_config"
NEEDED = "_dss_needed"  # the name of an input without which the model's tokens would see later ones
_ASK = ("loss", "logprobs", "reference", "hidden", "logits")


@dataclass
class DSSOutput(ModelOutput):
    """What a model with DSS switched on returns when it is given ``token_weights``.

    ``loss: []`` carries the gradient and is ``ce + kl`` (plus the MoE auxiliary loss); ``ce: []`` and ``kl: []`` are
    its two parts. ``logprobs: [B, T]`` holds log p(label), aligned with ``labels``, 0 where no label counts. With label
    smoothing the loss does not compute it: it is then None while gradients are on, and without gradients it costs one
    more product with the head.
    ``entropy: [B, T]``, in nats, and ``correct: [B, T]`` are aligned likewise, and filled where ``token_stats`` is set:
    the entropy of the distribution that predicted the label, and whether the label was its likeliest word.
    ``hidden``, ``logits``, ``ref_slope`` and ``ref_offset`` are filled only where ``dss_ask`` asks for them.
    """

    loss: Tensor | None = None
    ce: Tensor | None = None
    kl: Tensor | None = None
    logprobs: Tensor | None = None
    aux_loss: Tensor | None = None
    hidden: Tensor | None = None
    logits: Tensor | None = None
    ref_slope: Tensor | None = None
    ref_offset: Tensor | None = None
    entropy: Tensor | None = None
    correct: Tensor | None = None


class Given(NamedTuple):
    """What the forward was given besides the model's own inputs; see ``enable_dss``."""

    token_weights: Tensor | None = None
    ref_logprobs: Tensor | None = None
    ref_slope: Tensor | None = None
    ref_offset: Tensor | None = None
    ref_hidden: Tensor | None = None
    ref_lm_head: Tensor | None = None
    ref_bias: Tensor | None = None
    ref_logit_scale: float | None = None
    ref_softcap: float | Literal["same"] | None = "same"
    rows: LiveRows | Tensor | None = None
    token_stats: bool = False

    def by_slope(self, config: DSSConfig) -> bool:
        """Whether the KL is computed from ``ref_slope``."""
        forward = config.needs_logits and config.kl == KL.FORWARD
        return forward and self.ref_slope is not None and self.ref_hidden is None

    def refuse_without_weights(self) -> None:
        stray = [name for name, value in self._asdict().items() if value is not self._field_defaults[name]]
        if stray:
            raise UserError(f"{', '.join(stray)} given without token_weights")


def shaped_forward(
    model: Any, args: tuple[Any, ...], kwargs: dict[str, Any], given: Given, ask: str, real_tokens: int | None
) -> DSSOutput:
    config: DSSConfig | None = model.__dict__.get(CONFIG)
    if config is None:
        raise UserError("DSS is switched off in this model: call enable_dss first")
    if ask not in _ASK:
        raise UserError(f"dss_ask: expected one of {', '.join(_ASK)}, got {ask!r}")
    if len(args) > 1:
        raise UserTypeError(
            f"with token_weights, pass all inputs but input_ids by keyword (got {len(args)} positional)"
        )
    labels, num_items_in_batch = kwargs.pop("labels", None), kwargs.pop("num_items_in_batch", None)
    _refuse_inputs(model, kwargs, labels, given, ask)
    if is_packed(kwargs):
        kwargs = packed_inputs(model, functools.partial(head_states, model), kwargs)
    if ask == "hidden":
        return DSSOutput(hidden=head_states(model, *args, **kwargs))
    if ask == "logits":
        return DSSOutput(logits=_run(model, lambda hidden, head: (head.logits(hidden),), args, kwargs)[0][0])
    if ask == "logprobs":
        return DSSOutput(logprobs=_run(model, _logprobs(config, labels, given.rows), args, kwargs)[0][0])
    if ask == "reference":
        logprobs, slope, offset = _run(model, _reference(config, labels, given.rows), args, kwargs)[0]
        return DSSOutput(logprobs=logprobs, ref_slope=slope, ref_offset=offset)
    if config.needs_reference and given.ref_logprobs is None and given.ref_hidden is None and given.ref_slope is None:
        raise UserError(
            "token_weights need a reference: ref_logprobs (reference_logprobs computes them once) or ref_hidden, "
            "in DSSTrainer a column ref_logprobs or ref_model="
        )
    if given.by_slope(config):
        refuse_another_head(model)
    if given.ref_hidden is not None and given.ref_lm_head is None and head_trains(model):
        raise UserError("ref_hidden needs ref_lm_head where the policy's head is trained, got None")
    operation = _loss(config, labels, given, num_items_in_batch)
    (loss, ce, kl, logprobs, *stats), aux_loss = _run(model, operation, args, kwargs, real_tokens)
    entropy, correct = stats or (None, None)
    if aux_loss is not None:
        loss = loss + coefficient(model) * aux_loss.to(loss.device)
    smoothed = config.label_smoothing and torch.is_grad_enabled()  # a smoothed term is no log-probability of the label
    parts = {"ce": ce, "kl": kl, "logprobs": None if smoothed else logprobs, "entropy": entropy, "correct": correct}
    return DSSOutput(loss=loss, aux_loss=aux_loss, **parts)


def refuse_another_head(model: Any) -> None:
    """Raise ``UserError`` where the policy's head is not the reference's, or will not be once it is trained: the
    columns ``ref_slope`` and ``ref_offset`` were computed with the reference's head."""
    if head_trains(model) or head_is_adapted(model):
        why = "is trained" if head_trains(model) else "has an adapter"
        raise UserError(
            f"ref_slope: expected a frozen output head without adapters, got one that {why}: the column is of the "
            "reference's own head; freeze it, or drop the column and take the reference live (ref_model=, ref_hidden)"
        )


def _refuse_inputs(model: Any, kwargs: dict[str, Any], labels: Tensor | None, given: Given, ask: str) -> None:
    if ask in ("loss", "logprobs", "reference") and labels is None:
        raise UserError("token_weights need labels of the same shape")
    if kwargs.pop("return_dict", True) is False or not _is_zero(kwargs.pop("logits_to_keep", 0)):
        raise UserError("return_dict=False and logits_to_keep have no meaning with token_weights")
    if kwargs.get("shift_labels") is not None:
        raise UserError("shift_labels: expected none with token_weights: labels and weights are shifted here, together")
    if not getattr(model.config, "return_dict", True):
        raise UserError("config.return_dict: expected True, got False: parts of the model would return tuples")
    needed = model.__dict__.get(NEEDED)
    if needed is not None and kwargs.get(needed) is None:
        raise UserError(
            f"{type(model).__name__} needs {needed}, 0 in the prompt and 1 in what it writes: expected the column, got "
            "none; without it each token sees those after it"
        )
    weights = given.token_weights
    if weights is not None and not weights.is_floating_point():
        raise UserTypeError(f"token_weights: expected floating point, got {weights.dtype}: pass token_weights.float()")
    longer = weights is not None and labels is not None and labels.shape[-1] > weights.shape[-1]
    cached = any(kwargs.get(name) is not None for name in CACHES)
    if cached or (longer and kwargs.get("inputs_embeds") is not None):
        raise UserError(
            "past_key_values, or inputs_embeds longer than token_weights: expected neither; PEFT's prompt learning "
            "adds tokens that have no weight: use LoRA or full fine-tuning"
        )


def _run(
    model: Any, operation: Operation, args: tuple[Any, ...], kwargs: dict[str, Any], real_tokens: int | None = None
) -> tuple[tuple[Tensor, ...], Tensor | None]:
    """Run the model's own forward with ``operation`` in place of its head; returns the operation's results, and the MoE
    auxiliary loss where the model computes one."""
    inputs = kwargs | {"use_cache": False}
    routed = _routes(model, inputs)
    if not hasattr(type(model), "_dss_original"):
        raise UserTypeError(f"{type(model).__name__} lost what enable_dss put on it: call enable_dss again")
    forward = type(model)._dss_original.forward
    with ExitStack() as stack:
        mask = inputs.get("attention_mask")
        if routed and (real_tokens is not None or not (mask is None or (isinstance(mask, Tensor) and mask.ndim == 2))):
            stack.enter_context(mask_within(model, mask))
            inputs["attention_mask"] = _shown(args, inputs, real_tokens)
        results, output = through_head(model, operation, lambda: forward(model, *args, **inputs))
    if getattr(output, "loss", None) is not None:  # of other columns than labels: GraniteDocling's router_labels, say
        raise UserError(
            f"{type(model).__name__} computed a loss of its own beside that of the labels, which the shaped loss would "
            f"leave out: expected none, got {', '.join(sorted(inputs))} as its inputs: drop the column that it is of"
        )
    aux_loss = getattr(output, "aux_loss", None) if routed else None
    if routed and aux_loss is None:
        tell_unbalanced(model)
    return results, aux_loss


def _shown(args: tuple[Any, ...], inputs: dict[str, Any], real_tokens: int | None) -> Tensor | None:
    """``[1, T]``: 1 at the tokens of a packed row, 0 at the padding at its end. None without such padding."""
    if real_tokens is None:
        return None
    ids: Tensor = args[0] if args else inputs.get("input_ids", inputs["position_ids"])
    return (torch.arange(ids.shape[-1], device=ids.device) < real_tokens).long()[None]


def head_states(model: Any, *args: Any, **inputs: Any) -> Tensor:
    """The hidden states ``[B, T, D]`` that reach the head, with the inputs as they are given."""
    states: Tensor = _run(model, lambda hidden, _: (hidden,), args, inputs)[0][0]
    return states


def _loss(config: DSSConfig, labels: Tensor, given: Given, num_items_in_batch: Tensor | int | None) -> Operation:
    """The whole DSS loss as an operation on hidden states and head: ``(loss, ce, kl, logprobs)``; with ``token_stats``
    also ``entropy`` and ``correct``."""
    weights, ref_hidden = given.token_weights, given.ref_hidden
    ref_lm_head, ref_bias = given.ref_lm_head, given.ref_bias
    assert weights is not None

    def operation(hidden: Tensor, head: LMHead) -> tuple[Tensor, ...]:
        here = hidden.device
        options = _options(config, head, given.rows, here)
        options |= {"kl": config.kl, "kl_scale": config.kl_scale, "grad_tol": config.grad_tol}
        options |= {"label_smoothing": config.label_smoothing, "dft": config.dft, "csft_beta": config.csft_beta}
        options |= {"token_stats": given.token_stats}
        if ref_hidden is not None:
            if ref_lm_head is not None and ref_bias is None and head.bias is not None:
                raise UserError("ref_lm_head comes with ref_bias where the head has a bias, got None")
            weight, bias = head.weight.detach(), head.bias
            if ref_lm_head is not None:
                weight, bias = _to(ref_lm_head, here), _to(ref_bias, here)
            options |= {"ref_hidden": ref_hidden.to(here), "ref_lm_head": weight, "ref_bias": bias}
            options |= {"ref_logit_scale": given.ref_logit_scale, "ref_softcap": given.ref_softcap}
        elif not config.needs_reference:  # no term compares with one, but dss_loss wants one: any will do
            options |= {"ref_logprobs": torch.zeros_like(weights, device=here), "kl": "k2"}
        elif given.by_slope(config):
            options |= {"ref_slope": _slopes(given.ref_slope, hidden), "ref_offset": _to(given.ref_offset, here)}
        else:
            options |= {"ref_logprobs": _to(given.ref_logprobs, here)}
        shaped = dss_loss(
            hidden, head.weight, labels.to(here), weights.to(here), num_items_in_batch=num_items_in_batch, **options
        )
        stats = [_as_labels(t) for t in (shaped.token_entropy, shaped.token_correct) if t is not None]
        logprobs = _as_labels(-shaped.token_ce)
        if config.label_smoothing and not torch.is_grad_enabled():
            logprobs = _logprobs(config, labels, given.rows)(hidden, head)[0]
        return shaped.loss, shaped.ce, shaped.kl, logprobs, *stats

    return operation


def _options(config: DSSConfig, head: LMHead, rows: Any, device: torch.device) -> dict[str, Any]:
    return {
        "bias": head.bias,
        "shift": True,
        "logit_scale": head.logit_scale,
        "softcap": head.softcap,
        "rows": _to(rows, device),
        "backend": config.backend,
        "chunk_bytes": config.chunk_bytes,
    }


def _logprobs(config: DSSConfig, labels: Tensor, rows: LiveRows | Tensor | None) -> Operation:
    def operation(hidden: Tensor, head: LMHead) -> tuple[Tensor, ...]:
        options = _options(config, head, rows, hidden.device)
        return (_as_labels(token_logprobs(hidden, head.weight, labels.to(hidden.device), **options)),)

    return operation


def _reference(config: DSSConfig, labels: Tensor, rows: LiveRows | Tensor | None) -> Operation:
    """What the label forms and the forward KL need of a reference: ``(logprobs, ref_slope, ref_offset)``."""

    def operation(hidden: Tensor, head: LMHead) -> tuple[Tensor, ...]:
        options = _options(config, head, rows, hidden.device)
        dtype = COLUMNS["ref_slope"][0]  # as the column stores it: the offset makes up for the slope's rounding
        reference = forward_reference(hidden, head.weight, labels.to(hidden.device), dtype=dtype, **options)
        slope = torch.nn.functional.pad(reference.slope[..., :-1, :], (0, 0, 1, 0))
        return _as_labels(reference.logprobs), slope, _as_labels(reference.offset)

    return operation


def _slopes(slope: Tensor | None, hidden: Tensor) -> Tensor:
    """``ref_slope`` on the model's device. In a batch without any label it has width 0, since the collator then does
    not know the model's width; zeros of that width stand in."""
    assert slope is not None
    return slope.to(hidden.device) if slope.shape[-1] else hidden.new_zeros(hidden.shape)


def _as_labels(terms: Tensor) -> Tensor:
    """Per-token terms ``[B, T]`` at the positions that predict, moved to the positions of their labels."""
    return torch.nn.functional.pad(terms[..., :-1], (1, 0))


def _to(value: Any, device: torch.device) -> Any:
    return None if value is None else value.to(device)


def live(rows: LiveRows | Tensor | None, kl_rows: int | None) -> LiveRows | Tensor | None:
    """``rows`` as the loss takes them; a collated batch holds the index and the count of a ``LiveRows`` separately."""
    return rows if kl_rows is None or rows is None or isinstance(rows, LiveRows) else LiveRows(rows, kl_rows)


def _is_zero(logits_to_keep: Any) -> bool:
    return isinstance(logits_to_keep, int) and logits_to_keep == 0


def _routes(model: Any, kwargs: dict[str, Any]) -> bool:
    """Whether the model adds an MoE auxiliary loss, as its own forward would decide."""
    asked = kwargs.pop("output_router_logits", None)
    if asked is None:
        asked = getattr(model.config.get_text_config(decoder=True), "output_router_logits", False)
    if asked:
        kwargs["output_router_logits"] = True
    return bool(asked)
