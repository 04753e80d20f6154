"""Private names of TRL."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor
from trl import SFTTrainer


def made_from(name: str, args: Any, quantization_config: Any) -> Any:
    """The model that SFTTrainer makes of a name: in float32 if nothing else is said, of the class that the checkpoint
    names. No public function does so, and SFTTrainer itself does it where it also replaces the model's forward, before
    which DSS must be switched on.
    """
    from trl.trainer.utils import create_model_from_path

    options = dict(getattr(args, "model_init_kwargs", None) or {})
    if quantization_config is not None:
        options["quantization_config"] = quantization_config
    state = getattr(args, "distributed_state", None)
    if getattr(state, "distributed_type", None) in ("MULTI_GPU", "DEEPSPEED"):
        options["device_map"] = None
    options.setdefault("trust_remote_code", getattr(args, "trust_remote_code", False))
    return create_model_from_path(name, **options)


class Preparation(NamedTuple):
    """How SFTTrainer prepares a data set; ``name`` is "train" or "eval", or the name of one of several."""

    processing_class: Any
    args: Any
    packing: bool
    formatting_func: Any
    name: str


class OpenSFTTrainer(SFTTrainer):
    """``SFTTrainer`` with names for its preparation of data and its metrics, which it keeps private."""

    _total_train_tokens: Any  # of this rank; a tensor on the device once ``count_tokens`` was called

    def prepared(self, dataset: Any, how: Preparation) -> Any:
        """A data set as SFTTrainer prepares it. Subclasses extend it; the public ``skip_prepare_dataset`` turns the
        preparation off for all data sets or for none."""
        return super()._prepare_dataset(dataset, *how)

    def _prepare_dataset(
        self,
        dataset: Any,
        processing_class: Any,
        args: Any,
        packing: bool,
        formatting_func: Any,
        dataset_name: str,
    ) -> Any:
        return self.prepared(dataset, Preparation(processing_class, args, packing, formatting_func, dataset_name))

    @property
    def text_tokenizer(self) -> Any:
        """The tokenizer with the padding that SFTTrainer chose; where a processor was given, the tokenizer in it."""
        return self._tokenizer

    def metrics_of(self, mode: str) -> dict[str, list[Any]]:
        """TRL's own metrics since they were last logged, each a list of values; ``mode`` is "train" or "eval"."""
        metrics: dict[str, list[Any]] = self._metrics[mode]
        return metrics

    @property
    def tokens_seen(self) -> Any:
        """How many tokens this rank has trained on, as TRL counts them for its ``num_tokens``."""
        return self._total_train_tokens

    def count_tokens(self, more: Tensor) -> None:
        """Count the tokens of a batch that did not pass through TRL's own ``compute_loss``."""
        self._total_train_tokens += more
        self._metrics["train"]["num_tokens"] = [self._total_train_tokens]

    @property
    def router_coefficient(self) -> float | None:
        """TRL's factor of the experts' auxiliary loss, None without that loss. TRL writes it to the model's config, but
        a model that is already built does not read it there again."""
        return float(self.router_aux_loss_coef) if self.aux_loss_enabled else None
