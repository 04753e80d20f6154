"""The reference model's log-probabilities, computed once before training so that it leaves the training loop."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from fastdss.errors import UserError
from fastdss.files import write_atomically
from fastdss.models.batching import add_tensor, length_batches
from fastdss.models.inputs import given_inputs, input_names
from fastdss.models.probes import evaluating
from fastdss.models.split_params import layers_gathered
from fastdss.optional import require
from fastdss.upstream.deepspeed import is_empty_share, local_share
from fastdss.upstream.peft import adapters_in_use
from fastdss.upstream.transformers import settings_of

from .collator import DSSCollator, read_row
from .enable import bare_model, disable_dss, dss_config, enable_dss

_log = logging.getLogger(__name__)
_FORMAT = "fastdss reference 2"
_COLUMN = "ref_logprobs"


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
    """``log_softmax(model(input_ids).logits)[:, t - 1, labels[t]]`` for every row of ``dataset``.

    Returns one float32 tensor ``[T]`` per row, aligned with its ``input_ids``, 0 where no label counts;
    ``add_reference_logprobs`` makes a column of them.
    No logits are built and no gradient is kept. Run it under the autocast and in the dtype that training will use.

    model: the reference, any model ``enable_dss`` takes; with PEFT inside ``model.disable_adapter()``.
    dataset: rows with ``input_ids`` and ``labels``, packed ones with ``seq_lengths``, whose documents are computed one
    by one; and what else the model takes of a row (images, token types, …; see ``DSSCollator``).
    batch_tokens: tokens (padding included) of one forward.
    cache_dir: finished parts of ``part_rows`` rows are kept there under a hash of their content, the model's weights
    and the precision: a second run reads them, an interrupted one goes on, edited data is computed anew. ``model_id``
    stands in for hashing the weights (a repository and revision, say).

    Under ``torch.distributed`` all ranks call it with the same dataset; each computes its share, all return everything.
    Raises ``ValueError`` where a log-probability is not finite, naming the row.
    """
    if batch_tokens < 1 or part_rows < 1:
        raise UserError(f"expected positive batch_tokens and part_rows, got {batch_tokens} and {part_rows}")
    cache = _Cache(cache_dir, model, model_id) if cache_dir is not None else None
    parts = [range(start, min(start + part_rows, len(dataset))) for start in range(0, len(dataset), part_rows)]
    found: list[Tensor] = []
    with _answering(model), _Bar(len(dataset), progress and _rank() == 0) as bar:
        for part in parts:
            rows = [dataset[index] for index in part]
            known = cache.load(rows) if cache else None
            if known is None:
                known = _compute(model, rows, part.start, batch_tokens)
                for index, row in zip(part, known, strict=True):
                    if not row.isfinite().all():
                        raise UserError(f"row {index}: the reference's log-probabilities are not finite")
                if cache:
                    cache.store(rows, known)
            found += known
            bar.advance(len(rows))
    return found


def add_reference_logprobs(dataset: Any, model: Any, **options: Any) -> Any:
    """``dataset`` with the column ``ref_logprobs``, float32: ``reference_logprobs(model, dataset, **options)``.

    dataset: a ``datasets.Dataset`` of rows with ``input_ids`` and ``labels``, such as ``prepare_dss_dataset`` makes. An
    earlier column of that name is replaced.
    """
    require("add_reference_logprobs", "train", "datasets")
    from datasets import Features, List, Value

    values = [row.tolist() for row in reference_logprobs(model, dataset, **options)]
    if _COLUMN in dataset.column_names:
        dataset = dataset.remove_columns(_COLUMN)
    return dataset.add_column(_COLUMN, values, feature=Features({_COLUMN: List(Value("float32"))})[_COLUMN])


def _compute(model: Any, rows: list[Mapping[str, Any]], first_row: int, batch_tokens: int) -> list[Tensor]:
    """Log-probabilities of one part's rows; every rank runs the same number of forwards, as FSDP needs."""
    taken = input_names(bare_model(model))
    documents = [found for at, row in enumerate(rows) for found in _documents(at, first_row + at, row, taken)]
    collate = DSSCollator(pad_token_id=0, model_inputs=taken)
    lengths = [document.length for document in documents]
    batches = list(length_batches(lengths, padded=batch_tokens, longest_first=True))
    device = bare_model(model).get_input_embeddings().weight.device
    mine: dict[int, Tensor] = {}
    for first in range(0, len(batches), _world_size()):
        at = first + _rank()
        members = batches[at if at < len(batches) else first]  # a spare rank repeats one; its answer is left out
        batch = collate([documents[i].columns for i in members])
        batch = {k: v.to(device) if torch.is_tensor(v) else v for k, v in batch.items()}
        answers = model(**batch, dss_ask="logprobs").logprobs.float().cpu()
        if at < len(batches):
            mine |= {i: values[: documents[i].length].clone() for i, values in zip(members, answers, strict=True)}
    gathered = _gather(mine)
    found = [torch.zeros(len(row["input_ids"])) for row in rows]
    for i, document in enumerate(documents):
        place = slice(document.start, document.start + document.length)
        found[document.row][place] = next(answers[i] for answers in gathered if i in answers)
    return found


class _Document(NamedTuple):
    columns: dict[str, Any]
    row: int  # of the part
    start: int
    length: int


