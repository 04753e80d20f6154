"""What the loss needs of a reference model, computed once before training, so that training does not need the model."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastdss.console.output import progress_bar
from fastdss.errors import UserError, UserTypeError
from fastdss.models.batching import length_batches
from fastdss.models.inputs import as_tensor, input_names
from fastdss.models.probes import evaluating
from fastdss.models.split_params import layers_gathered
from fastdss.optional import require
from fastdss.star.align import IGNORE

from .collator import DSSCollator
from .enable import bare_model, disable_dss, dss_config, enable_dss
from .example import COLUMNS, read_row
from .reference_cache import ReferenceCache, gather, rank, world_size

# What the reference says of one row, or of one document of a packed row: logprobs [T]; for the forward KL also
# offset [T], and slope [L, D] in fp16, of the tokens whose labels count.
_Answers = dict[str, Tensor]


def reference_logprobs(
    model: Any,
    dataset: Sequence[Mapping[str, Any]] | Any,
    *,
    batch_tokens: int = 8192,
    cache_dir: str | os.PathLike[str] | None = None,
    model_id: str | None = None,
    part_rows: int = 1024,
    progress: bool = False,
) -> list[Tensor]:
    """Log-probabilities of the labels under a reference, for every row of a data set.

    ```python
    log_softmax(model(input_ids).logits, -1)[:, t - 1, labels[t]]
    ```

    No logits are built and no gradient is kept. Run it under the autocast and in the dtype that training will use.
    Under ``torch.distributed`` all ranks must call it with the same data set; each computes a share of the rows, and
    all return all of them.

    Args:
        model: the reference, any model ``enable_dss`` takes; with PEFT inside ``model.disable_adapter()``.
        dataset: rows with ``input_ids`` and ``labels``, and any other input that the model takes (images, token types,
            …; see ``DSSCollator``). Packed rows have ``seq_lengths``; their documents are computed one by one.
        batch_tokens: tokens of one forward, padding included.
        cache_dir: a folder for finished parts, named by a hash of their rows, the model's weights and the precision. A
            second run reads them, an interrupted one goes on, and edited rows are computed again.
        model_id: a name for the weights (a repository and its revision, say), which are then not hashed.
        part_rows: rows of a part.
        progress: show a bar.

    Returns:
        list: of one float32 tensor ``[T]`` per row, aligned with its ``input_ids``, 0 where no label counts;
            ``add_reference_logprobs`` makes a column of them.

    Raises:
        ValueError: where a log-probability is not finite, naming the row.
    """
    options = _Options(batch_tokens, cache_dir, model_id, part_rows, progress)
    return [row["logprobs"] for row in _answers(model, dataset, "logprobs", options)]


def reference_columns(
    model: Any,
    dataset: Sequence[Mapping[str, Any]] | Any,
    *,
    forward_kl: bool = False,
    batch_tokens: int = 8192,
    cache_dir: str | os.PathLike[str] | None = None,
    model_id: str | None = None,
    part_rows: int = 1024,
    progress: bool = False,
) -> list[dict[str, Any]]:
    """The reference's columns for every row of a data set: ``DSSCollator`` takes ``row | columns``.

    ``ref_logprobs`` is a float32 tensor ``[T]`` as ``reference_logprobs`` returns it. With ``forward_kl=True`` there
    are also ``ref_offset`` ``[T]`` and ``ref_slope``, a list of ``T`` byte strings: ``D`` numbers in fp16 (2 D bytes)
    for each token whose label counts, an empty string for the others. ``kl="forward"`` takes them where policy and
    reference share an output head that is frozen and has no adapters (LoRA). See ``fastdss.forward_reference``.

    Args:
        model: the reference.
        dataset: as in ``reference_logprobs``, like the others.
        forward_kl: whether the columns of the forward KL are made.
        batch_tokens: tokens of one forward.
        cache_dir: a folder for finished parts.
        model_id: a name for the weights, which are then not hashed.
        part_rows: rows of a part.
        progress: show a bar.

    Returns:
        list: of one mapping per row.

    Raises:
        ValueError: for a model with a softcap, whose logits are not linear in its hidden states, and where an answer is
            not finite, naming the row.
    """
    options = _Options(batch_tokens, cache_dir, model_id, part_rows, progress)
    answers = _answers(model, dataset, "reference" if forward_kl else "logprobs", options)
    return [_columns(row, dataset[index]) for index, row in enumerate(answers)]


def add_reference_logprobs(
    dataset: Any,
    model: Any,
    *,
    forward_kl: bool = False,
    batch_tokens: int = 8192,
    cache_dir: str | os.PathLike[str] | None = None,
    model_id: str | None = None,
    part_rows: int = 1024,
    progress: bool = False,
) -> Any:
    """A data set with the reference's column ``ref_logprobs``, float32; see ``reference_logprobs``.

    Args:
        dataset: a ``datasets.Dataset`` of rows with ``input_ids`` and ``labels``, such as ``prepare_dss_dataset``
            makes.
        model: the reference.
        forward_kl: the columns ``ref_offset`` and ``ref_slope`` as well, by which ``kl="forward"`` needs no reference
            model in training: see ``reference_columns``, also for what they cost.
        batch_tokens: as in ``reference_logprobs``, like the others.
        cache_dir: a folder for finished parts.
        model_id: a name for the weights, which are then not hashed.
        part_rows: rows of a part.
        progress: show a bar.

    Returns:
        Dataset: the data set with the columns; earlier ones of these names are replaced.

    Raises:
        ValueError: as ``reference_columns``.
    """
    require("add_reference_logprobs", "train", "datasets")
    from datasets import Dataset, Features, List, Value, concatenate_datasets

    if not isinstance(dataset, Dataset):  # else it would fail at the end, after hours of work
        raise UserTypeError(
            f"dataset: expected a datasets.Dataset, got {type(dataset).__name__}: Dataset.from_list(list(rows)) makes "
            "one; reference_logprobs takes any sequence of rows"
        )
    options = _Options(batch_tokens, cache_dir, model_id, part_rows, progress)
    answers = _answers(model, dataset, "reference" if forward_kl else "logprobs", options)
    kinds = {"ref_logprobs": "float32"}
    kinds |= {"ref_offset": "float32", "ref_slope": "large_binary"} if forward_kl else {}
    features = Features({name: List(Value(kind)) for name, kind in kinds.items()})
    old = [name for name in ("ref_logprobs", "ref_offset", "ref_slope") if name in dataset.column_names]
    dataset = dataset.remove_columns(old) if old else dataset
    parts = []
    for start in range(0, len(answers), part_rows):  # in parts: a list of floats takes 8 times the tensor's bytes
        part = range(start, min(start + part_rows, len(answers)))
        rows = [_columns(answers[index], {"labels": dataset[index]["labels"]}) for index in part]
        lists = {name: [row[name] if name == "ref_slope" else row[name].tolist() for row in rows] for name in kinds}
        parts.append(Dataset.from_dict(lists, features=features))
    added = concatenate_datasets(parts) if parts else Dataset.from_dict({name: [] for name in kinds}, features=features)
    return concatenate_datasets([dataset, added], axis=1)


class _Options(NamedTuple):
    batch_tokens: int
    cache_dir: str | os.PathLike[str] | None
    model_id: str | None
    part_rows: int
    progress: bool


def _columns(answers: _Answers, row: Mapping[str, Any]) -> dict[str, Any]:
    if "slope" not in answers:
        return {"ref_logprobs": answers["logprobs"]}
    stored = iter(answers["slope"])
    slopes = [b"" if label == IGNORE else next(stored).numpy().tobytes() for label in row["labels"]]
    return {"ref_logprobs": answers["logprobs"], "ref_offset": answers["offset"], "ref_slope": slopes}


def _answers(model: Any, dataset: Any, ask: str, options: _Options) -> list[_Answers]:
    """The reference's answers for all rows. ``ask`` is the ``dss_ask`` of the model's forward: "logprobs", or
    "reference" for slopes and offsets too."""
    batch_tokens, cache_dir, model_id, part_rows, progress = options
    if batch_tokens < 1 or part_rows < 1:
        raise UserError(f"expected positive batch_tokens and part_rows, got {batch_tokens} and {part_rows}")
    cache = ReferenceCache(cache_dir, model, model_id, ask) if cache_dir is not None else None
    parts = [range(start, min(start + part_rows, len(dataset))) for start in range(0, len(dataset), part_rows)]
    answers: list[_Answers] = []
    with _answering(model), progress_bar(len(dataset), "reference", "rows", shown=progress and rank() == 0) as bar:
        for part in parts:
            rows = [dataset[index] for index in part]
            stored = cache.load(rows) if cache else None
            of_part = None if stored is None else _split(stored, rows)
            if of_part is None:
                of_part = _compute(model, rows, part.start, batch_tokens, ask)
                for index, row in zip(part, of_part, strict=True):
                    if not all(bool(tensor.isfinite().all()) for tensor in row.values()):
                        raise UserError(f"row {index}: the reference's log-probabilities or slopes are not finite")
                if cache:
                    cache.store(rows, {name: torch.cat(column) for name, column in _by_name(of_part).items()})
            answers += of_part
            bar.update(len(rows))
    return answers


def _by_name(answers: list[_Answers]) -> dict[str, list[Tensor]]:
    """Each kind of answers as a list over rows. Empty tensors are left out, since the slopes of a row without labels do
    not have the others' width and could not be joined with them."""
    by_name = {name: [row[name] for row in answers] for name in answers[0]}
    return {name: [value for value in values if value.numel()] or values[:1] for name, values in by_name.items()}


