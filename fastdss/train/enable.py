"""Switch dynamic safety shaping on in a causal LM that some trainer already trains.

``enable_dss`` changes the class of one instance to a subclass with the same name whose ``forward`` knows
``token_weights``. A class, not a patched attribute: bound methods, ``deepcopy``, ``pickle``, ``save_pretrained``,
accelerate's wrappers and FSDP2's own change of class all go on working.
"""

from __future__ import annotations

import functools
import inspect
import sys
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from fastdss.errors import UserError, UserTypeError
from fastdss.loss.functional import Backend, LiveRows, dss_loss, token_logprobs
from fastdss.loss.objective import KLName
from fastdss.models.causal_lm import LMHead, backbone, some_tokens
from fastdss.models.head_call import Operation, call_head, head_trains
from fastdss.models.split_params import layers_gathered

from .config import DSSConfig

Model = TypeVar("Model", bound=nn.Module)
_ASK = ("loss", "logprobs", "hidden", "logits")
_CONFIG = "_dss_config"


@dataclass
class DSSOutput(ModelOutput):
    """What a model with DSS switched on returns when it is given ``token_weights``.

    ``loss: []`` carries the gradient and is ``ce + kl`` (plus the MoE auxiliary loss); ``ce: []`` and ``kl: []`` are
    its two parts; ``logprobs: [B, T]`` holds log p(label), aligned with ``labels``, 0 where no label counts.
    ``hidden`` and ``logits`` are filled only where ``dss_ask`` asks for them.
    """

    loss: Tensor | None = None
    ce: Tensor | None = None
    kl: Tensor | None = None
    logprobs: Tensor | None = None
    aux_loss: Tensor | None = None
    hidden: Tensor | None = None
    logits: Tensor | None = None


def enable_dss(
    model: Model,
    config: DSSConfig | None = None,
    *,
    kl: KLName | None = None,
    kl_scale: float | None = None,
    backend: Backend | None = None,
    chunk_bytes: int | None = None,
    filter_eps: float | None = None,
    check: bool = True,
) -> Model:
    """``model(input_ids, labels=labels, token_weights=w, ref_logprobs=r).loss`` becomes the DSS loss of ``dss_loss``.

    Per response token: ``w * CE + (1 - w) * kl_scale * KL``, summed and divided by ``num_items_in_batch``, or by the
    number of labels that count. The forward then takes, all optional and by keyword:

    - ``token_weights: [B, T]`` STAR scores in [0, 1]. Without them the model behaves as it did before.
    - ``ref_logprobs: [B, T]`` the reference's log p(label) (for k1, k2, k3), or ``ref_hidden: [B, T, D]``, the
      reference's last hidden states, with ``ref_lm_head: [V, D]`` where the policy's own head is being trained, and its
      ``ref_bias: [V]`` where the head has one. ``ref_logit_scale`` and ``ref_softcap`` where they are not the policy's.
    - ``num_items_in_batch`` the divisor over all micro-batches of a step.
    - ``rows`` what ``live_rows(labels, token_weights, kl_scale=…, shift=True)`` found on the host, or its ``index``
      with ``kl_rows=`` its count (``DSSCollator`` makes them): spares the loss a synchronisation.
    - ``dss_ask`` one of "loss" (default), "logprobs", "hidden", "logits": return only that, without a loss.

    ``labels``, ``token_weights`` and ``ref_logprobs`` are aligned position by position with ``input_ids``
    and shifted inside, as transformers does. No logits are built. The output is a ``DSSOutput``.

    model: a causal LM of transformers, bare or within PEFT, DDP or ``torch.compile``; it is changed in place and
    returned. config: what holds for the whole run, see ``DSSConfig``; ``kl``, ``kl_scale``, ``backend``,
    ``chunk_bytes`` and ``filter_eps`` are shortcuts to its fields. Calling again sets all of them anew.
    check: compare a few tokens' logits with the model's own; needs real weights (not the meta device).

    Raises ``TypeError`` for models and heads fastdss cannot read, prompt learning, DataParallel and tensor parallelism,
    ``ValueError`` where the logits differ. Source: STAR-DSS, arXiv 2505.17196, equation 3.
    """
    config = (config or DSSConfig()).with_said(
        kl=kl, kl_scale=kl_scale, backend=backend, chunk_bytes=chunk_bytes, filter_eps=filter_eps
    )
    bare = bare_model(model)
    if any(cls.__name__ == "DeepSpeedEngine" for cls in type(bare).__mro__):
        raise UserTypeError("expected the model inside the engine, got a DeepSpeedEngine: pass engine.module")
    backbone(bare)
    ranks = getattr(bare, "tp_size", None) or 1
    if ranks > 1:
        raise UserTypeError(
            f"tensor parallelism splits this {type(bare).__name__} over {ranks} ranks, its head too: call dss_loss "
            "yourself with the local rows of the head and group=, or shard by FSDP2 or ZeRO-3 instead"
        )
    if isinstance(bare, _DSSModel):
        bare.__dict__[_CONFIG] = config
        return model
    if "forward" in bare.__dict__ and "_old_forward" not in bare.__dict__:
        raise UserError(
            f"the forward of this {type(bare).__name__} was already replaced on the instance "
            f"(by {bare.forward!r}): enable DSS before that"
        )
    original: Any = type(bare)
    bare.__dict__[_CONFIG] = config
    _set_class(bare, _dss_class(original))
    if check:
        try:
            _check(model, bare)
        except BaseException:
            _restore(bare, original)
            raise
    return model


