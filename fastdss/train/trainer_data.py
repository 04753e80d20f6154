"""What a trainer looks for in its data: which collator it needs, and whether answers end where ``generate`` stops."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sized
from typing import Any

from fastdss.models.inputs import input_names
from fastdss.models.stops import stop_tokens, unstopped

from .collator import DSSCollator, label_documents
from .enable import bare_model

_log = logging.getLogger(__name__)
_ROWS_LOOKED_AT = 32


def default_collator(trainer: Any, kl_scale: float) -> DSSCollator:
    """``DSSCollator`` for the trainer's data, with its tokenizer's padding (any id does: padding never counts)."""
    dataset = trainer.train_dataset if trainer.train_dataset is not None else trainer.eval_dataset
    dataset = next(iter(dataset.values()), None) if isinstance(dataset, dict) else dataset
    columns = getattr(dataset, "column_names", None)
    if columns is None and isinstance(dataset, Sized) and len(dataset):  # data that streams may not know its columns
        columns = list(dataset[0])  # type: ignore[index]
    tokenizer = trainer.processing_class
    pad = getattr(tokenizer, "pad_token_id", None)
    pad = getattr(tokenizer, "eos_token_id", None) if pad is None else pad
    taken = input_names(bare_model(trainer.model))
    return DSSCollator(pad or 0, kl_scale=kl_scale, padding_free=_is_packed(dataset, columns or ()), model_inputs=taken)


def _is_packed(dataset: Any, columns: Iterable[str]) -> bool:
    """Whether rows hold several documents: they say so, or the first one's positions start anew."""
    if "seq_lengths" in columns:
        return True
    if "position_ids" not in columns or not isinstance(dataset, Sized) or not len(dataset):
        return False
    positions = dataset[0]["position_ids"]  # type: ignore[index]
    return positions is not None and list(positions[1:]).count(0) > 0


def tell_unstopped(trainer: Any) -> None:
    """A model that is never shown the token at which ``generate`` stops learns to go on for ever."""
    dataset, stops = trainer.train_dataset, stop_tokens(bare_model(trainer.model))
    if not stops or not isinstance(dataset, Sized) or not hasattr(dataset, "__getitem__"):
        return
    rows = [dataset[index] for index in range(min(len(dataset), _ROWS_LOOKED_AT))]
    labels = [part for row in rows if isinstance(row, Mapping) for part in label_documents(row)]
    if unstopped(labels, stops):
        _log.warning(
            "none of the first %d rows ends with a label at which generate stops (%s): what is trained may never end; "
            "look at the end of an answer in the chat template of %s",
            len(rows),
            ", ".join(map(str, sorted(stops))),
            getattr(trainer.processing_class, "name_or_path", None) or "the tokenizer",
        )
