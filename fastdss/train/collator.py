"""Batches for training with DSS: examples with weights and reference columns, padded or flattened alike."""

from __future__ import annotations

import logging
from bisect import bisect_left, insort
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastdss.errors import UserError, UserTypeError
from fastdss.loss.functional import live_rows
from fastdss.optional import require
from fastdss.star.align import align
from fastdss.star.scored import ScoredConversation

from .scored_rows import read_scored, scored_rows

IGNORED = -100
_ROUNDING = 0.5  # what 16-bit logits may lift a log-probability above 0
_log = logging.getLogger(__name__)
# Columns aligned with input_ids: name -> (dtype, what padding gets)
_COLUMNS: dict[str, tuple[torch.dtype, float]] = {
    "input_ids": (torch.long, 0),
    "labels": (torch.long, IGNORED),
    "token_weights": (torch.float32, 1.0),
    "ref_logprobs": (torch.float32, 0.0),
}


@dataclass
class DSSCollator:
    """Examples (one value per token and column) to one batch of tensors ``[B, T]``, or ``[1, T]`` without padding.

    Each example has ``input_ids`` and ``labels`` (-100: does not count) and, all or none of them, ``token_weights`` and
    ``ref_logprobs``; other columns are left out. A packed example also has ``seq_lengths``, its documents' lengths.

    padding_free: lay all documents one after the other in a single row, told apart by ``position_ids`` and the
    ``cu_seq_lens_*`` of variable-length attention kernels (sdpa and eager build their mask from ``position_ids``).
    Needed for packed examples. The first label of a document never counts: no token before it predicts it.

    With ``token_weights`` the batch also carries ``rows: [R]`` and ``kl_rows``: which rows the loss has to compute
    under this ``kl_scale`` (the model's), known here on the host, so that the loss need not ask the device.
    Raises ``ValueError`` for missing or ragged columns, and for ``ref_logprobs`` that are no log-probabilities where
    the KL term needs them, naming example and column.
    """

    pad_token_id: int
    kl_scale: float = 0.5
    padding_free: bool = False
    pad_to_multiple_of: int | None = None

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        names = self._names(examples)
        columns = {name: [_column(index, name, e[name]) for index, e in enumerate(examples)] for name in names}
        _refuse_ragged(columns)
        documents = [self._documents(index, example) for index, example in enumerate(examples)]
        if not self.padding_free and any(len(lengths) > 1 for lengths in documents):
            raise UserError("packed examples (seq_lengths) need padding_free=True")
        columns["labels"] = [_without_firsts(*pair) for pair in zip(columns["labels"], documents, strict=True)]
        if self.kl_scale > 0 and {"token_weights", "ref_logprobs"} <= columns.keys():
            _refuse_improbable(columns)
        batch: dict[str, Any] = {name: self._join(name, rows) for name, rows in columns.items()}
        width = batch["input_ids"].shape[1]
        if self.padding_free:
            batch |= _flat_attention([length for lengths in documents for length in lengths], width)
        else:
            lengths = torch.tensor([sum(lengths) for lengths in documents])
            batch["attention_mask"] = (torch.arange(width) < lengths[:, None]).long()
        if "token_weights" in batch:
            live = live_rows(batch["labels"], batch["token_weights"], kl_scale=self.kl_scale, shift=True)
            batch |= {"rows": live.index, "kl_rows": live.kl_rows}
        return batch

    def _names(self, examples: Sequence[Mapping[str, Any]]) -> list[str]:
        if not examples:
            raise UserError("examples: expected at least one, got none")
        names = [name for name in _COLUMNS if name in examples[0]]
        for index, example in enumerate(examples):
            for name in ("input_ids", "labels"):
                if name not in example:
                    raise UserError(f"example {index} has no {name!r}; it has {sorted(example)}")
            if [name for name in _COLUMNS if name in example] != names:
                raise UserError(f"example {index} has columns {sorted(example)}, example 0 has {sorted(examples[0])}")
            if absent := [name for name in names if example[name] is None]:  # what a table holds for a row without them
                raise UserError(f"example {index} has no {absent[0]} (null): give it some, or leave the row out")
        return names

    def _documents(self, index: int, example: Mapping[str, Any]) -> list[int]:
        total = len(example["input_ids"])
        lengths = [int(length) for length in example.get("seq_lengths", None) or [total]]
        if sum(lengths) != total or min(lengths) < 1:
            raise UserError(
                f"example {index}: seq_lengths {lengths} do not add up to its {total} tokens, each at least 1"
            )
        return lengths

    def _join(self, name: str, rows: list[Tensor]) -> Tensor:
        dtype, padding = _COLUMNS[name]
        rows = [torch.cat(rows)] if self.padding_free else rows
        width = max(len(row) for row in rows)
        multiple = self.pad_to_multiple_of or 1
        width += -width % multiple
        filler = self.pad_token_id if name == "input_ids" else padding
        joined = torch.full((len(rows), width), filler, dtype=dtype)
        for index, row in enumerate(rows):
            joined[index, : len(row)] = row
        return joined


