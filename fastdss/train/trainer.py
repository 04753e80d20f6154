"""Hugging Face's Trainer with dynamic safety shaping: reference, logging and evaluation."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer

from fastdss.errors import UserError, UserTypeError
from fastdss.models.causal_lm import logit_scale_and_softcap, vocabulary
from fastdss.models.experts import coefficient
from fastdss.models.head_call import current_head, head_is_adapted, head_trains, original_head
from fastdss.models.probes import evaluating
from fastdss.models.split_params import is_split, layers_gathered, whole

from .adapter_reference import StartCopy, adapter_off_is_not_the_start, bare_peft, without_adapter
from .agreement import agree_on_smoothing, agreed_config, enabled_init, fuses_head, without_smoother
from .collator import DSSCollator
from .config import DSSConfig
from .enable import bare_model, check_packing, dss_config, enable_dss
from .trainer_data import default_collator, known_reference, tell_unstopped, with_prepared

_log = logging.getLogger(__name__)
_EXACT = (
    "token_weights",
    "ref_logprobs",
    "ref_offset",
    "ref_slope",
)  # float inputs that mixed precision must not round
_SUMS = ("ce", "kl", "weight", "below", "labels", "aux", "batches")


class ShapedTraining:
    """What ``DSSTrainer`` and ``DSSSFTTrainer`` add to ``Trainer``; comes before it in the order of bases."""

    _dss_reference: Any = None
    _dss_own_mean = False  # the class divides its own loss by the labels of its own batch
    _dss_told_unshaped = False

    def _set_up_dss(self: Any, ref_model: Any) -> None:
        """After ``Trainer.__init__``: refuse what would be wrong, prepare the reference, start the sums."""
        args = self.args
        if self.compute_loss_func is not None:
            raise UserError(
                f"compute_loss_func never sees token_weights: leave it unset, got {self.compute_loss_func!r}"
            )
        agree_on_smoothing(self.model, args.label_smoothing_factor)
        if args.use_liger_kernel and fuses_head(args.liger_kernel_config):
            raise UserError(
                "use_liger_kernel replaces the model's forward and with it DSS: leave it False, or set "
                "liger_kernel_config={'fused_linear_cross_entropy': False, 'cross_entropy': False}, "
                f"got {args.liger_kernel_config!r}"
            )
        if args.n_gpu > 1:
            raise UserError(f"DataParallel over {args.n_gpu} GPUs is not supported: use torchrun or accelerate launch")
        parallel = getattr(self.accelerator, "parallelism_config", None)
        if parallel is not None and (parallel.cp_enabled or parallel.sp_enabled or parallel.tp_enabled):
            raise UserError("context, sequence and tensor parallelism would split the batch's weights: not supported")
        self._dss_own_mean = not self.model_accepts_loss_kwargs
        self.model_accepts_loss_kwargs = True  # the shaped loss divides by all labels of a step, whatever the class
        config, collator = dss_config(self.model), self.data_collator
        if isinstance(collator, DSSCollator) and collator.padding_free:
            check_packing(self.model)
        tell_unstopped(self)
        if isinstance(collator, DSSCollator) and collator.kl_scale == 0 and config is not None and config.kl_scale:
            raise UserError(
                f"DSSCollator(kl_scale=0) leaves out rows that kl_scale={config.kl_scale} needs: give it the same"
            )
        loading = self.accelerator.dataloader_config
        if loading.dispatch_batches:
            raise UserError(
                "dispatch_batches cuts tensors that have no batch dimension, the loss's live rows among them: "
                f"leave it unset, got {loading.dispatch_batches!r}"
            )
        loading.dispatch_batches = False  # unset means True for data that streams
        plugin = getattr(self.accelerator.state, "fsdp_plugin", None)
        if plugin is not None and plugin.fsdp_version == 2 and plugin.mixed_precision_policy is not None:
            # FSDP2 would round weights, log-probabilities and the loss; tokens in, it computes as its parameters are
            exact = {"cast_forward_inputs": False, "output_dtype": None}
            plugin.mixed_precision_policy = replace(plugin.mixed_precision_policy, **exact)
        known_reference(self, ref_model)
        self._dss_reference = self._prepared_reference(ref_model)
        self._dss_sums = {True: None, False: None}

    def _prepared_reference(self: Any, ref_model: Any) -> Any:
        if ref_model is None:
            return None
        if ref_model == "adapter":
            if not hasattr(self.model, "disable_adapter"):
                raise UserTypeError(f"ref_model='adapter' needs a PEFT model, got {type(self.model).__name__}")
            return self._start_reference()
        if not isinstance(ref_model, torch.nn.Module):
            raise UserTypeError(f"ref_model: expected None, 'adapter' or a model, got {type(ref_model).__name__}")
        if bare_model(ref_model) is bare_model(self.model):
            raise UserError(
                "ref_model: expected another model than the one being trained: pass a copy, or 'adapter' with PEFT"
            )
        if any(hasattr(parameter, "full_tensor") for parameter in ref_model.parameters()):
            raise UserError(
                "ref_model: a sharded live reference is not supported: compute ref_logprobs once before training"
            )
        ours, theirs = vocabulary(bare_model(self.model)), vocabulary(bare_model(ref_model))
        config = dss_config(self.model)
        if ours != theirs and config is not None and config.needs_logits:
            raise UserError(
                f"ref_model: kl={str(config.kl)!r} compares whole vocabularies: expected {ours} tokens, got {theirs}; "
                "take k1, k2 or k3, or resize the reference too"
            )
        ref_model.requires_grad_(False).eval().to(self.args.device)
        return enable_dss(ref_model)

    def _start_reference(self: Any) -> Any:
        """The adapters switched off where that is the model before training; else a copy of all that trains."""
        peft_model = bare_peft(self.model)
        why = adapter_off_is_not_the_start(peft_model, bare_model(self.model))
        if why is None:
            return "adapter"
        state = self.accelerator.state
        zero3 = getattr(getattr(state, "deepspeed_plugin", None), "zero_stage", 0) == 3
        if zero3 or getattr(state, "fsdp_plugin", None) is not None:
            raise UserError(
                f"ref_model='adapter': {why}, so the reference is a copy of the model before training, and none can be "
                "kept of weights that are split over ranks: compute ref_logprobs once before training"
            )
        start = StartCopy(peft_model)
        _log.warning(
            "ref_model='adapter': %s; the reference is the model as it is now, a copy of the %d numbers that train",
            why,
            start.numbers,
        )
        return start

    def compute_loss(
        self: Any,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The model's shaped loss; batches without ``token_weights`` go the trainer's own way."""
        shaped = "token_weights" in inputs
        config = dss_config(self.model)
        refers = shaped and config is not None and not config.known_by(inputs)
        if self._dss_reference is not None and (refers or is_split(self._reference_module(model))):
            live = self._live_reference(model, inputs)  # of a split one all ranks are needed, whatever their batches
            inputs = inputs | live if refers else inputs
        if not shaped:
            self._tell_unshaped(inputs)
            return self._unshaped_loss(model, inputs, return_outputs, num_items_in_batch)
        # Trainer's own, past TRL's: it hands everything to the model and scales by the number of ranks
        with without_smoother(self):
            loss, outputs = Trainer.compute_loss(self, model, inputs, True, num_items_in_batch)
        self._add_up(outputs, inputs, num_items_in_batch)
        if outputs.aux_loss is not None and num_items_in_batch is not None:
            loss = loss + self._auxiliary_excess(outputs.aux_loss)
        return (loss, outputs) if return_outputs else loss

    def _unshaped_loss(
        self: Any, model: Any, inputs: Any, return_outputs: bool, num_items_in_batch: Tensor | int | None
    ) -> Any:
        own = super().compute_loss  # type: ignore[misc]
        if not self._dss_own_mean:
            return own(model, inputs, return_outputs, num_items_in_batch)
        loss, outputs = own(model, inputs, True, None)
        if self.model.training:  # Trainer believes that it is divided by all labels of the step
            loss = loss / self.current_gradient_accumulation_steps
        return (loss, outputs) if return_outputs else loss

    def _tell_unshaped(self: Any, inputs: Mapping[str, Any]) -> None:
        """Once: a column of another name, or none, would else be seen in the trained model at the earliest."""
        if self.model.training and not self._dss_told_unshaped:
            self._dss_told_unshaped = True
            _log.warning("a batch without token_weights is trained without shaping; it has %s", ", ".join(inputs))

    def _auxiliary_excess(self: Any, aux_loss: Tensor) -> Tensor:
        """What takes the MoE auxiliary loss, a mean per micro-batch, from a sum over micro-batches and ranks to a mean.

        Divided by all labels of a step, the shaped terms of micro-batches and ranks add up; this one does not.
        """
        scaled = self.args.average_tokens_across_devices and self.model_accepts_loss_kwargs
        times = self.accelerator.num_processes if scaled else 1  # as Trainer.compute_loss multiplied
        steps = self.current_gradient_accumulation_steps if self.model.training else 1
        return coefficient(bare_model(self.model)) * (1 / steps - times) * aux_loss

    def _reference_module(self: Any, model: Any) -> Any:
        return model if self._refers_to_policy() else self._dss_reference

    def _refers_to_policy(self: Any) -> bool:
        return self._dss_reference == "adapter" or isinstance(self._dss_reference, StartCopy)

    @torch.no_grad()
    def _live_reference(self: Any, model: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The reference's hidden states, and its head unless that is the policy's own, frozen and without adapters.

        Of another vocabulary, whose head the loss could not lay beside the policy's, its labels' log-probabilities.
        """
        policy = self._refers_to_policy()
        asked = {k: v for k, v in inputs.items() if k not in (*_EXACT, "labels", "rows", "kl_rows")}
        reference = self._reference_module(model)
        bare = bare_model(reference)
        # the policy computes in mixed precision: in any other, equal models would differ, and the forward be slower
        with evaluating(reference), self._as_reference(model), layers_gathered(bare):
            if not policy and vocabulary(bare) != vocabulary(bare_model(model)):
                return {"ref_logprobs": reference(**asked, labels=inputs["labels"], dss_ask="logprobs").logprobs}
            hidden = reference(**asked, dss_ask="hidden").hidden
            found = {"ref_hidden": hidden}
            if not policy or head_trains(bare) or head_is_adapted(bare):
                start = isinstance(self._dss_reference, StartCopy)
                weight, bias = current_head(bare) if start else original_head(bare)
                found["ref_lm_head"] = whole(weight, hidden.dtype).detach()
                found["ref_bias"] = None if bias is None else whole(bias, hidden.dtype).detach()
                found["ref_logit_scale"], found["ref_softcap"] = logit_scale_and_softcap(bare)
        return found

    def _as_reference(self: Any, model: Any) -> AbstractContextManager[Any]:
        if isinstance(self._dss_reference, StartCopy):
            return self._dss_reference.restored()
        if self._dss_reference == "adapter":
            return without_adapter(bare_peft(model))
        precision: AbstractContextManager[Any] = self.accelerator.autocast()
        return precision

    def _prepare_inputs(self: Any, inputs: dict[str, Any]) -> dict[str, Any]:
        """DeepSpeed casts float inputs to the model's dtype; a log-probability in bf16 would be off by percents."""
        exact = {name: inputs[name].to(self.args.device) for name in _EXACT if name in inputs}
        others = {name: value for name, value in inputs.items() if name not in exact}
        found: dict[str, Any] = super()._prepare_inputs(others) | exact  # type: ignore[misc]
        return found

    def _set_signature_columns_if_needed(self: Any) -> None:
        super()._set_signature_columns_if_needed()  # type: ignore[misc]
        # where padding and documents are, the collator must know of classes too that take no mask and no positions
        for name in ("input_ids", "labels", *_EXACT, "seq_lengths", "attention_mask", "position_ids"):
            if name not in self._signature_columns:
                self._signature_columns.append(name)

    @torch.no_grad()
    def _add_up(self: Any, outputs: Any, inputs: Mapping[str, Any], num_items_in_batch: Tensor | int | None) -> None:
        """Sums on the device since the last log; nothing waits for them."""
        labels, weights = inputs["labels"][:, 1:], inputs["token_weights"][:, 1:]
        counts = labels != -100
        count = counts.sum()
        items = count if num_items_in_batch is None else num_items_in_batch  # what the model divided by
        sums = torch.stack(
            [
                outputs.ce.double() * items,
                outputs.kl.double() * items,
                (weights.double() * counts).sum(),
                (counts & (weights < 0.5)).sum().double(),
                count.double(),
                torch.zeros_like(count).double() if outputs.aux_loss is None else outputs.aux_loss.double(),
                torch.ones_like(count).double(),
            ]
        )
        training = bool(self.model.training)
        known = self._dss_sums[training]
        self._dss_sums[training] = sums if known is None else known + sums

    def get_train_dataloader(self: Any) -> Any:
        """Trainer's own; asked for once a run, so sums of an earlier one, or of an attempt out of memory, end here."""
        self._dss_sums[True] = None
        return super().get_train_dataloader()  # type: ignore[misc]

    def _take_metrics(self: Any, training: bool) -> dict[str, float]:
        """Means over labels on all ranks since the last time, and a fresh start; nothing where no weights were seen.

        A rank that saw none adds zeros: the others wait for it.
        """
        sums, self._dss_sums[training] = self._dss_sums[training], None
        if sums is None:
            sums = torch.zeros(len(_SUMS), dtype=torch.float64, device=self.args.device)
        total = dict(zip(_SUMS, self.accelerator.reduce(sums, reduction="sum").tolist(), strict=True))
        if not total["batches"]:
            return {}
        labels = max(total["labels"], 1.0)
        found = {
            "ce": total["ce"] / labels,
            "kl": total["kl"] / labels,
            "token_weight": total["weight"] / labels,
            "share_below_half": total["below"] / labels,
        }
        if total["aux"]:  # never 0 where there are experts
            found["aux_loss"] = total["aux"] / total["batches"]
        return found

    def log(self: Any, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds ce, kl, token_weight and share_below_half to what the trainer logs while it trains."""
        if "loss" in logs:
            logs.update(_with_loss(self._take_metrics(training=True)))
        super().log(logs, start_time)  # type: ignore[misc]

    def prediction_step(
        self: Any, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> Any:
        """Trainer's own, where ranks have predictions of one kind; else ValueError on all, before any waits."""
        if not prediction_loss_only:
            shaped = torch.tensor(float("token_weights" in inputs), device=self.args.device)
            if self.accelerator.reduce(shaped, reduction="mean") not in (0, 1):
                raise UserError(
                    "some ranks have a batch with token_weights, others one without: log-probabilities [B, T] and "
                    "logits [B, T, V] cannot be gathered; set prediction_loss_only=True or evaluate two data sets"
                )
        return self._predicted(model, inputs, prediction_loss_only, ignore_keys)

    def _predicted(self: Any, *args: Any) -> Any:
        return super().prediction_step(*args)  # type: ignore[misc]

    def evaluation_loop(
        self: Any,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> Any:
        """Adds ``eval_ce``, ``eval_kl``, ``eval_token_weight`` and ``eval_share_below_half`` to the metrics.

        ``compute_metrics`` gets the label's log-probabilities ``[B, T]`` as predictions: there are no logits.
        """
        self._dss_sums[False] = None
        ignore_keys = [*(ignore_keys or ["past_key_values"]), "ce", "kl", "aux_loss"]
        output = super().evaluation_loop(  # type: ignore[misc]
            dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
        )
        found = _with_loss(self._take_metrics(training=False))
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in found.items()})
        return output


class DSSTrainer(ShapedTraining, Trainer):
    """``transformers.Trainer`` whose loss is the DSS loss wherever a batch carries ``token_weights``.

    All arguments of ``Trainer``, and by keyword:

    config: the shaped loss's options, see ``DSSConfig``; ``kl``, ``kl_scale``, ``backend``, ``chunk_bytes`` and
    ``grad_tol`` are shortcuts to its fields. A model on which ``enable_dss`` was called has them already: what is
    said here as well must not differ.
    ref_model: None where the data has the reference's columns (``add_reference_logprobs`` makes them: ``ref_logprobs``
    for k1, k2, k3; with ``forward_kl=True`` those of the forward KL, for a frozen head without adapters), ``"adapter"``
    for the PEFT model with its adapters switched off, or a frozen model; the latter two serve every form
    of KL, at the price of one more forward of the backbone per step; where FSDP2 or ZeRO-3 split it, also for unshaped
    batches.

    The dataset has ``input_ids``, ``labels``, ``token_weights`` (``prepare_dss_dataset`` makes them), or scored
    conversations (``star``), which are prepared with ``processing_class``; without a
    ``data_collator``, ``DSSCollator`` is used, without padding where the rows are packed. Logged beside the loss, as
    means over labels: ``ce`` and ``kl`` (the loss's two parts), ``token_weight``, ``share_below_half``, and
    ``aux_loss`` where there are experts, a mean over batches; in evaluation with the prefix ``eval_``. Where a
    shaped loss was not finite, NaN is logged, whatever ``logging_nan_inf_filter`` says.
    """

    def __init__(self, *args: Any, config: DSSConfig | None = None, ref_model: Any = None, **kwargs: Any) -> None:
        model = args[0] if args else kwargs.get("model")
        said = DSSConfig.taken_from(kwargs)
        if model is not None:
            agreed = agreed_config(model, config, said)
        elif kwargs.get("model_init") is not None:
            if ref_model == "adapter":
                raise UserError("ref_model='adapter' needs the one model that is trained: pass model, not model_init")
            agreed = (config or DSSConfig()).with_said(**said)
            smoothing = getattr(args[1] if len(args) > 1 else kwargs.get("args"), "label_smoothing_factor", 0.0)
            agreed = agreed if agreed.label_smoothing else replace(agreed, label_smoothing=smoothing)
            kwargs["model_init"] = enabled_init(kwargs["model_init"], agreed)
        else:
            raise UserError("model: expected a causal LM, or model_init, got neither")
        args, kwargs = with_prepared(args, kwargs)
        super().__init__(*args, **kwargs)
        if len(args) < 3 and kwargs.get("data_collator") is None:
            self.data_collator = default_collator(self, agreed.kl_scale)
        self._set_up_dss(ref_model)


def _with_loss(found: dict[str, float]) -> dict[str, float]:
    """The means, and a NaN as the loss where one of them is not finite: Trainer logs the mean of other losses, or 0."""
    return found if all(map(math.isfinite, found.values())) else found | {"loss": math.nan}
