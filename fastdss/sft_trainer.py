"""TRL's SFTTrainer with dynamic safety shaping: preparation, truncation and packing that keep weights with tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import AutoModelForCausalLM
from trl import SFTTrainer

from .collator import DSSCollator, pack_dataset, prepare_dss_dataset, truncate_dataset
from .enable import bare_model
from .losses import KL
from .trainer import ShapedTraining, enabled_settings


class DSSSFTTrainer(ShapedTraining, SFTTrainer):
    """``trl.SFTTrainer`` whose loss is the DSS loss wherever a batch carries ``token_weights``.

    All arguments of ``SFTTrainer`` (``args``, ``peft_config``, …), and ``kl``, ``kl_scale``, ``reference`` of
    ``DSSTrainer``. Data sets may be

    - scored conversations (``scores`` and ``ends`` beside ``prompt`` and ``response``, or ``messages``): tokenised with
      the trainer's tokenizer and its chat template; labels are the response's tokens and its end of turn;
    - prepared rows (``input_ids``, ``labels``, ``token_weights``, optionally ``ref_logprobs``);
    - anything else SFTTrainer takes, trained without shaping.

    ``max_length``, ``packing`` (strategy "bfd"), ``padding_free`` and ``shuffle_dataset`` of ``SFTConfig`` apply to all
    aligned columns. Shaped batches log num_tokens as TRL does, and ce, kl, token_weight and share_below_half in place
    of its entropy and mean_token_accuracy: the loss's op returns neither, and a second product with the head would cost
    half as much as the loss. They are left out, not zero; ``metric_for_best_model="eval_ce"`` serves instead.
    """

    _seen_tokens: Tensor | None = None  # on the device, since the last log

    def __init__(
        self, model: Any, *args: Any, kl: KL = "k2", kl_scale: float = 0.5, reference: Any = None, **kwargs: Any
    ) -> None:
        if isinstance(model, str):
            config = args[0] if args else kwargs.get("args")
            options = dict(getattr(config, "model_init_kwargs", None) or {})
            if kwargs.get("quantization_config") is not None:
                options["quantization_config"] = kwargs["quantization_config"]
            model = AutoModelForCausalLM.from_pretrained(model, **options)
        # before SFTTrainer puts its own fused head on the instance, which then wraps ours
        settings = enabled_settings(model, kl, kl_scale, reference)
        super().__init__(model, *args, **kwargs)
        if self.aux_loss_enabled:  # TRL writes its coefficient to the config; the model has read that already
            bare_model(self.model).router_aux_loss_coef = self.router_aux_loss_coef
        own_collator = len(args) > 1 or kwargs.get("data_collator") is not None
        evaluated = self.eval_dataset.values() if isinstance(self.eval_dataset, dict) else [self.eval_dataset]
        if not own_collator and any("token_weights" in _columns(d) for d in (self.train_dataset, *evaluated)):
            self.data_collator = DSSCollator(
                self._tokenizer.pad_token_id,
                kl_scale=settings.kl_scale,
                padding_free=self.padding_free,
                pad_to_multiple_of=getattr(self.args, "pad_to_multiple_of", None),
            )
        self._set_up_dss(reference)

    def _prepare_dataset(
        self,
        dataset: Any,
        processing_class: Any,
        args: Any,
        packing: bool,
        formatting_func: Any,
        dataset_name: str,
    ) -> Any:
        """As SFTTrainer prepares a data set, but for scored or prepared rows all aligned columns stay together."""
        columns = set(_columns(dataset))
        if "token_weights" not in columns and not {"scores", "ends"} <= columns:
            return super()._prepare_dataset(dataset, processing_class, args, packing, formatting_func, dataset_name)
        self._refuse_options(dataset, args, packing, formatting_func, dataset_name)
        with args.main_process_first(desc=f"preparing {dataset_name}"):
            if "token_weights" not in columns:
                template = {"template": self.chat_template, "max_length": args.max_length}
                dataset = prepare_dss_dataset(dataset, self._tokenizer, **template)
            elif args.max_length is not None and "seq_lengths" not in columns:
                dataset = truncate_dataset(dataset, args.max_length)
            if args.shuffle_dataset:
                dataset = dataset.shuffle(seed=args.seed)
            if packing and "seq_lengths" not in columns:
                dataset = pack_dataset(dataset, args.max_length)
                dataset = dataset.shuffle(seed=args.seed) if args.shuffle_dataset else dataset
        return dataset

    def _add_up(self, outputs: Any, inputs: Mapping[str, Any], num_items: Tensor | int | None) -> None:
        super()._add_up(outputs, inputs, num_items)
        if self.model is not None and self.model.training:
            mask = inputs.get("attention_mask")  # none where rows are packed: nothing is padding
            count = torch.ones_like(inputs["input_ids"]).sum() if mask is None else mask.sum()
            self._seen_tokens = count if self._seen_tokens is None else self._seen_tokens + count

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs or "train_loss" in logs:  # on every rank: one that saw none adds 0, the others wait for it
            seen, self._seen_tokens = self._seen_tokens, None
            seen = torch.zeros((), dtype=torch.long, device=self.args.device) if seen is None else seen
            total = int(self.accelerator.reduce(seen, reduction="sum"))
            if total:
                self._total_train_tokens += total
                self._metrics["train"]["num_tokens"] = [self._total_train_tokens]
        super().log(logs, start_time)

    def _refuse_options(self, dataset: Any, args: Any, packing: bool, formatting_func: Any, name: str) -> None:
        if not isinstance(dataset, Dataset):
            raise TypeError(
                f"{name}: scored and prepared rows must be a datasets.Dataset, got {type(dataset).__name__}"
            )
        if formatting_func is not None:
            raise ValueError(f"{name}: formatting_func would change the text that was scored: leave it unset")
        if args.completion_only_loss is False:
            raise ValueError(f"{name}: only responses have weights, so completion_only_loss=False has no meaning here")
        if args.loss_type != "nll":
            raise ValueError(f"{name}: the shaped loss takes the place of loss_type={args.loss_type!r}: leave it 'nll'")
        if packing and (args.max_length is None or args.packing_strategy != "bfd"):
            raise ValueError(
                f"{name}: packing shaped rows needs max_length and packing_strategy='bfd', which cuts no row in two, "
                f"got {args.max_length} and {args.packing_strategy!r}"
            )


def _columns(dataset: Any) -> list[str]:
    if dataset is None:
        return []
    names = getattr(dataset, "column_names", None)
    return list(next(iter(dataset))) if names is None else list(names)