def disable_dss(model: Model) -> Model:
    """Undo ``enable_dss``; does nothing where it was not called. Returns the model."""
    bare = bare_model(model)
    if type(bare).__dict__.get("_dss_original") is not None:
        _restore(bare, type(bare)._dss_original)  # type: ignore[attr-defined]
    else:  # FSDP2 has put its own class on top: the subclass stays and passes everything through
        bare.__dict__.pop(_CONFIG, None)
    return model


def dss_config(model: Any) -> DSSConfig | None:
    """The configuration that ``enable_dss`` left on the model, or None where DSS is off."""
    return bare_model(model).__dict__.get(_CONFIG)


def bare_model(model: Any) -> Any:
    """The transformers model within DDP, ``torch.compile`` and PEFT.

    Raises ``TypeError`` for DataParallel and for PEFT's prompt learning, whose extra tokens would misalign weights.
    """
    while True:
        if isinstance(model, nn.DataParallel):
            raise UserTypeError(
                "DataParallel is not supported: use DistributedDataParallel (torchrun, accelerate launch)"
            )
        if isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        elif "_orig_mod" in getattr(model, "_modules", {}):
            model = model._orig_mod
        elif hasattr(model, "get_base_model"):
            if getattr(model, "active_peft_config", None) is not None and model.active_peft_config.is_prompt_learning:
                raise UserTypeError(
                    "PEFT's prompt learning adds tokens that have no weight: use LoRA or full fine-tuning"
                )
            model = model.get_base_model()
        else:
            return model


class _DSSModel:
    """Marks the subclasses made here, and pickles them as "the original class, with DSS on"."""

    _dss_original: type

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced = super().__reduce_ex__(protocol)
        original = type(self).__dict__.get("_dss_original")
        return reduced if original is None else (_new, (original,), *reduced[2:])


def _new(original: type) -> Any:
    made: Any = _dss_class(original)
    return made.__new__(made)


@functools.cache
def _dss_class(original: type) -> type:
    def forward(
        self: Any,
        *args: Any,
        token_weights: Tensor | None = None,
        ref_logprobs: Tensor | None = None,
        ref_hidden: Tensor | None = None,
        ref_lm_head: Tensor | None = None,
        ref_bias: Tensor | None = None,
        ref_logit_scale: float | None = None,
        ref_softcap: float | Literal["same"] | None = "same",
        rows: LiveRows | Tensor | None = None,
        kl_rows: int | None = None,
        dss_ask: str | None = None,
        **kwargs: Any,
    ) -> Any:
        reference = ref_logprobs, ref_hidden, ref_lm_head, ref_bias, ref_logit_scale, ref_softcap
        given = _Given(token_weights, *reference, _live(rows, kl_rows))
        if dss_ask is None and token_weights is None:
            given.refuse_without_weights()
            return original.forward(self, *args, **kwargs)  # type: ignore[attr-defined]
        return _shaped(self, args, kwargs, given, "loss" if dss_ask is None else dss_ask)

    own = inspect.signature(original.forward)  # type: ignore[attr-defined]
    forward.__signature__ = _merged(own, inspect.signature(forward))  # type: ignore[attr-defined]
    forward.__doc__ = original.forward.__doc__  # type: ignore[attr-defined]
    members = {
        "forward": forward,
        "_dss_original": original,
        "__module__": original.__module__,
        "__qualname__": original.__qualname__,
        "__doc__": original.__doc__,
    }
    return type(original.__name__, (_DSSModel, original), members)


