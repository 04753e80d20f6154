"""Examples to batches for training with DSS, padded or joined to one row without padding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastdss.errors import UserError
from fastdss.loss.functional import live_rows
from fastdss.models.inputs import join_media, join_tokens
from fastdss.star.align import IGNORE

from .config import DSSConfig
from .example import COLUMNS, Row, read_row

_ROUNDING = 0.5  # a log-probability above 0 by no more than this is the rounding of 16-bit logits


@dataclass
class DSSCollator:
    """Makes one batch of examples: tensors ``[B, T]``, or ``[1, T]`` without padding.

    An example has one value per token in each column: ``input_ids``, ``labels`` (-100: does not count), and in all
    examples or in none ``token_weights``, ``ref_logprobs``, and for the forward KL ``ref_offset`` and ``ref_slope``
    (which becomes ``[B, T, D]``). A packed example also has ``seq_lengths``, the lengths of its documents, or
    ``position_ids`` that start again at 0 with each. The first label of a document never counts, since no token
    predicts it.

    Columns that change what the model sees become part of the batch: token types, positions, images and what belongs
    to them, as the model's processor returns them for one row. Other columns are left out. So are tokens that the row's
    own ``attention_mask`` hides at its two ends: a row that was padded on the left counts as the row without padding.

    With ``token_weights`` the batch also has ``rows: [R]`` and ``kl_rows``, which say which tokens the loss has to
    compute. They are found here, on the host, so that the loss need not ask the device and wait for it.

    Args:
        pad_token_id: what ``input_ids`` are padded with.
        kl_scale: shortcut to that field of ``config``.
        padding_free: join all documents to a single row. ``position_ids`` keep them apart, and for variable-length
            attention kernels ``cu_seq_lens_*`` (sdpa and eager make their mask from ``position_ids``). Packed examples
            need it; examples with images cannot have it.
        pad_to_multiple_of: the width becomes a multiple of this; None: any width.
        model_inputs: the names that the model's forward takes (``fastdss.models.inputs.input_names``); the trainers
            set them. None: all inputs that any model of transformers is known to take of a row.
        config: the options that the model was enabled with; they decide which tokens the loss has to compute, and
            whether it compares with a reference. None: the defaults of ``DSSConfig``.

    Raises:
        ValueError: for a ``kl_scale`` that no loss takes, or no ``pad_token_id``; in a call, for columns that are
            missing, ragged, or (ref_logprobs) no log-probabilities.
    """

    pad_token_id: int
    kl_scale: float | None = None
    padding_free: bool = False
    pad_to_multiple_of: int | None = None
    model_inputs: frozenset[str] | None = None
    config: DSSConfig | None = None

    def __post_init__(self) -> None:
        if self.pad_token_id is None:  # as a tokenizer without a padding token says
            raise UserError("pad_token_id: expected a token's number, got None: any will do, for padding never counts")
        self.agreed()

    def agreed(self) -> DSSConfig:
        """The options that were said, whole and by the shortcut."""
        return (self.config or DSSConfig()).with_said(kl_scale=self.kl_scale)

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        names = _aligned_names(examples)
        rows = [read_row(index, example, names, self.model_inputs) for index, example in enumerate(examples)]
        self._refuse(rows)
        for row in rows:
            row.columns["labels"] = _without_firsts(row.columns["labels"], row.documents)
        config = self.agreed()
        if config.needs_reference and {"token_weights", "ref_logprobs"} <= set(names):
            _refuse_improbable(rows, config)
        lengths = [len(row) for row in rows]
        width = sum(lengths) if self.padding_free else max(lengths)
        width += -width % (self.pad_to_multiple_of or 1)
        batch: dict[str, Any] = {name: self._join(name, rows, width) for name in names}
        batch |= self._flat_inputs(rows, width) if self.padding_free else _padded_inputs(rows, width)
        media = sorted({name for row in rows for name in row.media})
        batch |= join_media([row.media for row in rows], media)
        if "token_weights" in batch:
            live = live_rows(batch["labels"], batch["token_weights"], kl_scale=config.kl_scale, shift=True)
            batch |= {"rows": live.index, "kl_rows": live.kl_rows}
        return batch

    def _refuse(self, rows: Sequence[Row]) -> None:
        for index, row in enumerate(rows):
            if not self.padding_free and len(row.documents) > 1:
                raise UserError(f"example {index}: packed examples (seq_lengths) need padding_free=True")
            if self.padding_free and (row.tokens or row.media or row.mask is not None):
                names = sorted({*row.tokens, *row.media, *(["attention_mask"] if row.mask is not None else [])})
                raise UserError(
                    f"example {index}: {', '.join(names)}: documents in one row cannot have them, for a model reads "
                    "them row by row: set padding_free=False and leave the rows unpacked, or drop the column if the "
                    "model does not need it"
                )
            if row.tokens.keys() - {"position_ids"} != rows[0].tokens.keys() - {"position_ids"}:
                raise UserError(f"example {index} has {sorted(row.tokens)}, example 0 has {sorted(rows[0].tokens)}")

    def _join(self, name: str, rows: Sequence[Row], width: int) -> Tensor:
        """A column of all rows as ``[B, width]``, or ``[1, width]`` without padding."""
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


def padding_of(tokenizer: Any) -> int:
    """The id to pad with: the tokenizer's, else that of its end of text, or any, for padding never counts."""
    known = (getattr(tokenizer, name, None) for name in ("pad_token_id", "eos_token_id"))
    return next((number for number in known if number is not None), 0)


