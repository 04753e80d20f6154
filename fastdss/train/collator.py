"""Batches for training with DSS: examples with weights and reference columns, padded or flattened alike."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from fastdss.errors import UserError, UserTypeError
from fastdss.loss.functional import live_rows
from fastdss.models.inputs import (
    MEDIA_INPUTS,
    TOKEN_INPUTS,
    as_tensor,
    given_inputs,
    join_media,
    join_tokens,
    token_values,
)

IGNORED = -100
_ROUNDING = 0.5  # by so much may rounded 16-bit logits lift a log-probability above 0
# Columns aligned with input_ids: name -> (dtype, what padding gets)
COLUMNS: dict[str, tuple[torch.dtype, float]] = {
    "input_ids": (torch.long, 0),
    "labels": (torch.long, IGNORED),
    "token_weights": (torch.float32, 1.0),
    "ref_logprobs": (torch.float32, 0.0),
    "ref_offset": (torch.float32, 0.0),
    "ref_slope": (torch.float16, 0.0),  # [T, D], in a table a token's bytes, none where no label counts
}


@dataclass
class DSSCollator:
    """Examples (one value per token and column) to one batch of tensors ``[B, T]``, or ``[1, T]`` without padding.

    Each example has ``input_ids`` and ``labels`` (-100: does not count) and, all or none of them, ``token_weights``,
    ``ref_logprobs``, and for the forward KL ``ref_offset`` and ``ref_slope`` (which becomes ``[B, T, D]``). A packed
    example also has ``seq_lengths``, its documents' lengths, or ``position_ids`` that start anew at 0 with each. The
    first label of a document never counts: no token before it predicts it.

    Columns that change what the model sees go along: token types, positions, images and what belongs to them, as the
    model's processor returns them for one row. Tokens that a row's own ``attention_mask`` hides at its two ends are
    left out: a row padded on the left is the row without its padding. Other columns are left out.

    With ``token_weights`` the batch also carries ``rows: [R]`` and ``kl_rows``: which rows the loss has to compute
    under this ``kl_scale``, known here on the host, so that the loss need not ask the device.

    Args:
        pad_token_id: what ``input_ids`` are padded with.
        kl_scale: the model's.
        padding_free: lay all documents one after the other in a single row, told apart by ``position_ids`` and the
            ``cu_seq_lens_*`` of variable-length attention kernels (sdpa and eager build their mask from
            ``position_ids``). Needed for packed examples; not for images.
        pad_to_multiple_of: of which the width is a multiple; None: any width.
        model_inputs: the names that the model's forward takes (``fastdss.models.inputs.input_names``); the trainers see
            to it. None: all inputs that any model of transformers is known to take of a row.

    Raises:
        ValueError: in a call, for columns that are missing, ragged or (ref_logprobs) no log-probabilities.
    """

    pad_token_id: int
    kl_scale: float = 0.5
    padding_free: bool = False
    pad_to_multiple_of: int | None = None
    model_inputs: frozenset[str] | None = None

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        names = _aligned_names(examples)
        rows = [read_row(index, example, names, self.model_inputs) for index, example in enumerate(examples)]
        self._refuse(rows)
        for row in rows:
            row.columns["labels"] = _without_firsts(row.columns["labels"], row.documents)
        if self.kl_scale > 0 and {"token_weights", "ref_logprobs"} <= set(names):
            _refuse_improbable(rows)
        total = [len(row) for row in rows]
        width = sum(total) if self.padding_free else max(total)
        width += -width % (self.pad_to_multiple_of or 1)
        batch: dict[str, Any] = {name: self._join(name, rows, width) for name in names}
        batch |= self._flat_inputs(rows, width) if self.padding_free else _padded_inputs(rows, width)
        media = sorted({name for row in rows for name in row.media})
        batch |= join_media([row.media for row in rows], media)
        if "token_weights" in batch:
            live = live_rows(batch["labels"], batch["token_weights"], kl_scale=self.kl_scale, shift=True)
            batch |= {"rows": live.index, "kl_rows": live.kl_rows}
        return batch

    def _refuse(self, rows: Sequence[Row]) -> None:
        for index, row in enumerate(rows):
            if not self.padding_free and len(row.documents) > 1:
                raise UserError(f"example {index}: packed examples (seq_lengths) need padding_free=True")
            if self.padding_free and (row.tokens or row.media or row.hidden is not None):
                within = sorted({*row.tokens, *row.media, *(["attention_mask"] if row.hidden is not None else [])})
                raise UserError(
                    f"example {index}: {', '.join(within)}: documents in one row cannot have them, for a model reads "
                    "them row by row: set padding_free=False and leave the rows unpacked, or drop the column if the "
                    "model does not need it"
                )
            if row.tokens.keys() - {"position_ids"} != rows[0].tokens.keys() - {"position_ids"}:
                raise UserError(f"example {index} has {sorted(row.tokens)}, example 0 has {sorted(rows[0].tokens)}")

    def _join(self, name: str, rows: Sequence[Row], width: int) -> Tensor:
        dtype, padding = COLUMNS[name]
        values = [row.columns[name] for row in rows]
        inner = _inner_shape(name, values)
        values = [value if value.shape[1:] == inner else value.new_zeros((len(value), *inner)) for value in values]
        values = [torch.cat(values)] if self.padding_free else values
        filler = self.pad_token_id if name == "input_ids" else padding
        joined = torch.full((len(values), width, *inner), filler, dtype=dtype)
        for index, row in enumerate(values):
            joined[index, : len(row)] = row
        return joined

    def _flat_inputs(self, rows: Sequence[Row], width: int) -> dict[str, Any]:
        lengths = [length for row in rows for length in row.documents]
        real = {"real_tokens": sum(lengths)} if width > sum(lengths) else {}
        return _flat_attention(lengths, width) | real


@dataclass
class Row:
    """An example as tensors, without the padding it came with."""

    columns: dict[str, Tensor]  # of COLUMNS, [T]
    tokens: dict[str, Tensor]  # further inputs of the model with a value per token, [T, ...]
    media: dict[str, Any]  # images and the like, as the processor made them
    documents: list[int]  # lengths
    hidden: Tensor | None  # the row's own attention_mask where it hides tokens between others
    kept: slice  # where these tokens stood in the example

    def __len__(self) -> int:
        return len(self.columns["input_ids"])


def read_row(index: int, example: Mapping[str, Any], names: Sequence[str], taken: frozenset[str] | None) -> Row:
    """``example`` with the columns ``names`` of COLUMNS and the inputs in ``taken`` (None: any known), tight."""
    where = f"example {index}"
    for name in names:
        if example.get(name) is None:
            raise UserError(f"{where} has no {name!r}; it has {sorted(example)}")
    columns = {name: _column(index, name, example[name]) for name in names}
    length = len(columns["input_ids"])
    for name, column in columns.items():
        if len(column) != length:
            raise UserError(f"{where}: expected {length} {name}, got {len(column)}")
    given = given_inputs(example, None if taken is None else taken | {"attention_mask", "position_ids"})
    tokens = {name: token_values(where, name, example[name], length) for name in given if name in TOKEN_INPUTS}
    kept, hidden = _seen(where, tokens.pop("attention_mask", None), columns.get("labels"), length)
    columns = {name: column[kept] for name, column in columns.items()}
    tokens = {name: value[kept] for name, value in tokens.items()}
    documents = _documents(where, example, kept, length)
    if (positions := tokens.get("position_ids")) is not None and positions.ndim == 1:
        lengths = _restarts(positions)
        if lengths is not None and documents not in ([sum(lengths)], lengths):
            raise UserError(f"{where}: seq_lengths {documents}, but position_ids start anew after {lengths} tokens")
        if lengths is not None:
            documents = lengths
            del tokens["position_ids"]
    media = {name: example[name] for name in given if name not in TOKEN_INPUTS}
    return Row(columns, tokens, media, documents, hidden, kept)


def _seen(where: str, mask: Tensor | None, labels: Tensor | None, length: int) -> tuple[slice, Tensor | None]:
    """The tokens between the first and the last that the mask shows, and the mask there if it hides one of them."""
    if mask is None or bool(mask.all()):
        return slice(0, length), None
    if mask.ndim != 1:
        raise UserError(f"{where}: attention_mask: expected one number per token, got the shape {list(mask.shape)}")
    shown = mask.nonzero()[:, 0]
    if not len(shown):
        raise UserError(f"{where}: attention_mask hides every token: leave the row out")
    kept = slice(int(shown[0]), int(shown[-1]) + 1)
    if labels is not None:
        outside = labels.clone()
        outside[kept] = IGNORED
        if (outside != IGNORED).any():
            at = int((outside != IGNORED).nonzero()[0])
            raise UserError(f"{where}: labels[{at}] counts, but attention_mask hides the token: expected {IGNORED}")
    return kept, None if bool(mask[kept].all()) else mask[kept].long()


def _documents(where: str, example: Mapping[str, Any], kept: slice, total: int) -> list[int]:
    given = _integers(example.get("seq_lengths"))
    lengths = given or [kept.stop - kept.start]
    if given and kept.stop - kept.start < total:
        raise UserError(f"{where}: seq_lengths beside an attention_mask that hides tokens: drop one of them")
    if sum(lengths) != kept.stop - kept.start or min(lengths) < 1:
        raise UserError(f"{where}: seq_lengths {lengths} do not add up to its {total} tokens, each at least 1")
    return lengths


def label_documents(row: Mapping[str, Any]) -> list[list[int]]:
    """The labels of each document of a row."""
    labels, lengths = (_integers(row.get(name)) for name in ("labels", "seq_lengths"))
    ends = list(accumulate(lengths or [len(labels)], initial=0))
    return [labels[start:end] for start, end in pairwise(ends)]


def _integers(values: Any) -> list[int]:
    """Of a list, an array or a tensor, as data sets return a column in one format or another; of None: none."""
    return [] if values is None else [int(value) for value in values]


def _restarts(positions: Tensor) -> list[int] | None:
    """Lengths of documents that count 0, 1, 2, … each; None for any other positions."""
    starts = (positions == 0).nonzero()[:, 0]
    if not len(starts) or starts[0] != 0:
        return None
    lengths = torch.diff(torch.cat([starts, torch.tensor([len(positions)])]))
    expected = torch.arange(len(positions)) - torch.repeat_interleave(starts, lengths)
    return lengths.tolist() if torch.equal(expected, positions.long()) else None


def _padded_inputs(rows: Sequence[Row], width: int) -> dict[str, Any]:
    mask = (torch.arange(width) < torch.tensor([len(row) for row in rows])[:, None]).long()
    for index, row in enumerate(rows):
        if row.hidden is not None:
            mask[index, : len(row)] = row.hidden
    inputs: dict[str, Any] = {"attention_mask": mask}
    for name in sorted({name for row in rows for name in row.tokens}):
        values = [row.tokens[name] if name in row.tokens else torch.arange(len(row)) for row in rows]  # positions
        inputs[name] = join_tokens(name, values, width)
    return inputs


def _aligned_names(examples: Sequence[Mapping[str, Any]]) -> list[str]:
    if not examples:
        raise UserError("examples: expected at least one, got none")
    names = [name for name in COLUMNS if name in examples[0]]
    for index, example in enumerate(examples):
        for name in ("input_ids", "labels"):
            if name not in example:
                raise UserError(f"example {index} has no {name!r}; it has {sorted(example)}")
        if [name for name in COLUMNS if name in example] != names:
            raise UserError(f"example {index} has columns {sorted(example)}, example 0 has {sorted(examples[0])}")
        # Null is what a table holds for a row without the column.
        if absent := [name for name in names if example[name] is None]:
            raise UserError(f"example {index} has no {absent[0]} (null): give it some, or leave the row out")
    return names


def _inner_shape(name: str, rows: Sequence[Tensor]) -> torch.Size:
    """Of a column's values: numbers, or the slopes' vectors, whose width a row without any label cannot know."""
    shapes = {row.shape[1:] for row in rows}
    known = {shape for shape in shapes if shape.numel()}
    if len(known) > 1:
        raise UserError(f"{name}: expected vectors of one width in all examples, got {sorted(map(list, known))}")
    return next(iter(known or shapes))


def _vectors(index: int, name: str, values: Any) -> Tensor:
    """[T, D] of one vector per token: a tensor as it is, or the bytes of each, 0 where there are none."""
    if isinstance(values, list) and values and isinstance(values[0], bytes):
        dtype = COLUMNS[name][0]
        sizes = sorted({len(value) for value in values if value})
        if len(sizes) > 1 or any(size % dtype.itemsize for size in sizes):
            raise UserError(f"example {index}: {name}: expected vectors of one width, got {sizes} bytes")
        empty = bytes(sizes[0] if sizes else 0)
        content = bytearray(b"".join(value or empty for value in values))
        tensor = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
        return tensor.view(len(values), -1) if content else tensor.view(len(values), 0)
    try:
        tensor = as_tensor(values)
    except (RuntimeError, TypeError, ValueError) as error:
        raise UserTypeError(f"example {index}: {name}: expected a vector per token ({error})") from None
    if tensor.dim() != 2 or not tensor.is_floating_point():
        raise UserError(f"example {index}: {name}: expected [T, D] numbers, got {list(tensor.shape)} {tensor.dtype}")
    return tensor.to(COLUMNS[name][0])


def _column(index: int, name: str, values: Any) -> Tensor:
    dtype = COLUMNS[name][0]
    if name == "ref_slope":
        return _vectors(index, name, values)
    try:
        tensor = as_tensor(values)
    except (RuntimeError, TypeError, ValueError) as error:  # null, text, or lists of several lengths
        raise UserTypeError(f"example {index}: {name} must be one number per token ({error})") from None
    if tensor.dim() != 1:
        raise UserError(f"example {index}: {name} must be one number per token, got the shape {list(tensor.shape)}")
    if dtype == torch.long and tensor.is_floating_point() and tensor.numel():
        raise UserTypeError(f"example {index}: {name} must be integers, got {tensor.dtype}")
    return tensor.to(dtype)


def _refuse_improbable(rows: Sequence[Row]) -> None:
    """One NaN would make the model NaN at the next step, and negative log-likelihoods pull it to another reference."""
    names = "labels", "token_weights", "ref_logprobs"
    for index, row in enumerate(rows):
        labels, weights, logprobs = (row.columns[name] for name in names)
        bad = (labels != IGNORED) & (weights < 1) & ~(logprobs.isfinite() & (logprobs <= _ROUNDING))
        if bad.any():
            at = int(bad.nonzero()[0])
            raise UserError(
                f"example {index}: ref_logprobs[{at + row.kept.start}] = {logprobs[at].item()}: must be a "
                "log-probability, finite and not above 0"
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


def pack(examples: Sequence[Mapping[str, Any]], max_length: int) -> Iterator[dict[str, list[Any]]]:
    """Examples joined to rows of at most ``max_length`` tokens, longest first into the fullest row that has room. All
    aligned columns travel together and no example is cut.

    Args:
        examples: as ``DSSCollator`` takes them.
        max_length: the longest row, in tokens.

    Returns:
        Iterator: rows with ``seq_lengths``.

    Raises:
        ValueError: for an example that is longer, or that has images, which a packed row cannot have.
    """
    tight = [_unpadded(index, example) for index, example in enumerate(examples)]
    for members in _bins([len(example["input_ids"]) for example in tight], max_length):
        chosen = [tight[index] for index in members]
        packed: dict[str, list[Any]] = {
            name: [value for example in chosen for value in example[name]] for name in chosen[0]
        }
        packed["seq_lengths"] = [len(example["input_ids"]) for example in chosen]
        yield packed


def _unpadded(index: int, example: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The example's aligned columns without the padding that its attention_mask hides."""
    if media := [name for name in MEDIA_INPUTS if example.get(name) is not None]:
        raise UserError(f"example {index}: {', '.join(sorted(media))}: rows with images cannot be packed: pad them")
    names = [name for name in example if name in COLUMNS or name in TOKEN_INPUTS]
    names = [name for name in names if example[name] is not None]
    length = len(example["input_ids"])
    mask = example.get("attention_mask")
    values = None if mask is None else token_values(f"example {index}", "attention_mask", mask, length)
    kept, hidden = _seen(f"example {index}", values, as_tensor(example["labels"]), length)
    if hidden is not None:
        raise UserError(f"example {index}: attention_mask hides tokens between others: such a row cannot be packed")
    positions = example.get("position_ids")
    if positions is not None and _restarts(as_tensor(positions[kept])) != [kept.stop - kept.start]:
        raise UserError(f"example {index}: position_ids other than 0, 1, 2, …: it cannot be packed (again)")
    names = [name for name in names if name not in ("attention_mask", "position_ids")]
    return {name: _as_list(example[name][kept]) for name in names}


def _as_list(values: Any) -> list[Any]:
    """Of a tensor or an array: packed rows are to become a table's."""
    found: list[Any] = values.tolist() if hasattr(values, "tolist") else values
    return found


def _bins(lengths: Sequence[int], max_length: int) -> list[list[int]]:
    """Indices of rows that share a bin: best fit, longest first."""
    members: list[list[int]] = []
    rows_with: dict[int, list[int]] = {}  # room left -> rows
    rooms: list[int] = []  # the keys of rows_with, ascending
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        length = lengths[index]
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
    return members