def _merged(own: inspect.Signature, ours: inspect.Signature) -> inspect.Signature:
    """The model's own parameters, then ours by keyword: trainers read from it which columns to keep."""
    keyword = inspect.Parameter.KEYWORD_ONLY
    added = [parameter for parameter in ours.parameters.values() if parameter.kind is keyword]
    kept = list(own.parameters.values())
    last = [kept.pop()] if kept and kept[-1].kind is inspect.Parameter.VAR_KEYWORD else []
    return own.replace(parameters=[*kept, *added, *last])


class _Given(NamedTuple):
    token_weights: Tensor | None = None
    ref_logprobs: Tensor | None = None
    ref_hidden: Tensor | None = None
    ref_lm_head: Tensor | None = None
    ref_bias: Tensor | None = None
    ref_logit_scale: float | None = None
    ref_softcap: float | Literal["same"] | None = "same"
    rows: LiveRows | Tensor | None = None

    def refuse_without_weights(self) -> None:
        stray = [name for name, value in self._asdict().items() if value is not self._field_defaults[name]]
        if stray:
            raise UserError(f"{', '.join(stray)} given without token_weights")


def _shaped(model: Any, args: tuple, kwargs: dict[str, Any], given: _Given, ask: str) -> DSSOutput:
    config: DSSConfig | None = model.__dict__.get(_CONFIG)
    if config is None:
        raise UserError("DSS is switched off in this model: call enable_dss first")
    if ask not in _ASK:
        raise UserError(f"dss_ask: expected one of {_ASK}, got {ask!r}")
    if len(args) > 1:
        raise UserTypeError(
            f"with token_weights, pass all inputs but input_ids by keyword (got {len(args)} positional)"
        )
    labels, num_items_in_batch = kwargs.pop("labels", None), kwargs.pop("num_items_in_batch", None)
    if ask in ("loss", "logprobs") and labels is None:
        raise UserError("token_weights need labels of the same shape")
    if kwargs.pop("return_dict", True) is False or not _is_zero(kwargs.pop("logits_to_keep", 0)):
        raise UserError("return_dict=False and logits_to_keep have no meaning with token_weights")
    kwargs["use_cache"] = False
    routed = _routes(model, kwargs)
    outputs = backbone(model)(*args, **kwargs)
    hidden = outputs.last_hidden_state
    if ask == "hidden":
        return DSSOutput(hidden=hidden)
    if ask == "logits":
        return DSSOutput(logits=call_head(model, lambda hidden, head: (head.logits(hidden),), hidden)[0])
    if ask == "logprobs":
        return DSSOutput(logprobs=call_head(model, _logprobs(config, labels, given.rows), hidden)[0])
    if config.kl_scale > 0 and given.ref_logprobs is None and given.ref_hidden is None:
        raise UserError(
            "token_weights need a reference: ref_logprobs (reference_logprobs computes them once) or ref_hidden, "
            "in DSSTrainer a column ref_logprobs or ref_model="
        )
    if given.ref_hidden is not None and given.ref_lm_head is None and head_trains(model):
        raise UserError("ref_hidden needs ref_lm_head where the policy's head is trained, got None")
    loss, ce, kl, logprobs = call_head(model, _loss(config, labels, given, num_items_in_batch), hidden)
    aux_loss = None
    if routed:
        aux_loss = _load_balancing(model, outputs.router_logits, kwargs.get("attention_mask"))
        loss = loss + model.router_aux_loss_coef * aux_loss.to(loss.device)
    return DSSOutput(loss=loss, ce=ce, kl=kl, logprobs=logprobs, aux_loss=aux_loss)


