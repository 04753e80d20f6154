"""One example of training data as tensors: its columns checked, its padding left out, its documents told apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from fastdss.errors import UserError, UserTypeError
from fastdss.models.inputs import TOKEN_INPUTS, as_tensor, given_inputs, token_values
from fastdss.star.align import IGNORE

# Columns aligned with input_ids: name -> (dtype, what padding gets)
COLUMNS: dict[str, tuple[torch.dtype, float]] = {
    "input_ids": (torch.long, 0),
    "labels": (torch.long, IGNORE),
    "token_weights": (torch.float32, 1.0),
    "ref_logprobs": (torch.float32, 0.0),
    "ref_offset": (torch.float32, 0.0),
    "ref_slope": (
        torch.float16,
        0.0,
    ),  # [T, D]; in a table the bytes of each vector, none where no label counts
}


@dataclass
class Row:
    """An example as tensors, without the padding that it came with."""

    columns: dict[str, Tensor]  # those of COLUMNS, [T]
    tokens: dict[str, Tensor]  # the model's other inputs that have a value per token, [T, ...]
    media: dict[str, Any]  # images and the like, as the processor made them
    documents: list[int]  # their lengths; one unless the row is packed
    mask: Tensor | None  # the row's own attention_mask, where it hides tokens between others
    kept: slice  # where these tokens are in the example

    def __len__(self) -> int:
        return len(self.columns["input_ids"])


def read_row(index: int, example: Mapping[str, Any], names: Sequence[str], taken: frozenset[str] | None) -> Row:
    """The example without its padding: the columns ``names`` of COLUMNS, and the model's inputs in ``taken`` (None: all
    inputs that any model is known to take)."""
    where = f"example {index}"
    for name in names:
        if example.get(name) is None:
            raise UserError(f"{where} has no {name!r}; it has {sorted(example)}")
    columns = {name: _column(index, name, example[name]) for name in names}
    length = len(columns["input_ids"])
    for name, column in columns.items():
        if len(column) != length:
            raise UserError(f"{where}: expected {length} {name}, got {len(column)}")
    given = given_inputs(example, None if taken is None else read_inputs(taken))
    tokens = {name: token_values(where, name, example[name], length) for name in given if name in TOKEN_INPUTS}
    kept, inner_mask = seen_tokens(where, tokens.pop("attention_mask", None), columns.get("labels"), length)
    columns = {name: column[kept] for name, column in columns.items()}
    tokens = {name: value[kept] for name, value in tokens.items()}
    documents = _documents(where, example, kept, length)
    if (positions := tokens.get("position_ids")) is not None and positions.ndim == 1:
        lengths = restarts(positions)
        if lengths is not None and documents not in ([sum(lengths)], lengths):
            raise UserError(f"{where}: seq_lengths {documents}, but position_ids start anew after {lengths} tokens")
        if lengths is not None:
            documents = lengths
            del tokens["position_ids"]
    media = {name: example[name] for name in given if name not in TOKEN_INPUTS}
    return Row(columns, tokens, media, documents, inner_mask, kept)


def read_inputs(taken: frozenset[str]) -> frozenset[str]:
    """Columns that are read of a row for a model which takes those in ``taken``: mask and positions tell padding and
    documents, whether or not the model takes them."""
    return taken | {"attention_mask", "position_ids"}


def _column(index: int, name: str, values: Any) -> Tensor:
    """A column of COLUMNS as a tensor of its dtype, ``[T]``, or ``[T, D]`` for ``ref_slope``."""
    dtype = COLUMNS[name][0]
    if name == "ref_slope":
        return _vectors(index, name, values)
    try:
        tensor = as_tensor(values)
    except (RuntimeError, TypeError, ValueError) as error:  # null, text, or lists of several lengths
        raise UserTypeError(f"example {index}: {name}: expected one number per token ({error})") from None
    if tensor.dim() != 1:
        raise UserError(f"example {index}: {name}: expected one number per token, got the shape {list(tensor.shape)}")
    if dtype == torch.long and tensor.is_floating_point() and tensor.numel():
        raise UserTypeError(f"example {index}: {name}: expected integers, got {tensor.dtype}")
    return tensor.to(dtype)


def _vectors(index: int, name: str, values: Any) -> Tensor:
    """``[T, D]``, a vector per token: from such a tensor, or from the bytes of each vector (no bytes: zeros)."""
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


def seen_tokens(where: str, mask: Tensor | None, labels: Tensor | None, length: int) -> tuple[slice, Tensor | None]:
    """The tokens from the first to the last that the mask shows; and the mask of these, if it hides one of them."""
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
        outside[kept] = IGNORE
        if (outside != IGNORE).any():
            at = int((outside != IGNORE).nonzero()[0])
            raise UserError(f"{where}: labels[{at}] counts, but attention_mask hides the token: expected {IGNORE}")
    return kept, None if bool(mask[kept].all()) else mask[kept].long()


def _documents(where: str, example: Mapping[str, Any], kept: slice, total: int) -> list[int]:
    """Lengths of the documents in an example: its ``seq_lengths``, else one document."""
    given = _seq_lengths(example)
    lengths = given or [kept.stop - kept.start]
    if given and kept.stop - kept.start < total:
        raise UserError(f"{where}: seq_lengths beside an attention_mask that hides tokens: drop one of them")
    if sum(lengths) != kept.stop - kept.start or min(lengths) < 1:
        raise UserError(f"{where}: seq_lengths {lengths} do not add up to its {total} tokens, each at least 1")
    return lengths


def restarts(positions: Tensor) -> list[int] | None:
    """Lengths of the documents whose positions are 0, 1, 2, … each; None for any other positions."""
    starts = (positions == 0).nonzero()[:, 0]
    if not len(starts) or starts[0] != 0:
        return None
    lengths = torch.diff(torch.cat([starts, torch.tensor([len(positions)])]))
    expected = torch.arange(len(positions)) - torch.repeat_interleave(starts, lengths)
    return lengths.tolist() if torch.equal(expected, positions.long()) else None


def label_documents(row: Mapping[str, Any]) -> list[list[int]]:
    """The labels of each document of a row."""
    labels, lengths = as_list(row.get("labels")), _seq_lengths(row)
    ends = list(accumulate(lengths or [len(labels)], initial=0))
    return [labels[start:end] for start, end in pairwise(ends)]


def _seq_lengths(row: Mapping[str, Any]) -> list[int]:
    return [int(length) for length in as_list(row.get("seq_lengths"))]


def as_list(values: Any) -> list[Any]:
    """A column's values as a list. Data sets return lists, arrays or tensors, by their format; None becomes empty."""
    if values is None:
        return []
    found: list[Any] = values.tolist() if hasattr(values, "tolist") else list(values)
    return found
