"""What a trainer checks of its data: which collator it needs, whether it holds the reference's columns, and whether
answers end with a token at which ``generate`` stops."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sized
from dataclasses import replace
from typing import Any

from fastdss.errors import UserError
from fastdss.loss.objective import KL
from fastdss.models.inputs import input_names
from fastdss.models.stops import stop_tokens, unstopped
from fastdss.star.scores import StarScores

from .collator import DSSCollator, padding_of
from .config import DSSConfig
from .enable import bare_model, dss_config
from .example import label_documents
from .forward import refuse_another_head
from .prepare import column_names, prepare_dss_dataset
from .scored_rows import holds_scores

_log = logging.getLogger(__name__)
_ROWS_LOOKED_AT = 32  # of the data, for a missing end of turn: a choice, as rows of one template all end alike


def default_collator(trainer: Any, config: DSSConfig) -> DSSCollator:
    """A ``DSSCollator`` for the trainer's data. The padding is the tokenizer's, or any token: padding never counts."""
    dataset = trainer.train_dataset if trainer.train_dataset is not None else trainer.eval_dataset
    dataset = next(iter(dataset.values()), None) if isinstance(dataset, dict) else dataset
    columns = column_names(dataset)
    taken, packed = input_names(bare_model(trainer.model)), _is_packed(dataset, columns)
    return DSSCollator(padding_of(trainer.processing_class), padding_free=packed, model_inputs=taken, config=config)


def _is_packed(dataset: Any, columns: Iterable[str]) -> bool:
    """Whether rows hold several documents: there are ``seq_lengths``, or the first row's positions start again at 0."""
    if "seq_lengths" in columns:
        return True
    if "position_ids" not in columns or not isinstance(dataset, Sized) or not len(dataset):
        return False
    positions = dataset[0]["position_ids"]  # type: ignore[index]
    return positions is not None and list(positions[1:]).count(0) > 0


def warn_unstopped(trainer: Any) -> None:
    """Warn where no label is a token at which ``generate`` stops: the model would learn never to end an answer."""
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


def check_collator(collator: Any, config: DSSConfig | None) -> None:
    """Raise ``UserError`` where a ``DSSCollator`` was told other options than the model."""
    if not isinstance(collator, DSSCollator) or config is None:
        return
    # A trainer's label_smoothing_factor becomes the model's own later, and a collator does not read it.
    said = collator.config and replace(collator.config, label_smoothing=config.label_smoothing)
    if said is not None and (differing := config.contradicted(said)):
        pairs = [(name, getattr(config, name), getattr(said, name)) for name in differing]
        words = "; ".join(f"{name}: expected {known} as in the model, got {given}" for name, known, given in pairs)
        raise UserError(f"DSSCollator(config=): {words}: give it the model's")
    if collator.agreed().kl_scale == 0 and config.kl_scale:
        raise UserError(
            f"DSSCollator(kl_scale=0) leaves out rows that kl_scale={config.kl_scale} needs: give it the same"
        )


def check_reference(trainer: Any, ref_model: Any) -> None:
    """Raise ``UserError`` where a full KL has no reference, neither in the data nor in ``ref_model``; where one data
    set has the reference's columns and another has not, which the first evaluation would find; and where columns of the
    forward KL do not belong to the policy's head."""
    config = dss_config(trainer.model)
    if config is None or not config.needs_reference:
        return
    datasets = [trainer.train_dataset, trainer.eval_dataset]
    datasets = [part for d in datasets for part in (d.values() if isinstance(d, dict) else [d]) if part is not None]
    columns = [column_names(dataset) for dataset in datasets]
    known = any(map(config.known_by, columns))
    if known and ref_model is None and any("token_weights" in c and not config.known_by(c) for c in columns):
        raise UserError(
            "token_weights need a reference: expected the columns of add_reference_logprobs in all data sets, or "
            "ref_model=, got data sets with and without them"
        )
    if not config.needs_logits:
        return
    forward = config.kl == KL.FORWARD
    if known:
        refuse_another_head(bare_model(trainer.model))
    elif ref_model is None and not (forward and [] in columns):  # whether a stream has the columns, its batches show
        more = ", or the columns of add_reference_logprobs(forward_kl=True)" if forward else ""
        raise UserError(
            f"kl={str(config.kl)!r} sums over the vocabulary: it needs ref_model='adapter' or a model{more}"
        )


def with_prepared(given: Mapping[str, Any]) -> dict[str, Any]:
    """Trainer's arguments, with data sets of scored conversations replaced by tokenised ones (``processing_class``)."""
    prepared, tokenizer = dict(given), given.get("processing_class")
    for name in ("train_dataset", "eval_dataset"):
        dataset = given.get(name)
        if isinstance(dataset, dict):
            prepared[name] = {split: _prepared(part, tokenizer, name) for split, part in dataset.items()}
        elif dataset is not None:
            prepared[name] = _prepared(dataset, tokenizer, name)
    return prepared


def _prepared(dataset: Any, tokenizer: Any, name: str) -> Any:
    if not isinstance(dataset, StarScores):
        columns = column_names(dataset)
        if "token_weights" in columns or not holds_scores(columns):
            return dataset
    if tokenizer is None:
        raise UserError(f"{name}: scored conversations need processing_class, the policy's tokenizer")
    return prepare_dss_dataset(dataset, tokenizer)