def _split(stored: dict[str, Tensor], rows: list[Mapping[str, Any]]) -> list[_Answers] | None:
    """The stored answers of a part, row by row; None where their lengths do not fit these rows."""
    tokens = [len(row["input_ids"]) for row in rows]
    lengths = {"logprobs": tokens, "offset": tokens, "slope": [_counting(row) for row in rows]}
    if any(len(values) != sum(lengths[name]) for name, values in stored.items()):
        return None
    split = {name: values.split(lengths[name]) for name, values in stored.items()}
    return [{name: parts[index].clone() for name, parts in split.items()} for index in range(len(rows))]


def _counting(row: Mapping[str, Any]) -> int:
    """How many labels are not ignored, those at the beginning of documents included, which no token predicts."""
    return int((as_tensor(row["labels"]) != IGNORE).sum())


def _compute(model: Any, rows: list[Mapping[str, Any]], first_row: int, batch_tokens: int, ask: str) -> list[_Answers]:
    """Answers of one part's rows; every rank runs the same number of forwards, as FSDP needs."""
    taken = input_names(bare_model(model))
    documents = [part for at, row in enumerate(rows) for part in _documents(at, first_row + at, row, taken)]
    collate = DSSCollator(pad_token_id=0, model_inputs=taken)
    lengths = [document.length for document in documents]
    batches = list(length_batches(lengths, padded=batch_tokens, longest_first=True))
    device = bare_model(model).get_input_embeddings().weight.device
    mine: dict[int, _Answers] = {}
    for first in range(0, len(batches), world_size()):
        at = first + rank()
        members = batches[at if at < len(batches) else first]  # a rank without a batch repeats one, to take part
        batch = collate([documents[i].columns for i in members])
        batch = {k: v.to(device) if torch.is_tensor(v) else v for k, v in batch.items()}
        output = model(**batch, dss_ask=ask)
        if at < len(batches):
            mine |= {i: _of_document(output, row, documents[i]) for row, i in enumerate(members)}
    by_rank = gather(mine)
    answers = [next(theirs[i] for theirs in by_rank if i in theirs) for i in range(len(documents))]
    return [
        _row_of(row, [(d, a) for d, a in zip(documents, answers, strict=True) if d.row == at])
        for at, row in enumerate(rows)
    ]