def _padded_inputs(rows: Sequence[Row], width: int) -> dict[str, Any]:
    mask = (torch.arange(width) < torch.tensor([len(row) for row in rows])[:, None]).long()
    for index, row in enumerate(rows):
        if row.mask is not None:
            mask[index, : len(row)] = row.mask
    inputs: dict[str, Any] = {"attention_mask": mask}
    for name in sorted({name for row in rows for name in row.tokens}):
        values = [row.tokens[name] if name in row.tokens else torch.arange(len(row)) for row in rows]  # positions
        inputs[name] = join_tokens(name, values, width)
    return inputs


def _aligned_names(examples: Sequence[Mapping[str, Any]]) -> list[str]:
    """Which of COLUMNS the examples have; raises ``ValueError`` where they do not all have the same."""
    if not examples:
        raise UserError("examples: expected at least one, got none")
    names = [name for name in COLUMNS if name in examples[0]]
    for index, example in enumerate(examples):
        for name in ("input_ids", "labels"):
            if name not in example:
                raise UserError(f"example {index} has no {name!r}; it has {sorted(example)}")
        if [name for name in COLUMNS if name in example] != names:
            raise UserError(f"example {index} has columns {sorted(example)}, example 0 has {sorted(examples[0])}")
        # None is what a table holds in a column that the row does not have.
        if absent := [name for name in names if example[name] is None]:
            raise UserError(f"example {index} has no {absent[0]} (null): give it some, or leave the row out")
    return names


def _inner_shape(name: str, rows: Sequence[Tensor]) -> torch.Size:
    """The shape of a column's value for one token: ``[]``, or ``[D]`` for ``ref_slope``. A row without any label has no
    vector, and so takes its ``D`` from the other rows."""
    shapes = {row.shape[1:] for row in rows}
    known = {shape for shape in shapes if shape.numel()}
    if len(known) > 1:
        raise UserError(f"{name}: expected vectors of one width in all examples, got {sorted(map(list, known))}")
    return next(iter(known or shapes))


def _refuse_improbable(rows: Sequence[Row], config: DSSConfig) -> None:
    """Raise ``ValueError`` for ``ref_logprobs`` that are no log-probabilities. A NaN would make every weight of the
    model NaN at the next step; negative log-likelihoods, given by mistake, would pull it to a wrong reference."""
    names = "labels", "token_weights", "ref_logprobs"
    for index, row in enumerate(rows):
        labels, weights, logprobs = (row.columns[name] for name in names)
        compared = torch.zeros_like(weights, dtype=torch.bool)  # with the reference, by the KL term or the first one
        if config.kl_scale:
            compared |= weights < 1
        if config.csft_beta is not None:
            compared |= weights > 0
        bad = (labels != IGNORE) & compared & ~(logprobs.isfinite() & (logprobs <= _ROUNDING))
        if bad.any():
            at = int(bad.nonzero()[0])
            raise UserError(
                f"example {index}: ref_logprobs[{at + row.kept.start}]: expected a log-probability, finite and not "
                f"above 0, got {logprobs[at].item()}"
            )


def _without_firsts(labels: Tensor, lengths: list[int]) -> Tensor:
    """A copy of ``labels`` in which the first label of each document does not count."""
    firsts = torch.tensor([0, *lengths[:-1]]).cumsum(0)
    return labels.index_fill(0, firsts, IGNORE)


def _flat_attention(lengths: list[int], width: int) -> dict[str, Any]:
    """The inputs that tell attention where documents of a single row begin; padding at the end is one more document."""
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
