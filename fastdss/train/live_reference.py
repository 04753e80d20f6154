"""A reference that is asked at every step: the policy without its adapters, the policy as it was at the start, or
another model.

Columns of the data that were computed once before training make this unnecessary. The reverse KL, and data that is
generated during training, cannot have such columns.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch

from fastdss.errors import UserError, UserTypeError
from fastdss.models.causal_lm import logit_scale_and_softcap, vocabulary
from fastdss.models.head_call import current_head, head_is_adapted, head_may_have_bias, head_trains, original_head
from fastdss.models.probes import evaluating
from fastdss.models.split_params import is_split, layers_gathered, whole
from fastdss.upstream.accelerate import flattens_weights, splits_weights
from fastdss.upstream.torch import has_fsdp1

from .adapter_reference import StartCopy, adapter_off_is_not_the_start, bare_peft, without_adapter
from .enable import bare_model, dss_config, enable_dss

_log = logging.getLogger(__name__)


class LiveReference:
    """Computes the reference's hidden states for the batch that the policy is about to see.

    source: "adapter" (the policy with its adapters off), the ``StartCopy`` of its weights, or another model.
    """

    def __init__(self, source: Literal["adapter"] | StartCopy | torch.nn.Module) -> None:
        self.source = source

    @classmethod
    def of(cls, ref_model: Any, model: Any, accelerator: Any, device: torch.device) -> LiveReference | None:
        """The reference that a trainer's ``ref_model`` means; raises an error where it cannot serve ``model``."""
        if ref_model is None:
            return None
        if ref_model == "adapter":
            if not hasattr(model, "disable_adapter"):
                raise UserTypeError(f"ref_model='adapter' needs a PEFT model, got {type(model).__name__}")
            return cls(_start(model, accelerator))
        if not isinstance(ref_model, torch.nn.Module):
            raise UserTypeError(f"ref_model: expected None, 'adapter' or a model, got {type(ref_model).__name__}")
        if bare_model(ref_model) is bare_model(model):
            raise UserError(
                "ref_model: expected another model than the one being trained: pass a copy, or 'adapter' with PEFT"
            )
        if has_fsdp1(ref_model) or any(hasattr(parameter, "full_tensor") for parameter in ref_model.parameters()):
            raise UserError(
                "ref_model: a sharded live reference is not supported: compute ref_logprobs once before training"
            )
        ours, theirs = vocabulary(bare_model(model)), vocabulary(bare_model(ref_model))
        config = dss_config(model)
        if ours != theirs and config is not None and config.needs_logits:
            raise UserError(
                f"ref_model: kl={str(config.kl)!r} compares whole vocabularies: expected {ours} tokens, got {theirs}; "
                "take k1, k2 or k3, or resize the reference too"
            )
        return cls(enable_dss(ref_model.requires_grad_(False).eval().to(device)))

    def needs_all_ranks(self, model: Any) -> bool:
        """Whether every rank must take part in the reference's forward, because the weights that it uses are split."""
        return is_split(self._module(model))

    @torch.no_grad()
    def answers(self, model: Any, inputs: Mapping[str, Any], labels: Any, accelerator: Any) -> dict[str, Any]:
        """The reference's part of a batch, as keywords of the policy's forward.

        They are its hidden states, and its head unless that is the policy's own, frozen and without adapters. Of a
        reference with another vocabulary, whose logits cannot be compared with the policy's one by one, they are the
        log-probabilities of the labels.
        """
        policy = not isinstance(self.source, torch.nn.Module)
        reference = self._module(model)
        bare = bare_model(reference)
        # In the policy's mixed precision: in another one equal models would differ, and the forward would be slower.
        with evaluating(reference), self._standing_in(model, accelerator), layers_gathered(bare):
            if not policy and vocabulary(bare) != vocabulary(bare_model(model)):
                return {"ref_logprobs": reference(**inputs, labels=labels, dss_ask="logprobs").logprobs}
            hidden = reference(**inputs, dss_ask="hidden").hidden
            answers = {"ref_hidden": hidden}
            if not policy or head_trains(bare) or head_is_adapted(bare):
                adapters_count = head_is_adapted(bare) and self.source != "adapter"
                weight, bias = current_head(bare) if adapters_count else original_head(bare)
                answers["ref_lm_head"] = weight = whole(weight, hidden.dtype).detach()
                if bias is not None:
                    answers["ref_bias"] = whole(bias, hidden.dtype).detach()
                elif head_may_have_bias(bare_model(model)):
                    answers["ref_bias"] = weight.new_zeros(weight.shape[0])
                answers["ref_logit_scale"], answers["ref_softcap"] = logit_scale_and_softcap(bare)
        return answers

    def _module(self, model: Any) -> Any:
        return self.source if isinstance(self.source, torch.nn.Module) else model

    def _standing_in(self, model: Any, accelerator: Any) -> AbstractContextManager[Any]:
        """Makes the module the reference: restores its weights or switches its adapters off. Another model needs the
        trainer's autocast; the policy brings its own, with which accelerate wrapped its forward."""
        if isinstance(self.source, StartCopy):
            return self.source.restored()
        if self.source == "adapter":
            return without_adapter(bare_peft(model))
        precision: AbstractContextManager[Any] = accelerator.autocast()
        return precision


def _start(model: Any, accelerator: Any) -> Literal["adapter"] | StartCopy:
    """What can stand for the policy as it was at the start: "adapter" if switching its adapters off gives that model,
    else a copy of its trainable weights."""
    peft_model, bare = bare_peft(model), bare_model(model)
    if flattens_weights(accelerator) and (head_trains(bare) or head_is_adapted(bare)):
        raise UserError(
            "ref_model='adapter': FSDP's first version flattens the reference's own head, which differs from the "
            "policy's here: take fsdp_version 2, keep the head out of training, or compute ref_logprobs once before"
        )
    why = adapter_off_is_not_the_start(peft_model, bare)
    if why is None:
        return "adapter"
    if splits_weights(accelerator):
        raise UserError(
            f"ref_model='adapter': {why}, so the reference is a copy of the model before training, and none can be "
            "kept of weights that are split over ranks: compute ref_logprobs once before training"
        )
    start = StartCopy(peft_model)
    _log.warning(
        "ref_model='adapter': %s; the reference is the model as it is now, a copy of the %d numbers that train",
        why,
        start.size,
    )
    return start
