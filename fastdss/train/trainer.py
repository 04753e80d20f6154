"""Hugging Face's Trainer with dynamic safety shaping: the loss, its reference, logging and evaluation."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer

from fastdss.errors import UserError
from fastdss.models.experts import coefficient
from fastdss.models.inputs import input_names
from fastdss.star.align import IGNORE
from fastdss.upstream import accelerate
from fastdss.upstream.torch import is_fsdp1
from fastdss.upstream.transformers import (
    CACHES,
    TrainerSeams,
    count_shifted_labels,
    divide_by_items,
    divides_by_items,
    micro_batches,
    without_smoother,
)

from .agreement import agree_on_smoothing, agreed_config, by_name, enabled_init, fuses_head
from .collator import DSSCollator
from .config import DSSConfig
from .enable import bare_model, check_packing, dss_config
from .live_reference import LiveReference
from .trainer_data import check_collator, check_reference, default_collator, warn_unstopped, with_prepared

_log = logging.getLogger(__name__)
_EXACT = (
    "token_weights",
    "ref_logprobs",
    "ref_offset",
    "ref_slope",
)  # float inputs that mixed precision must not round
SUMS = ("ce", "kl", "weight", "below", "labels", "aux", "batches", "entropy", "accuracy", "batches_with_stats")


class ShapedTraining(TrainerSeams):
    """What ``DSSTrainer`` and ``DSSSFTTrainer`` add to ``Trainer``; it stands before ``Trainer`` among their bases."""

    _dss_reference: LiveReference | None = None
    _dss_own_mean = False  # whether the model divides an unshaped loss by the labels of its batch, not of the step
    _dss_warned_unshaped = False

    def _set_up_dss(self: Any, ref_model: Any) -> None:
        """Call it after ``Trainer.__init__``. It refuses arguments that would train another loss, and prepares the
        reference and the sums for logging."""
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
        if accelerate.splits_batches(self.accelerator):
            raise UserError("context, sequence and tensor parallelism would split the batch's weights: not supported")
        self._dss_own_mean = not divides_by_items(self)
        count_shifted_labels(self)
        divide_by_items(self)  # whatever the model's class does with an unshaped loss, the shaped one is divided so
        if isinstance(self.data_collator, DSSCollator) and self.data_collator.padding_free:
            check_packing(self.model)
        warn_unstopped(self)
        check_collator(self.data_collator, dss_config(self.model))
        if not accelerate.never_dispatch(self.accelerator):
            raise UserError(
                "dispatch_batches cuts tensors that have no batch dimension, the loss's live rows among them: "
                "leave it unset, got True"
            )
        # Casting inputs and outputs is not needed: inputs are tokens, and FSDP2 computes in its parameters' dtype.
        accelerate.cast_nothing(self.accelerator)
        check_reference(self, ref_model)
        self._dss_reference = LiveReference.of(ref_model, self.model, self.accelerator, args.device)
        self._dss_sums = {True: None, False: None}

    def compute_loss(
        self: Any,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The model's shaped loss; for a batch without ``token_weights``, the trainer's own loss."""
        shaped = "token_weights" in inputs
        config = dss_config(self.model)
        refers = shaped and config is not None and not config.known_by(inputs)
        reference: LiveReference | None = self._dss_reference
        if reference is not None and (refers or reference.needs_all_ranks(model)):
            of_model = {k: v for k, v in inputs.items() if k not in (*_EXACT, "labels", "rows", "kl_rows")}
            live = reference.answers(model, of_model, inputs.get("labels"), self.accelerator)
            inputs = inputs | live if refers else inputs
        if not shaped:
            self._tell_unshaped(inputs)
            return self._unshaped_loss(model, inputs, return_outputs, num_items_in_batch)
        # Trainer's method even under TRL: it passes all inputs to the model and multiplies by the number of ranks.
        with without_smoother(self):
            with_stats = {**inputs, "token_stats": True}
            loss, outputs = Trainer.compute_loss(self, model, with_stats, True, num_items_in_batch)
        self._add_up(outputs, inputs, num_items_in_batch)
        if num_items_in_batch is not None:
            loss = self._mean_over_ranks(loss, outputs.aux_loss, inputs)
        return (loss, outputs) if return_outputs else loss

    def _unshaped_loss(
        self: Any, model: Any, inputs: Any, return_outputs: bool, num_items_in_batch: Tensor | int | None
    ) -> Any:
        own = super().compute_loss  # type: ignore[misc]
        if not self._dss_own_mean:
            return own(model, inputs, return_outputs, num_items_in_batch)
        loss, outputs = own(model, inputs, True, None)
        if self.model.training:  # after divide_by_items, Trainer does not take the mean over micro-batches itself
            loss = loss / micro_batches(self)
        return (loss, outputs) if return_outputs else loss

    def _tell_unshaped(self: Any, inputs: Mapping[str, Any]) -> None:
        """Warn once: a missing or misspelt column of weights would otherwise show in the trained model only."""
        if self.model.training and not self._dss_warned_unshaped:
            self._dss_warned_unshaped = True
            _log.warning("a batch without token_weights is trained without shaping; it has %s", ", ".join(inputs))

    def _mean_over_ranks(self: Any, loss: Tensor, aux_loss: Tensor | None, inputs: Mapping[str, Any]) -> Tensor:
        """The loss that ``Trainer.compute_loss`` returned, so that what Trainer makes of it is that of one process.

        Gradients of micro-batches and ranks are summed. That is right for the shaped terms, which are divided by all
        labels of the step; the auxiliary loss of experts is already a mean of its micro-batch. In evaluation a rank's
        loss counts by its rows, of which the last batch may have fewer on one rank than on another.
        """
        scaled = self.args.average_tokens_across_devices and divides_by_items(self)
        times = self.accelerator.num_processes if scaled else 1  # by which Trainer.compute_loss multiplied the loss
        training = self.model.training
        auxiliary = 0 if aux_loss is None else coefficient(bare_model(self.model)) * aux_loss
        shaped = loss - times * auxiliary
        if scaled and not training and _tells_rows(inputs):
            shaped = shaped * accelerate.share_of_rows(self.accelerator, len(inputs["labels"]))
        return shaped + auxiliary / (micro_batches(self) if training else 1)

    def inputs_on_device(self: Any, inputs: dict[str, Any]) -> dict[str, Any]:
        """Keep weights and log-probabilities in float32: DeepSpeed casts float inputs to the model's dtype, and in bf16
        a log-probability of -10 would be off by up to 0.03."""
        exact = {name: inputs[name].to(self.args.device) for name in _EXACT if name in inputs}
        others = {name: value for name, value in inputs.items() if name not in exact}
        found: dict[str, Any] = super().inputs_on_device(others) | exact
        return found

    def kept_columns(self: Any) -> tuple[str, ...]:
        """Columns for the collator. It needs mask and positions even where the model's class takes neither, to find
        padding and documents; of the model's other inputs TRL's trainer would keep none."""
        known = ("input_ids", "labels", *_EXACT, "seq_lengths", "attention_mask", "position_ids")
        return (*known, *sorted(input_names(bare_model(self.model)) - set(known)))

    @torch.no_grad()
    def _add_up(self: Any, outputs: Any, inputs: Mapping[str, Any], num_items_in_batch: Tensor | int | None) -> None:
        """Add a batch to the sums since the last log. They stay on the device, so that nothing waits for them."""
        labels, weights = inputs["labels"][:, 1:], inputs["token_weights"][:, 1:]
        counts = labels != IGNORE
        count = counts.sum()
        config = dss_config(self.model)
        # Labels for which the loss computes the distribution; the others have no entropy.
        computed = (counts & ((weights > 0) | (config is not None and config.kl_scale > 0))).sum()
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
                outputs.entropy.double().sum() / computed.clamp(min=1),
                outputs.correct.double().sum() / computed.clamp(min=1),
                (computed > 0).double(),
            ]
        )
        self._add_sums(bool(self.model.training), sums)

    def _add_sums(self: Any, training: bool, sums: Tensor) -> None:
        known = self._dss_sums[training]
        self._dss_sums[training] = sums if known is None else known + sums

    def get_train_dataloader(self: Any) -> Any:
        """Trainer's own. Trainer asks for it at the start of each run, so sums of an earlier run, or of one that ran
        out of memory and starts again with smaller batches, are dropped here."""
        if is_fsdp1(self.model) and self.model is not self.model_wrapped:
            raise UserError(
                "FSDP's first version wrapped the model for an evaluation before training, and Trainer would now train "
                "without an optimizer: evaluate afterwards (fastdss train: --eval-share 0), or take fsdp_version 2"
            )
        self._dss_sums[True] = None
        return super().get_train_dataloader()  # type: ignore[misc]

    def _take_metrics(self: Any, training: bool) -> dict[str, float]:
        """The means over all ranks since the last call; empty where no batch had weights.

        They are means over labels; entropy and accuracy, as in TRL, are means over batches of each batch's mean. Every
        rank takes part, with zeros where it saw no such batch: the others wait for it.
        """
        sums, self._dss_sums[training] = self._dss_sums[training], None
        if sums is None:
            sums = torch.zeros(len(SUMS), dtype=torch.float64, device=self.args.device)
        total = dict(zip(SUMS, self.accelerator.reduce(sums, reduction="sum").tolist(), strict=True))
        found: dict[str, float] = {}
        if total["batches_with_stats"]:
            found["entropy"] = total["entropy"] / total["batches_with_stats"]
            found["mean_token_accuracy"] = total["accuracy"] / total["batches_with_stats"]
        if not total["batches"]:
            return found
        labels = max(total["labels"], 1.0)
        found |= {
            "ce": total["ce"] / labels,
            "kl": total["kl"] / labels,
            "token_weight": total["weight"] / labels,
            "share_below_half": total["below"] / labels,
        }
        if total["aux"]:  # never 0 where there are experts
            found["aux_loss"] = total["aux"] / total["batches"]
        return found

    def log(self: Any, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds ce, kl, token_weight, share_below_half, entropy and mean_token_accuracy to what the trainer logs."""
        if "loss" in logs:
            logs.update(_with_loss(self._take_metrics(training=True)))
        super().log(logs, start_time)  # type: ignore[misc]

    def prediction_step(
        self: Any, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> Any:
        """Trainer's own. Raises ``ValueError`` on all ranks where some have shaped batches and others do not: their
        predictions have other shapes, and gathering them would wait for ever."""
        if not prediction_loss_only:
            shaped = torch.tensor(float("token_weights" in inputs), device=self.args.device)
            if self.accelerator.reduce(shaped, reduction="mean") not in (0, 1):
                raise UserError(
                    "some ranks have a batch with token_weights, others one without: log-probabilities [B, T] and "
                    "logits [B, T, V] cannot be gathered; set prediction_loss_only=True or evaluate two data sets"
                )
        return self._predicted(model, self._each_row_once(inputs), prediction_loss_only, ignore_keys)

    def _each_row_once(self: Any, inputs: Any) -> Any:
        """The batch, in which no label counts of rows that only repeat others, to fill the last batch of a rank."""
        if "token_weights" not in inputs or not _tells_rows(inputs):
            return inputs
        repeated = accelerate.repeated_rows(self.accelerator, len(inputs["labels"]))
        if not repeated:
            return inputs
        labels = inputs["labels"].clone()
        labels[-repeated:] = IGNORE
        return {n: value for n, value in inputs.items() if n not in ("rows", "kl_rows")} | {"labels": labels}

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
        """Adds ``eval_ce``, ``eval_kl`` and what else ``log`` adds to the metrics.

        ``compute_metrics`` gets the label's log-probabilities ``[B, T]`` as predictions: there are no logits.
        """
        self._dss_sums[False] = None
        ignore_keys = [*(ignore_keys or CACHES), "ce", "kl", "aux_loss", "entropy", "correct"]
        output = super().evaluation_loop(  # type: ignore[misc]
            dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
        )
        found = _with_loss(self._take_metrics(training=False))
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in found.items()})
        return output


class DSSTrainer(ShapedTraining, Trainer):
    """``transformers.Trainer`` whose loss is the DSS loss wherever a batch carries ``token_weights``.

    The dataset has ``input_ids``, ``labels``, ``token_weights`` (``prepare_dss_dataset`` makes them), or scored
    conversations (``star``, or ``StarScores``), which are prepared with ``processing_class``; without a
    ``data_collator``, ``DSSCollator`` is used, without padding where the rows are packed. Logged beside the loss, as
    means over labels: ``ce`` and ``kl`` (the loss's two parts), ``token_weight``, ``share_below_half``; and as means
    over shaped batches ``entropy`` and ``mean_token_accuracy``, which TRL's trainers log under these names, of the
    tokens that the loss computes, and ``aux_loss`` where there are experts; in evaluation with the prefix ``eval_``.
    Where a shaped loss was not finite, NaN is logged, whatever ``logging_nan_inf_filter`` says.

    Args:
        *args: those of ``Trainer``.
        config: the shaped loss's options, see ``DSSConfig``. A model on which ``enable_dss`` was called has them
            already: what is said here as well must not differ.
        ref_model: None where the data has the reference's columns (``add_reference_logprobs`` makes them:
            ``ref_logprobs`` for k1, k2, k3; with ``forward_kl=True`` those of the forward KL, for a frozen head without
            adapters), ``"adapter"`` for the PEFT model with its adapters switched off, or a frozen model; the latter
            two serve every form of KL, at the price of one more forward of the backbone per step; where FSDP2 or ZeRO-3
            split it, also for unshaped batches.
        **kwargs: those of ``Trainer``, and fields of ``DSSConfig`` (``kl=``, ``kl_scale=``, ``dft=``, …) as shortcuts.

    Raises:
        UserError: where the model, ``config`` and shortcuts contradict each other, or the trainer's arguments would
            train another loss.
    """

    def __init__(self, *args: Any, config: DSSConfig | None = None, ref_model: Any = None, **kwargs: Any) -> None:
        said = DSSConfig.taken_from(kwargs)
        given = by_name(super().__init__, args, kwargs)
        if given.get("model") is not None:
            agreed = agreed_config(given["model"], config, said)
        elif given.get("model_init") is not None:
            if ref_model == "adapter":
                raise UserError("ref_model='adapter' needs the one model that is trained: pass model, not model_init")
            agreed = (config or DSSConfig()).with_said(**said)
            smoothing = getattr(given.get("args"), "label_smoothing_factor", 0.0)
            agreed = agreed if agreed.label_smoothing else replace(agreed, label_smoothing=smoothing)
            given["model_init"] = enabled_init(given["model_init"], agreed)
        else:
            raise UserError("model: expected a causal LM, or model_init, got neither")
        super().__init__(**with_prepared(given))
        if given.get("data_collator") is None:
            self.data_collator = default_collator(self, agreed)
        self._set_up_dss(ref_model)


def _tells_rows(inputs: Mapping[str, Any]) -> bool:
    """Whether a batch has one row for each example; of examples in a single row nothing tells which is which."""
    return "cu_seq_lens_q" not in inputs


def _with_loss(found: dict[str, float]) -> dict[str, float]:
    """The means, with NaN as the loss where one of them is not finite: Trainer leaves such losses out of its mean."""
    return found if all(map(math.isfinite, found.values())) else found | {"loss": math.nan}
