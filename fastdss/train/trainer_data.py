"""What a trainer looks for in its data: which collator it needs, and whether answers end where ``generate`` stops."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sized
from typing import Any

from fastdss.errors import UserError
from fastdss.loss.objective import KL
from fastdss.models.inputs import input_names
from fastdss.models.stops import stop_tokens, unstopped

from .collator import DSSCollator, label_documents
from .enable import bare_model, dss_config
from .forward import refuse_another_head
from .prepare import prepare_dss_dataset
from .scored_rows import holds_scores

_log = logging.getLogger(__name__)
_ROWS_LOOKED_AT = 32
_DATASETS = ((3, "train_dataset"), (4, "eval_dataset"))  # places among Trainer's positional arguments
_TOKENIZER = 5


def default_collator(trainer: Any, kl_scale: float) -> DSSCollator:
    """``DSSCollator`` for the trainer's data, with its tokenizer's padding (any id does: padding never counts)."""
    dataset = trainer.train_dataset if trainer.train_dataset is not None else trainer.eval_dataset
    dataset = next(iter(dataset.values()), None) if isinstance(dataset, dict) else dataset
    columns = _columns_of(dataset)
    tokenizer = trainer.processing_class
    pad = getattr(tokenizer, "pad_token_id", None)
    pad = getattr(tokenizer, "eos_token_id", None) if pad is None else pad
    taken = input_names(bare_model(trainer.model))
    return DSSCollator(pad or 0, kl_scale=kl_scale, padding_free=_is_packed(dataset, columns), model_inputs=taken)


def _columns_of(dataset: Any) -> list[str]:
    """As far as they are known: data that streams may not know its columns."""
    columns = getattr(dataset, "column_names", None)
    if columns is None and isinstance(dataset, Sized) and len(dataset):
        columns = list(dataset[0])  # type: ignore[index]
    return list(columns or ())


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


def known_reference(trainer: Any, ref_model: Any) -> None:
    """``UserError`` for a full KL of which neither data nor ``ref_model`` hold the reference, or for another head."""
    config = dss_config(trainer.model)
    if config is None or not config.needs_logits:
        return
    datasets = [trainer.train_dataset, trainer.eval_dataset]
    datasets = [part for d in datasets for part in (d.values() if isinstance(d, dict) else [d]) if part is not None]
    columns = [_columns_of(dataset) for dataset in datasets]
    forward = config.kl == KL.FORWARD
    if any(map(config.known_by, columns)):
        refuse_another_head(bare_model(trainer.model))
    elif ref_model is None and not (forward and [] in columns):  # of a stream, its batches will tell
        more = ", or the columns of add_reference_logprobs(forward_kl=True)" if forward else ""
        raise UserError(
            f"kl={str(config.kl)!r} sums over the vocabulary: it needs ref_model='adapter' or a model{more}"
        )


def with_prepared(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Trainer's arguments, with data sets of scored conversations tokenised by ``processing_class``."""
    given, values = dict(kwargs), list(args)
    tokenizer = values[_TOKENIZER] if len(values) > _TOKENIZER else given.get("processing_class")
    for place, name in _DATASETS:
        dataset = values[place] if len(values) > place else given.get(name)
        if isinstance(dataset, dict):
            dataset = {split: _prepared(part, tokenizer, name) for split, part in dataset.items()}
        elif dataset is not None:
            dataset = _prepared(dataset, tokenizer, name)
        if len(values) > place:
            values[place] = dataset
        elif name in given:
            given[name] = dataset
    return tuple(values), given


def _prepared(dataset: Any, tokenizer: Any, name: str) -> Any:
    columns = list(getattr(dataset, "column_names", None) or ())
    if "token_weights" in columns or not holds_scores(columns):
        return dataset
    if tokenizer is None:
        raise UserError(f"{name}: scored conversations need processing_class, the policy's tokenizer")
    return prepare_dss_dataset(dataset, tokenizer)
