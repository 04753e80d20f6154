"""Private names of TRL."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from trl import SFTTrainer


class OpenSFTTrainer(SFTTrainer):
    """``SFTTrainer`` whose preparation and metrics can be reached; it makes all of them private."""

    _total_train_tokens: Any  # of this rank; a tensor on the device once ``count_tokens`` was called

    def prepared(
        self,
        dataset: Any,
        processing_class: Any,
        args: Any,
        packing: bool,
        formatting_func: Any,
        name: str,
    ) -> Any:
        """A data set as SFTTrainer prepares it; to be extended. ``skip_prepare_dataset`` is all or nothing."""
        return super()._prepare_dataset(dataset, processing_class, args, packing, formatting_func, name)

    def _prepare_dataset(
        self,
        dataset: Any,
        processing_class: Any,
        args: Any,
        packing: bool,
        formatting_func: Any,
        dataset_name: str,
    ) -> Any:
        return self.prepared(dataset, processing_class, args, packing, formatting_func, dataset_name)

    @property
    def text_tokenizer(self) -> Any:
        """The tokenizer, with the padding that SFTTrainer chose; within a processor where that is what was given."""
        return self._tokenizer

    def metrics_of(self, mode: str) -> dict[str, list[Any]]:
        """TRL's own metrics of "train" or "eval" since they were last logged, each a list of values."""
        found: dict[str, list[Any]] = self._metrics[mode]
        return found

    @property
    def tokens_seen(self) -> Any:
        """How many tokens this rank has trained on, as TRL counts them for its ``num_tokens``."""
        return self._total_train_tokens

    def count_tokens(self, more: Tensor) -> None:
        """Add what a batch that TRL did not see holds."""
        self._total_train_tokens += more
        self._metrics["train"]["num_tokens"] = [self._total_train_tokens]

    @property
    def router_coefficient(self) -> float | None:
        """By what TRL multiplies the experts' auxiliary loss, None without one. It writes that to the config, which a
        model has read already."""
        return float(self.router_aux_loss_coef) if self.aux_loss_enabled else None