def _column(index: int, name: str, values: Any) -> Tensor:
    dtype = _COLUMNS[name][0]
    try:
        tensor = torch.as_tensor(values)
    except (RuntimeError, TypeError, ValueError) as error:  # null, text, lists of several lengths
        raise UserTypeError(f"example {index}: {name} must be one number per token ({error})") from None
    if tensor.dim() != 1:
        raise UserError(f"example {index}: {name} must be one number per token, got the shape {list(tensor.shape)}")
    if dtype == torch.long and tensor.is_floating_point() and tensor.numel():
        raise UserTypeError(f"example {index}: {name} must be integers, got {tensor.dtype}")
    return tensor.to(dtype)


def _refuse_ragged(columns: Mapping[str, list[Tensor]]) -> None:
    for name, rows in columns.items():
        for index, (row, ids) in enumerate(zip(rows, columns["input_ids"], strict=True)):
            if len(row) != len(ids):
                raise UserError(f"example {index}: expected {len(ids)} {name}, got {len(row)}")


def _refuse_improbable(columns: Mapping[str, list[Tensor]]) -> None:
    """One NaN would make the model NaN at the next step, and negative log-likelihoods pull it to another reference."""
    names = "labels", "token_weights", "ref_logprobs"
    for index, (labels, weights, logprobs) in enumerate(zip(*(columns[name] for name in names), strict=True)):
        bad = (labels != IGNORED) & (weights < 1) & ~(logprobs.isfinite() & (logprobs <= _ROUNDING))
        if bad.any():
            at = int(bad.nonzero()[0])
            raise UserError(
                f"example {index}: ref_logprobs[{at}] = {logprobs[at].item()}: must be a log-probability, "
                "finite and not above 0"
            )


def _without_firsts(labels: Tensor, lengths: list[int]) -> Tensor:
    """A copy of ``labels`` in which the first of each document does not count."""
    firsts = torch.tensor([0, *lengths[:-1]]).cumsum(0)
    return labels.index_fill(0, firsts, IGNORED)


def _flat_attention(lengths: list[int], width: int) -> dict[str, Any]:
    """What tells attention where the documents of a single row begin; padding at the end is one more document."""
    lengths = lengths + [width - sum(lengths)] * (width > sum(lengths))
    ends = torch.tensor([0, *lengths]).cumsum(0)
    positions = torch.arange(width) - torch.repeat_interleave(ends[:-1], torch.tensor(lengths))
    starts = ends.to(torch.int32)
    return {
        "position_ids": positions[None],
        "cu_seq_lens_q": starts,
        "cu_seq_lens_k": starts,
        "max_length_q": max(lengths),
        "max_length_k": max(lengths),
    }


def pack(examples: Sequence[Mapping[str, Any]], max_length: int) -> Iterator[dict[str, list]]:
    """Examples joined to rows of at most ``max_length`` tokens, longest first into the fullest row that has room.

    All aligned columns travel together and no example is cut; one longer than ``max_length`` raises ``ValueError``.
    Each row has ``seq_lengths``.
    """
    members: list[list[int]] = []
    rows_with: dict[int, list[int]] = {}  # room left -> rows
    rooms: list[int] = []  # the keys of rows_with, ascending
    for index in sorted(range(len(examples)), key=lambda index: -len(examples[index]["input_ids"])):
        length = len(examples[index]["input_ids"])
        if length > max_length:
            raise UserError(f"example {index}: expected at most max_length = {max_length} tokens, got {length}")
        at = bisect_left(rooms, length)
        if at == len(rooms):
            row, room = len(members), max_length
            members.append([])
        else:
            room = rooms[at]
            row = rows_with[room].pop()
            if not rows_with[room]:
                del rows_with[room], rooms[at]
        members[row].append(index)
        if room - length not in rows_with:
            rows_with[room - length] = []
            insort(rooms, room - length)
        rows_with[room - length].append(row)
    for row_members in members:
        chosen = [examples[index] for index in row_members]
        packed: dict[str, list] = {
            name: [value for example in chosen for value in example[name]] for name in _COLUMNS if name in chosen[0]
        }
        packed["seq_lengths"] = [len(example["input_ids"]) for example in chosen]
        yield packed


