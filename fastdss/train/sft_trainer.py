"""TRL's SFTTrainer with dynamic safety shaping: it prepares, cuts and packs rows so that weights stay with tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from torch import Tensor
from transformers import AutoProcessor

from fastdss.errors import UserError, UserTypeError
from fastdss.models.experts import set_coefficient
from fastdss.models.inputs import input_names
from fastdss.upstream.accelerate import ungathered
from fastdss.upstream.trl import OpenSFTTrainer, Preparation, made_from

from .agreement import agreed_config, by_name
from .collator import DSSCollator
from .config import DSSConfig
from .enable import bare_model
from .prepare import column_names, pack_dataset, prepare_dss_dataset, truncate_dataset
from .scored_rows import holds_scores
from .trainer import SUMS, ShapedTraining

# TRL's own metrics, of which it keeps a value per unshaped batch -> the sum to which they are added
_TRL_METRICS = {"entropy": "entropy", "mean_token_accuracy": "accuracy"}


class DSSSFTTrainer(ShapedTraining, OpenSFTTrainer):
    """``trl.SFTTrainer`` whose loss is the DSS loss for every batch that has ``token_weights``.

    Data sets may be

    - scored conversations (with the column ``star``, as ``fastdss merge`` and ``StarScorer`` write it). They are
      tokenised with the trainer's tokenizer and chat template, and the labels are the policy's own words in the judged
      turns;
    - prepared rows (``input_ids``, ``labels``, ``token_weights``, optionally a reference's columns);
    - anything else that SFTTrainer takes, which is trained without shaping.

    ``max_length``, ``packing`` (strategy "bfd"), ``padding_free`` and ``shuffle_dataset`` of ``SFTConfig`` apply to all
    aligned columns. Shaped batches log num_tokens, entropy and mean_token_accuracy as TRL does, and ce, kl,
    token_weight and share_below_half. At one step some ranks may have shaped batches and others unshaped ones: TRL's
    metrics are means over the batches of both kinds on all ranks.

    Args:
        model: as in ``SFTTrainer``.
        *args: those of ``SFTTrainer``.
        config: as in ``DSSTrainer``.
        ref_model: as in ``DSSTrainer``.
        **kwargs: those of ``SFTTrainer`` (``args``, ``peft_config``, …), and the shortcuts of ``DSSTrainer``.

    Raises:
        UserError: as ``DSSTrainer``.
    """

    def __init__(
        self,
        model: Any,
        *args: Any,
        config: DSSConfig | None = None,
        ref_model: Any = None,
        **kwargs: Any,
    ) -> None:
        said = DSSConfig.taken_from(kwargs)
        given = by_name(super().__init__, (model, *args), kwargs)
        if isinstance(model, str):
            sft_config = given.get("args")
            revision = (getattr(sft_config, "model_init_kwargs", None) or {}).get("revision")
            if revision is not None and given.get("processing_class") is None:
                trusted = getattr(sft_config, "trust_remote_code", False)
                found = AutoProcessor.from_pretrained(model, revision=revision, trust_remote_code=trusted)
                given["processing_class"] = found
            given["model"] = made_from(model, sft_config, given.get("quantization_config"))
        # before SFTTrainer replaces the instance's forward by one with its own fused head, which then calls ours
        agreed = agreed_config(given["model"], config, said)
        super().__init__(**given)
        if self.router_coefficient is not None:
            set_coefficient(bare_model(self.model), self.router_coefficient)
        evaluated = self.eval_dataset.values() if isinstance(self.eval_dataset, dict) else [self.eval_dataset]
        columns = [column_names(dataset) for dataset in (self.train_dataset, *evaluated)]
        if any(holds_scores(names) and "token_weights" not in names for names in columns):
            raise UserError(
                "SFTTrainer prepares no data sets with images, and none with skip_prepare_dataset, so these scored "
                "rows would train without shaping: give it the rows of prepare_dss_dataset, without a column images"
            )
        if given.get("data_collator") is None and any("token_weights" in names for names in columns):
            self.data_collator = DSSCollator(
                self.text_tokenizer.pad_token_id,
                padding_free=self.padding_free,
                pad_to_multiple_of=getattr(self.args, "pad_to_multiple_of", None),
                model_inputs=input_names(bare_model(self.model)),
                config=agreed,
            )
        self._set_up_dss(ref_model)
        self._dss_own_mean = False  # TRL divides by all labels of a step itself

    def prepared(self, dataset: Any, how: Preparation) -> Any:
        """SFTTrainer's preparation of a data set; of scored and prepared rows one that keeps all columns aligned."""
        columns = set(column_names(dataset))
        if "token_weights" not in columns and not holds_scores(list(columns)):
            return super().prepared(dataset, how)
        self._refuse_options(dataset, how)
        args = how.args
        with args.main_process_first(desc=f"preparing {how.name}"):
            if "token_weights" not in columns:
                template = {"template": self.chat_template, "max_length": args.max_length}
                dataset = prepare_dss_dataset(dataset, self.text_tokenizer, **template)
            elif args.max_length is not None and "seq_lengths" not in columns:
                dataset = truncate_dataset(dataset, args.max_length)
            if args.shuffle_dataset:
                dataset = dataset.shuffle(seed=args.seed)
            if how.packing and "seq_lengths" not in columns:
                dataset = pack_dataset(dataset, args.max_length)
                dataset = dataset.shuffle(seed=args.seed) if args.shuffle_dataset else dataset
        return dataset

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Tensor | int | None = None
    ) -> Any:
        """The shaped loss or TRL's own, whose metrics stay on their rank: ranks with shaped batches gather none."""
        with ungathered(self.accelerator):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def _predicted(self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: list[str] | None) -> Any:
        """As in TRL, the loss of a batch is divided by its own labels; log-probabilities take the place of logits."""
        if "token_weights" not in inputs:
            return super()._predicted(model, inputs, prediction_loss_only, ignore_keys)
        inputs = self.inputs_on_device(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
        return (loss, None, None) if prediction_loss_only else (loss, outputs.logprobs, inputs["labels"])

    def _add_up(self, outputs: Any, inputs: Mapping[str, Any], num_items_in_batch: Tensor | int | None) -> None:
        super()._add_up(outputs, inputs, num_items_in_batch)
        if self.model is not None and self.model.training:
            mask = inputs.get("attention_mask")  # none where rows are packed: nothing is padding
            self.count_tokens(torch.ones_like(inputs["input_ids"]).sum() if mask is None else mask.sum())

    def _take_metrics(self, training: bool) -> dict[str, float]:
        """The metrics of shaped batches. Those that TRL collected of unshaped batches are added to them, or replaced by
        their means over all ranks."""
        trls = self.metrics_of("train" if training else "eval")
        unshaped = torch.zeros(len(SUMS), dtype=torch.float64)
        for name, sum_name in _TRL_METRICS.items():
            unshaped[SUMS.index(sum_name)] = sum(trls[name])
        unshaped[SUMS.index("batches_with_stats")] = len(trls["entropy"])
        local = [self.tokens_seen, len(trls["num_tokens"]), sum(trls["aux_loss"]), len(trls["aux_loss"])]
        sums = torch.tensor(local, dtype=torch.float64, device=self.args.device)
        tokens, counted, auxiliary, batches = self.accelerator.reduce(sums, reduction="sum").tolist()
        trls.clear()
        if counted:
            trls["num_tokens"] = [int(tokens)]
        if batches:
            trls["aux_loss"] = [auxiliary / batches]
        self._add_sums(training, unshaped.to(self.args.device))
        return super()._take_metrics(training)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "train_loss" in logs:  # at the end of training: the batches since the last log
            rest = self._take_metrics(training=True)
            logs.update({name: rest[name] for name in _TRL_METRICS if name in rest})
        super().log(logs, start_time)

    def _refuse_options(self, dataset: Any, how: Preparation) -> None:
        _, args, packing, formatting_func, name = how
        if not isinstance(dataset, Dataset | IterableDataset):
            raise UserTypeError(
                f"{name}: of scored rows expected a Dataset or an IterableDataset, got {type(dataset).__name__}"
            )
        if formatting_func is not None:
            raise UserError(f"{name}: formatting_func would change the text that was scored: leave it unset")
        if args.completion_only_loss is False:
            raise UserError(f"{name}: only responses have weights, so completion_only_loss=False has no meaning here")
        if args.truncation_mode != "keep_start":
            raise UserError(f"{name}: scored rows are cut on the right, got truncation_mode={args.truncation_mode!r}")
        if args.loss_type != "nll":
            raise UserError(f"{name}: the shaped loss takes the place of loss_type={args.loss_type!r}: leave it 'nll'")
        if packing and (args.max_length is None or args.packing_strategy != "bfd"):
            raise UserError(
                f"{name}: packing shaped rows needs max_length and packing_strategy='bfd', which cuts no row in two, "
                f"got {args.max_length} and {args.packing_strategy!r}"
            )
