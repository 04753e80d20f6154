"""From scored conversations to training rows: tokenised, aligned with their weights, cut and packed."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence, Sized
from typing import Any

from fastdss.corpus.tables import records_of
from fastdss.errors import UserError, UserTypeError
from fastdss.models.inputs import MEDIA_INPUTS, TOKEN_INPUTS
from fastdss.optional import require
from fastdss.star.align import IGNORE, AlignOptions, align
from fastdss.star.scored import ScoredConversation

from .example import COLUMNS
from .pack import pack
from .scored_rows import read_scored, scored_rows

_log = logging.getLogger(__name__)


def prepare_dss_dataset(
    scored: Any,
    tokenizer: Any,
    *,
    max_length: int | None = None,
    packing: bool = False,
    template: str | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
    across: str = AlignOptions.across,
) -> Any:
    """Turn scored conversations into a ``datasets.Dataset`` with ``input_ids``, ``labels`` and ``token_weights``.

    A conversation becomes one row, with labels on all its judged turns.

    Args:
        scored: ``StarScores``, or rows (a ``Dataset``, an ``IterableDataset``, which stays one, or a sequence of
            mappings) of conversations in any known format with the scorer's column ``star``, as ``fastdss merge`` and
            ``StarScorer`` write it (or ``scores``, ``ends`` and ``flags`` of the last turn).
        tokenizer: the policy's.
        max_length: rows are cut on the right after tokens and weights were aligned, so that each token keeps its own
            weight; rows that are left without any label that counts are dropped, and how many is logged.
        packing: join short rows to rows of at most ``max_length`` tokens with a column ``seq_lengths``; train on them
            with ``DSSCollator(padding_free=True)``.
        template: the chat template; None: the tokenizer's own.
        template_kwargs: further variables of the template.
        across: which score a token gets that touches several chunks, see ``StarScores.token_weights``.

    Returns:
        Dataset: of aligned columns, or an ``IterableDataset`` where one was given.

    Raises:
        ValueError: for rows without scores (flag "failed", NaN), naming them.
    """
    require("prepare_dss_dataset", "train", "datasets")
    from datasets import Dataset, Features, IterableDataset, List, Value

    if isinstance(scored, Mapping):
        raise UserTypeError(f"scored: expected StarScores or rows, got {type(scored).__name__}: pass one of its parts")
    if packing and max_length is None:
        raise UserError("packing needs max_length, got None")
    options = AlignOptions(template, template_kwargs, across, max_length=max_length)
    kinds = {"input_ids": "int64", "labels": "int64", "token_weights": "float32"}
    features = Features({name: List(Value(kind)) for name, kind in kinds.items()})

    def tokenised(rows: Sequence[ScoredConversation], first: int = 0) -> dict[str, list[Any]]:
        aligned = align(rows, tokenizer, options, first_row=first)
        return {name: [row[name] for row in aligned] for name in kinds}

    def tokenised_columns(batch: Mapping[str, list[Any]], indices: list[int]) -> dict[str, list[Any]]:
        rows = enumerate(records_of(batch), indices[0])
        return tokenised([read_scored(index, row) for index, row in rows], indices[0])

    if isinstance(scored, Dataset | IterableDataset):
        how: dict[str, Any] = {"with_indices": True, "batched": True, "features": features}
        prepared = scored.map(tokenised_columns, remove_columns=column_names(scored), **how)
    else:
        prepared = Dataset.from_dict(tokenised(list(scored_rows(scored))), features=features)
    prepared = _drop_unlabelled(prepared, max_length)
    if packing:
        assert max_length is not None
        prepared = pack_dataset(prepared, max_length)
    return prepared


def truncate_dataset(dataset: Any, max_length: int) -> Any:
    """Cut the aligned columns of a ``datasets.Dataset`` on the right, and drop rows that have no label left."""
    names = [name for name in column_names(dataset) if name in COLUMNS or name in TOKEN_INPUTS]

    def cut(*values: list[Any]) -> dict[str, list[Any]]:
        return {name: value and value[:max_length] for name, value in zip(names, values, strict=True)}  # or None

    return _drop_unlabelled(dataset.map(cut, input_columns=names), max_length)


def _drop_unlabelled(dataset: Any, max_length: int | None) -> Any:
    labelled = dataset.filter(lambda labels: any(label != IGNORE for label in labels[1:]), input_columns="labels")
    if isinstance(dataset, Sized) and len(labelled) < len(dataset):  # the rows of a stream cannot be counted
        lost = len(dataset) - len(labelled)
        _log.warning("%d of %d rows have no label within max_length = %s: dropped", lost, len(dataset), max_length)
    return labelled


def pack_dataset(dataset: Any, max_length: int) -> Any:
    """``pack`` over a ``datasets.Dataset``; all aligned columns stay together.

    It packs ten thousand rows at a time, a choice: more rows would fill the packed ones better and need more memory.
    """
    known = COLUMNS.keys() | TOKEN_INPUTS.keys() | MEDIA_INPUTS
    names = [name for name in column_names(dataset) if name in known]

    def packed(batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        return _columns(list(pack(_rows({name: batch[name] for name in names}), max_length)))

    return dataset.map(packed, batched=True, batch_size=10_000, remove_columns=column_names(dataset))


def column_names(dataset: Any) -> list[str]:
    """The data set's columns, or those of its first row where it does not know them; none of a stream that can perhaps
    be read once only."""
    names = getattr(dataset, "column_names", None)
    if names is None and hasattr(dataset, "column_names"):
        names = next(iter(dataset), ())
    elif names is None and isinstance(dataset, Sized) and len(dataset):
        names = dataset[0]  # type: ignore[index]
    return list(names or ())


def _rows(batch: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]


def _columns(rows: Sequence[Mapping[str, list[Any]]]) -> dict[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in (rows[0] if rows else ())}