def _of_document(output: Any, row: int, document: _Document) -> _Answers:
    answers = {"logprobs": output.logprobs[row, : document.length].float().cpu().clone()}
    if output.ref_slope is not None:
        counts = torch.as_tensor(document.columns["labels"]) != IGNORE
        answers["slope"] = output.ref_slope[row, : document.length].cpu()[counts].to(COLUMNS["ref_slope"][0])
        answers["offset"] = output.ref_offset[row, : document.length].float().cpu().clone()
    return answers


def _row_of(row: Mapping[str, Any], documents: list[tuple[_Document, _Answers]]) -> _Answers:
    """The row's answers: those of its documents, at their places."""
    names = [name for name in documents[0][1] if name != "slope"]
    whole: _Answers = {name: torch.zeros(len(row["input_ids"])) for name in names}
    for document, answers in documents:
        for name in names:
            whole[name][document.start : document.start + document.length] = answers[name]
    if "offset" in whole:
        whole["slope"] = torch.cat([answers["slope"] for _, answers in documents])
    return whole


class _Document(NamedTuple):
    columns: dict[str, Any]
    row: int  # its place within the part
    start: int  # where the document begins in the row
    length: int


def _documents(at: int, index: int, row: Mapping[str, Any], taken: frozenset[str]) -> list[_Document]:
    """The row without its padding, or each document of a packed row by itself, so that no model reads across them."""
    tight = read_row(index, row, ("input_ids", "labels"), taken)
    if len(tight.documents) == 1:
        columns = tight.columns | tight.tokens | tight.media
        columns |= {} if tight.mask is None else {"attention_mask": tight.mask}
        return [_Document(columns, at, tight.kept.start, len(tight))]
    if others := [*tight.tokens, *tight.media, *([] if tight.mask is None else ["attention_mask"])]:
        raise UserError(f"row {index}: {', '.join(others)}: expected none in a row of several documents")
    ends = list(accumulate(tight.documents, initial=0))
    return [
        _Document({name: column[start:end] for name, column in tight.columns.items()}, at, start, end - start)
        for start, end in pairwise(ends)
    ]


@contextmanager
def _answering(model: Any) -> Iterator[None]:
    """Within the context DSS is on, the model is in evaluation mode, and no gradients are kept."""
    was_enabled = dss_config(model) is not None
    if not was_enabled:
        enable_dss(model)
    try:
        with evaluating(model), layers_gathered(bare_model(model)):
            yield
    finally:
        if not was_enabled:
            disable_dss(model)