def prepare_dss_dataset(
    scored: Any,
    tokenizer: Any,
    *,
    max_length: int | None = None,
    packing: bool = False,
    template: str | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
    across: str = "last",
) -> Any:
    """Scored conversations to a ``datasets.Dataset`` with ``input_ids``, ``labels`` and ``token_weights``.

    scored: ``StarScores``, or rows (a ``Dataset`` or a sequence of mappings) of conversations in any known format with
    the scorer's column ``star``, as ``fastdss merge`` and ``StarScorer`` write it (or ``scores``, ``ends`` and
    ``flags`` of the last turn). A conversation is one row, with labels on all its judged turns. ``template``,
    ``template_kwargs``, ``across``: see ``StarScores.token_weights``.

    max_length: rows are cut on the right after tokens and weights were aligned, so each token keeps its own weight;
    rows that are left without any label that counts are dropped, and how many is logged.
    packing: join rows to rows of at most ``max_length`` tokens with ``seq_lengths``; train on them with
    ``DSSCollator(padding_free=True)``.

    Raises ``ValueError`` for rows without scores (flag "failed", NaN), naming them.
    """
    require("prepare_dss_dataset", "train", "datasets")
    from datasets import Dataset

    if packing and max_length is None:
        raise UserError("packing needs max_length, got None")
    options: dict[str, Any] = {"template": template, "template_kwargs": template_kwargs, "across": across}

    def tokenised(rows: Sequence[ScoredConversation], first: int = 0) -> list[dict[str, list]]:
        aligned = align(rows, tokenizer, max_length=max_length, first_row=first, **options)
        return [{name: row[name] for name in ("input_ids", "labels", "token_weights")} for row in aligned]

    def tokenised_columns(batch: Mapping[str, list], indices: list[int]) -> dict[str, list]:
        rows = enumerate(_rows(batch), indices[0])
        return _columns(tokenised([read_scored(index, row) for index, row in rows], indices[0]))

    if isinstance(scored, Dataset):
        prepared = scored.map(tokenised_columns, with_indices=True, batched=True, remove_columns=scored.column_names)
    else:
        prepared = Dataset.from_dict(_columns(tokenised(list(scored_rows(scored)))))
    prepared = _drop_unlabelled(prepared, max_length)
    if packing:
        assert max_length is not None
        prepared = pack_dataset(prepared, max_length)
    return prepared


def truncate_dataset(dataset: Any, max_length: int) -> Any:
    """Aligned columns of a ``datasets.Dataset`` cut on the right together; drops rows left without a label."""
    names = [name for name in _COLUMNS if name in dataset.column_names]

    def cut(*values: list) -> dict[str, list]:
        return {name: value[:max_length] for name, value in zip(names, values, strict=True)}

    return _drop_unlabelled(dataset.map(cut, input_columns=names), max_length)


def _drop_unlabelled(dataset: Any, max_length: int | None) -> Any:
    kept = dataset.filter(lambda labels: any(label != IGNORED for label in labels[1:]), input_columns="labels")
    if len(kept) < len(dataset):
        lost = len(dataset) - len(kept)
        _log.warning("%d of %d rows have no label within max_length = %s: dropped", lost, len(dataset), max_length)
    return kept


def pack_dataset(dataset: Any, max_length: int) -> Any:
    """``pack`` over a ``datasets.Dataset``, ten thousand rows at a time; all aligned columns travel together."""
    names = [name for name in _COLUMNS if name in dataset.column_names]

    def packed(batch: Mapping[str, list]) -> dict[str, list]:
        return _columns(list(pack(_rows({name: batch[name] for name in names}), max_length)))

    return dataset.map(packed, batched=True, batch_size=10_000, remove_columns=dataset.column_names)


def _rows(batch: Mapping[str, list]) -> list[dict[str, Any]]:
    return [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]


def _columns(rows: Sequence[Mapping[str, list]]) -> dict[str, list]:
    return {name: [row[name] for row in rows] for name in (rows[0] if rows else ())}
