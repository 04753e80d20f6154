"""Batches for training with DSS: examples with weights and reference columns, padded or flattened alike."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastdss.loss.functional import live_rows

IGNORED = -100
_ROUNDING = 0.5  # what 16-bit logits may lift a log-probability above 0
# Columns aligned with input_ids: name -> (dtype, what padding gets)
COLUMNS: dict[str, tuple[torch.dtype, float]] = {
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
            raise ValueError("packed examples (seq_lengths) need padding_free=True")
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
            raise ValueError("examples: expected at least one, got none")
        names = [name for name in COLUMNS if name in examples[0]]
        for index, example in enumerate(examples):
            for name in ("input_ids", "labels"):
                if name not in example:
                    raise ValueError(f"example {index} has no {name!r}; it has {sorted(example)}")
            if [name for name in COLUMNS if name in example] != names:
                raise ValueError(f"example {index} has columns {sorted(example)}, example 0 has {sorted(examples[0])}")
            if absent := [name for name in names if example[name] is None]:  # what a table holds for a row without them
                raise ValueError(f"example {index} has no {absent[0]} (null): give it some, or leave the row out")
        return names

    def _documents(self, index: int, example: Mapping[str, Any]) -> list[int]:
        total = len(example["input_ids"])
        lengths = [int(length) for length in example.get("seq_lengths", None) or [total]]
        if sum(lengths) != total or min(lengths) < 1:
            raise ValueError(
                f"example {index}: seq_lengths {lengths} do not add up to its {total} tokens, each at least 1"
            )
        return lengths

    def _join(self, name: str, rows: list[Tensor]) -> Tensor:
        dtype, padding = COLUMNS[name]
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
    dtype = COLUMNS[name][0]
    try:
        tensor = torch.as_tensor(values)
    except (RuntimeError, TypeError, ValueError) as error:  # null, text, lists of several lengths
        raise TypeError(f"example {index}: {name} must be one number per token ({error})") from None
    if tensor.dim() != 1:
        raise ValueError(f"example {index}: {name} must be one number per token, got the shape {list(tensor.shape)}")
    if dtype == torch.long and tensor.is_floating_point() and tensor.numel():
        raise TypeError(f"example {index}: {name} must be integers, got {tensor.dtype}")
    return tensor.to(dtype)


def _refuse_ragged(columns: Mapping[str, list[Tensor]]) -> None:
    for name, rows in columns.items():
        for index, (row, ids) in enumerate(zip(rows, columns["input_ids"], strict=True)):
            if len(row) != len(ids):
                raise ValueError(f"example {index}: expected {len(ids)} {name}, got {len(row)}")


def _refuse_improbable(columns: Mapping[str, list[Tensor]]) -> None:
    """One NaN would make the model NaN at the next step, and negative log-likelihoods pull it to another reference."""
    names = "labels", "token_weights", "ref_logprobs"
    for index, (labels, weights, logprobs) in enumerate(zip(*(columns[name] for name in names), strict=True)):
        bad = (labels != IGNORED) & (weights < 1) & ~(logprobs.isfinite() & (logprobs <= _ROUNDING))
        if bad.any():
            at = int(bad.nonzero()[0])
            raise ValueError(
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
            raise ValueError(f"example {index}: expected at most max_length = {max_length} tokens, got {length}")
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
            name: [value for example in chosen for value in example[name]] for name in COLUMNS if name in chosen[0]
        }
        packed["seq_lengths"] = [len(example["input_ids"]) for example in chosen]
        yield packed