def _documents(at: int, index: int, row: Mapping[str, Any], taken: frozenset[str]) -> list[_Document]:
    """The row without its padding, or each document packed in it on its own: so no class can read across them."""
    read = read_row(index, row, ("input_ids", "labels"), taken)
    if len(read.documents) == 1:
        columns = read.columns | read.tokens | read.media
        columns |= {} if read.hidden is None else {"attention_mask": read.hidden}
        return [_Document(columns, at, read.kept.start, len(read))]
    if others := [*read.tokens, *read.media, *([] if read.hidden is None else ["attention_mask"])]:
        raise UserError(f"row {index}: {', '.join(others)}: expected none in a row of several documents")
    ends = list(accumulate(read.documents, initial=0))
    return [
        _Document({name: column[start:end] for name, column in read.columns.items()}, at, start, end - start)
        for start, end in pairwise(ends)
    ]


@contextmanager
def _answering(model: Any) -> Iterator[None]:
    """DSS on for the while, evaluation mode, no gradients; everything as before afterwards."""
    was_enabled = dss_config(model) is not None
    if not was_enabled:
        enable_dss(model)
    try:
        with evaluating(model), layers_gathered(bare_model(model)):
            yield
    finally:
        if not was_enabled:
            disable_dss(model)


class _Cache:
    """Finished parts as safetensors files, named by what they depend on; rank 0 reads and writes."""

    def __init__(self, folder: str | os.PathLike[str], model: Any, model_id: str | None) -> None:
        self.folder = Path(folder)
        if _rank() == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass  # unwritable: say so before the work, not after
        self.model, self.inputs = _fingerprint(model, model_id), input_names(bare_model(model))

    def load(self, rows: list[Mapping[str, Any]]) -> list[Tensor] | None:
        """The part's stored answers, the same on every rank; None where there are none or they are damaged."""
        found: list[Tensor] | None = _from_first(
            lambda: self._read(self._path(rows), [len(row["input_ids"]) for row in rows])
        )
        return found

    def store(self, rows: list[Mapping[str, Any]], answers: list[Tensor]) -> None:
        """A part is there whole or not at all."""
        if _rank() != 0:
            return
        from safetensors.torch import save

        values = torch.cat(answers)
        content = save({"logprobs": values}, metadata={"format": _FORMAT, "sha256": _digest(values)})
        write_atomically(self._path(rows), content)

    def _path(self, rows: list[Mapping[str, Any]]) -> Path:
        content = hashlib.sha256(self.model.encode())
        for row in rows:
            for name in ("input_ids", "labels", "seq_lengths", *sorted(given_inputs(row, self.inputs))):
                if row.get(name) is not None:
                    add_tensor(content, name, torch.as_tensor(row[name]))
        return self.folder / f"reference-{content.hexdigest()[:40]}.safetensors"

    def _read(self, path: Path, lengths: list[int]) -> list[Tensor] | None:
        if not path.exists():
            return None
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                metadata, values = file.metadata() or {}, file.get_tensor("logprobs")
            intact = metadata.get("sha256") == _digest(values) and len(values) == sum(lengths)
        except (SafetensorError, OSError):
            intact = False
        if not intact:
            _log.warning("%s is damaged: set aside and computed again", path)
            os.replace(path, path.with_suffix(".damaged"))
            return None
        return [part.clone() for part in values.split(lengths)]


def _digest(values: Tensor) -> str:
    return hashlib.sha256(values.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()


def _fingerprint(model: Any, model_id: str | None) -> str:
    """What answers depend on besides the rows: weights, settings of the architecture, adapters in use, precision."""
    bare = bare_model(model)
    device = bare.get_input_embeddings().weight.device.type
    config = settings_of(bare.config)
    adapters = adapters_in_use(bare)
    autocast = str(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else "off"
    known = json.dumps([_FORMAT, model_id, config, sorted(adapters.items()), autocast], sort_keys=True, default=str)
    shards = {_weights_digest(bare)} if model_id is None else set()
    everyone = sorted(set().union(*_gather(shards)))  # plain replicas agree, so their number makes no difference
    return hashlib.sha256("\n".join([known, *everyone]).encode()).hexdigest()


def _weights_digest(model: Any) -> str:
    content = hashlib.sha256()
    for name, tensor in sorted(model.state_dict(keep_vars=True).items()):
        local: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else _zero3_local(name, tensor)
        add_tensor(content, name, local)
    return content.hexdigest()


def _zero3_local(name: str, tensor: Tensor) -> Tensor:
    """The parameter itself, or this rank's share of it where ZeRO-3 left an empty placeholder."""
    if not is_empty_share(tensor):
        return tensor
    share = local_share(tensor)
    if share is None:
        raise UserError(f"cache_dir: the weights of {name} are swapped out, so they have no hash: pass model_id=")
    return share


class _Bar:
    def __init__(self, total: int, shown: bool) -> None:
        self._bar = None
        if shown:
            from tqdm.auto import tqdm

            self._bar = tqdm(total=total, desc="reference", unit="row")

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def advance(self, rows: int) -> None:
        if self._bar is not None:
            self._bar.update(rows)


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def _rank() -> int:
    return dist.get_rank() if _distributed() else 0


def _world_size() -> int:
    return dist.get_world_size() if _distributed() else 1


def _gather(value: Any) -> list[Any]:
    if not _distributed():
        return [value]
    values: list[Any] = [None] * _world_size()
    dist.all_gather_object(values, value)
    return values


def _from_first(make: Any) -> Any:
    """``make()`` on rank 0, its result on every rank."""
    if not _distributed():
        return make()
    box = [make() if _rank() == 0 else None]
    dist.broadcast_object_list(box, src=0)
    return box[0]
