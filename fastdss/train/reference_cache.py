"""Finished parts of a reference's answers on disk, named by a hash of all that they depend on; and what the ranks of a
distributed job exchange."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor

from fastdss.errors import UserError
from fastdss.files import write_atomically
from fastdss.models.batching import add_tensor
from fastdss.models.inputs import as_tensor, given_inputs, input_names
from fastdss.models.probes import autocast_dtype
from fastdss.upstream.deepspeed import is_empty_share, local_share
from fastdss.upstream.peft import adapters_in_use
from fastdss.upstream.torch import has_fsdp1
from fastdss.upstream.transformers import settings_of

from .enable import bare_model
from .example import read_inputs

_log = logging.getLogger(__name__)
_FORMAT = "fastdss reference 3"


class ReferenceCache:
    """Finished parts as safetensors files, named by a hash of what they depend on; rank 0 reads and writes them.

    ask: the ``dss_ask`` of the model's forward, which decides which tensors a part holds.
    """

    def __init__(self, folder: str | os.PathLike[str], model: Any, model_id: str | None, ask: str) -> None:
        self.folder = Path(folder)
        if rank() == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass  # so that a folder that cannot be written is an error now, and not after the work
        self.model, self.inputs = f"{ask} {_fingerprint(model, model_id)}", read_inputs(input_names(bare_model(model)))

    def load(self, rows: list[Mapping[str, Any]]) -> dict[str, Tensor] | None:
        """The part's stored tensors, the same on every rank; None where there are none or they are damaged."""
        tensors: dict[str, Tensor] | None = from_first(lambda: self._read(self._path(rows)))
        return tensors

    def store(self, rows: list[Mapping[str, Any]], tensors: dict[str, Tensor]) -> None:
        """Store the tensors of a part; its file appears whole or not at all."""
        if rank() != 0:
            return
        from safetensors.torch import save

        tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
        write_atomically(self._path(rows), save(tensors, metadata={"format": _FORMAT, "sha256": _digest(tensors)}))

    def _path(self, rows: list[Mapping[str, Any]]) -> Path:
        content = hashlib.sha256(self.model.encode())
        for row in rows:
            for name in ("input_ids", "labels", "seq_lengths", *sorted(given_inputs(row, self.inputs))):
                if row.get(name) is not None:
                    add_tensor(content, name, as_tensor(row[name]))
        return self.folder / f"reference-{content.hexdigest()[:40]}.safetensors"

    def _read(self, path: Path) -> dict[str, Tensor] | None:
        if not path.exists():
            return None
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # file is no mapping
            intact = metadata.get("sha256") == _digest(tensors)
        except (SafetensorError, OSError):
            intact = False
        if not intact:
            _log.warning("%s is damaged: set aside and computed again", path)
            os.replace(path, path.with_suffix(".damaged"))
            return None
        return tensors


def _digest(tensors: Mapping[str, Tensor]) -> str:
    content = hashlib.sha256()
    for name, values in sorted(tensors.items()):
        add_tensor(content, name, values)
    return content.hexdigest()


def _fingerprint(model: Any, model_id: str | None) -> str:
    """A hash of what answers depend on besides the rows: weights, the model's settings, adapters in use, precision."""
    bare = bare_model(model)
    config = settings_of(bare.config)
    adapters = adapters_in_use(bare)
    autocast = str(autocast_dtype(bare.get_input_embeddings().weight.device) or "off")
    precision = [str(bare.dtype), autocast]  # a configuration keeps the dtype that the weights were loaded in
    known = json.dumps([_FORMAT, model_id, config, sorted(adapters.items()), precision], sort_keys=True, default=str)
    if model_id is None and has_fsdp1(model):
        raise UserError(
            "cache_dir: FullyShardedDataParallel has flattened the weights, so they have no hash: pass model_id=, or "
            "compute the columns before it wraps the model"
        )
    shards = {_weights_digest(bare)} if model_id is None else set()
    # A set: ranks with the same weights count once, so their number does not change the name of a part.
    all_shards = sorted(set().union(*gather(shards)))
    return hashlib.sha256("\n".join([known, *all_shards]).encode()).hexdigest()


def _weights_digest(model: Any) -> str:
    content = hashlib.sha256()
    for name, tensor in sorted(model.state_dict(keep_vars=True).items()):
        local: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else _zero3_local(name, tensor)
        add_tensor(content, name, local)
    return content.hexdigest()


def _zero3_local(name: str, tensor: Tensor) -> Tensor:
    """The parameter itself, or this rank's share of it where ZeRO-3 split it."""
    if not is_empty_share(tensor):
        return tensor
    share = local_share(tensor)
    if share is None:
        raise UserError(f"cache_dir: the weights of {name} are swapped out, so they have no hash: pass model_id=")
    return share


def distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    return dist.get_rank() if distributed() else 0


def world_size() -> int:
    return dist.get_world_size() if distributed() else 1


def gather(value: Any) -> list[Any]:
    """Every rank's ``value``, on every rank."""
    if not distributed():
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def from_first(make: Any) -> Any:
    """``make()`` on rank 0, its result on every rank."""
    if not distributed():
        return make()
    box = [make() if rank() == 0 else None]
    dist.broadcast_object_list(box, src=0)
    return box[0]
