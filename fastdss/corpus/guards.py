"""A guard before it is loaded: what its scores depend on, found without loading its weights, and how to load it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fastdss.errors import UserError
from fastdss.upstream.transformers import commit_of, places_itself

if TYPE_CHECKING:
    import torch

    from fastdss.chat.encoder import ChatEncoder
    from fastdss.guards.spec import GuardSpec
    from fastdss.star.guard import Guard

_GUARD_FILES = {".json", ".jinja", ".safetensors", ".model", ".txt"}
_PROBES = [
    [{"role": role, "content": f"{role} {turn}"} for turn, role in enumerate(roles.split())]
    for roles in ("user assistant", "user assistant user assistant", "system user assistant", "user tool assistant")
]
# Fields of a spec that only inform people and change no score.
_FOR_PEOPLE = ("name", "messages", "judges", "checked", "note", "date")


class GuardIdentity(NamedTuple):
    """``name`` is for people; scores depend on the others. ``date``: the day that the template prints, if any."""

    name: str
    revision: str
    template_hash: str
    date: str | None


@dataclass
class GuardSource:
    """``"tiny"``, a Hub id, a folder, or a loaded ``Guard``; the other fields say how a named one loads."""

    guard: str | Path | Guard
    spec: GuardSpec | str | None = None
    revision: str | None = None
    dtype: str = "auto"
    options: Mapping[str, Any] = field(default_factory=dict)
    check: bool = True

    def identity(self) -> GuardIdentity:
        """The guard's name, revision and template hash; a Hub id is pinned to its present commit.

        ``revision`` is that commit, or for a folder a SHA-256 over every byte of configuration, tokenizer and weights:
        a guard that was trained further has files of the same names and sizes. Hashing costs less than loading.
        """
        from fastdss.guards.questions import prints_date

        name, revision, encoders, spec = self.described()
        rendered = [_rendered(encoder, probe) for encoder in encoders for probe in _PROBES]
        asked = {f.name: getattr(spec, f.name) for f in fields(spec) if f.name not in _FOR_PEOPLE}
        printed = prints_date(spec, encoders[0].tokenizer)
        described = json.dumps([rendered, asked], default=str)
        return GuardIdentity(name, revision, _sha256(described.encode()), spec.date if printed else None)

    def load(self, device: str) -> Guard:
        """The guard on ``device`` (``"auto"``: the current GPU, else the CPU); a loaded guard stays where it is."""
        from fastdss.star.guard import Guard

        if isinstance(self.guard, Guard):
            return self.guard
        name = str(self.guard)
        if name == "tiny":
            guard = Guard.tiny()
        else:
            guard = Guard.from_pretrained(
                name,
                spec=self.spec,
                options=self.options,
                revision=self.revision,
                dtype=self.dtype,
                check=self.check,
            )
        if not places_itself(guard.model):
            guard.model.to(_device(device))
        return guard

    def described(self) -> tuple[str, str, list[ChatEncoder], GuardSpec]:
        """The guard's name, revision, chat encoders and spec; the weights of a named guard are not loaded."""
        from fastdss.guards.known import TINY, TINY_FOLDER, check_guard_source, read_config
        from fastdss.guards.loading import resolve_spec
        from fastdss.guards.questions import make_encoders
        from fastdss.star.guard import Guard

        if isinstance(self.guard, Guard):
            return self.guard.spec.name, _weights_hash(self.guard), self.guard.encoders, self.guard.spec
        from transformers import AutoTokenizer

        name = str(self.guard)
        source = str(TINY_FOLDER) if name == "tiny" else name
        check_guard_source(source, self.revision)
        if Path(source).is_dir():
            revision = _folder_hash(Path(source))
        else:
            commit = commit_of(source, self.revision)
            if commit is None:
                raise UserError(f"guard: the commit of {name!r} is not known; download it and pass the folder")
            revision = self.revision = commit
        config = read_config(source, revision=self.revision)
        tokenizer = AutoTokenizer.from_pretrained(source, revision=self.revision, trust_remote_code=False)
        wanted = TINY if name == "tiny" else self.spec
        spec = resolve_spec(name, config, tokenizer, spec=wanted, options=self.options)
        return name, revision, make_encoders(spec, tokenizer), spec


def _device(name: str) -> torch.device:
    import torch

    try:
        return torch.device(name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu")
    except RuntimeError:
        raise UserError(f"device: expected auto or a device of torch such as cuda:0, got {name!r}") from None


def _rendered(encoder: Any, conversation: list[dict[str, str]]) -> str | None:
    try:
        found: str | None = encoder.render([conversation], generation_prompt=True)[0]
        return found
    except ValueError:
        return None  # a template may refuse a conversation with a system message, several exchanges or a tool


def _folder_hash(folder: Path) -> str:
    files = sorted(path for path in folder.iterdir() if path.suffix in _GUARD_FILES and path.is_file())
    if not any(path.suffix == ".safetensors" for path in files):
        raise UserError(f"guard: {folder} has no .safetensors file; other weights are not loaded")
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            digest.update(f"{path.name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return f"sha256:{digest.hexdigest()}"


def _weights_hash(guard: Guard) -> str:
    from fastdss.models.batching import add_tensor

    digest = hashlib.sha256(guard.tokenizer.backend_tokenizer.to_str().encode() if guard.tokenizer.is_fast else b"")
    digest.update(guard.model.config.to_json_string().encode())
    for name, tensor in sorted(guard.model.state_dict().items()):
        add_tensor(digest, name, tensor)
    return f"sha256:{digest.hexdigest()}"


def _sha256(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"