def _loss(config: DSSConfig, labels: Tensor, given: _Given, num_items_in_batch: Tensor | int | None) -> Operation:
    """The whole DSS loss as an operation on hidden states and head: ``(loss, ce, kl, logprobs)``."""
    weights, ref_logprobs, ref_hidden, ref_lm_head, ref_bias, ref_logit_scale, ref_softcap, rows = given
    assert weights is not None

    def operation(hidden: Tensor, head: LMHead) -> tuple[Tensor, ...]:
        here = hidden.device
        options = _options(config, head, rows, here)
        options |= {"kl": config.kl, "kl_scale": config.kl_scale, "filter_eps": config.filter_eps}
        options["num_items_in_batch"] = num_items_in_batch
        if ref_hidden is not None:
            if ref_lm_head is not None and (ref_bias is None) != (head.bias is None):
                raise UserError(f"ref_lm_head comes with ref_bias where the head has a bias, got {ref_bias}")
            own, other = (head.weight.detach(), head.bias), (_to(ref_lm_head, here), _to(ref_bias, here))
            weight, bias = own if ref_lm_head is None else other
            options |= {"ref_hidden": ref_hidden.to(here), "ref_lm_head": weight, "ref_bias": bias}
            options |= {"ref_logit_scale": ref_logit_scale, "ref_softcap": ref_softcap}
        elif config.kl_scale == 0:  # no KL term, so no reference: any will do
            options |= {"ref_logprobs": torch.zeros_like(weights, device=here), "kl": "k2"}
        else:
            options |= {"ref_logprobs": _to(ref_logprobs, here)}
        shaped = dss_loss(hidden, head.weight, labels.to(here), weights.to(here), **options)
        return shaped.loss, shaped.ce, shaped.kl, _as_labels(-shaped.token_ce)

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


def _as_labels(terms: Tensor) -> Tensor:
    """Per-token terms ``[B, T]`` at the positions that predict, moved to the positions of their labels."""
    return torch.nn.functional.pad(terms[..., :-1], (1, 0))


def _to(value: Any, device: torch.device) -> Any:
    return None if value is None else value.to(device)


def _live(rows: LiveRows | Tensor | None, kl_rows: int | None) -> LiveRows | Tensor | None:
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


def _load_balancing(model: Any, router_logits: Any, attention_mask: Tensor | None) -> Tensor:
    modules = [sys.modules.get(cls.__module__) for cls in type(model).__mro__]
    function = next((f for m in modules if (f := getattr(m, "load_balancing_loss_func", None)) is not None), None)
    missing = [n for n in ("num_experts", "num_experts_per_tok", "router_aux_loss_coef") if not hasattr(model, n)]
    if function is None or missing:
        raise UserTypeError(
            f"{type(model).__name__} computes its MoE auxiliary loss in a way fastdss does not know: "
            "set config.output_router_logits = False to train without it"
        )
    return function(router_logits, model.num_experts, model.num_experts_per_tok, attention_mask)


def _set_class(model: Any, cls: type) -> None:
    model.__class__ = cls
    if "_old_forward" in model.__dict__:  # accelerate's dispatch calls this one, wrapped in its device moves
        model.__dict__["_old_forward"] = cls.forward.__get__(model)  # type: ignore[attr-defined]
        functools.update_wrapper(model.__dict__["forward"], model.__dict__["_old_forward"])


def _restore(model: Any, original: type) -> None:
    model.__dict__.pop(_CONFIG, None)
    _set_class(model, original)


@torch.no_grad()
def _check(model: Any, bare: Any, atol: float = 1e-3) -> None:
    """Compare a few tokens' logits, by backbone and head as fastdss reads them, with the model's own."""
    embedding = bare.get_input_embeddings().weight
    if embedding.is_meta:
        raise UserError("the model is on the meta device: load its weights first, or pass check=False")
    ids = some_tokens(embedding.device)
    was_training = model.training
    model.eval()
    try:
        with layers_gathered(bare):
            own = model(input_ids=ids, use_cache=False).logits.float()
            ours = model(input_ids=ids, dss_ask="logits").logits.float()
    finally:
        model.train(was_training)
    error = (own - ours.to(own.device)).abs().max().item() if own.shape == ours.shape else float("inf")
    limit = max(atol, 4 * torch.finfo(embedding.dtype).eps) * max(1.0, own.abs().max().item())
    if not error <= limit:
        raise UserError(
            f"{type(bare).__name__} computes its logits in a way fastdss does not know: "
            f"expected {tuple(own.shape)} within {limit:.3g}, got {tuple(ours.shape)} off by {error:.3g}"
        )
