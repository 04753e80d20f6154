"""The unit of work of every engine: a picklable callable that scores a batch of rows with one guard."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ..boundaries import UNITS
from .rows import COLUMNS, MAX_BYTES, Columns, FailedRow, Row, read_rows
from .store import ScoredRow

if TYPE_CHECKING:
    from ..guard import Guard, GuardSpec

SCORING_VERSION = 1  # raised when the same guard and options give other scores than before
BATCH_ROWS = 64
BATCH_CHARACTERS = 1 << 18
_GUARD_FILES = {".json", ".jinja", ".safetensors", ".model", ".txt"}
_NAMED_ROW = re.compile(r"row (\d+)\b[:,]? *")
_PROBES = [
    [{"role": role, "content": f"{role} {turn}"} for turn in range(turns) for role in ("user", "assistant")]
    for turns in (1, 2)
]

Report = Callable[[int], None]  # told how many rows are new


class Scorer(Protocol):
    """What ``score_dataset`` asks for."""

    def identity(self) -> dict[str, Any]:
        """What the scores depend on, as JSON; ``guard`` is a name for people and no part of it."""

    def settle(self, earlier: Mapping[str, str]) -> dict[str, str]:
        """Fix what may differ between runs by rounding alone, as an ``earlier`` run did where there was one."""

    def score_rows(self, rows: Sequence[Row], report: Report) -> list[ScoredRow]:
        """Scores in the order of ``rows``."""


@dataclass
class StarScorer:
    """``scorer(batch)`` is ``batch``'s ``scores``, ``ends``, ``flags`` and ``error``, from ``star_scores``.

    A batch maps columns to values: ``prompt`` (text or messages) and ``response``, or ``messages``. The result holds
    one value per row: P(safe) of each prefix [K], its character ends [K], flags, and why a row has no scores, else
    None. A row that cannot be scored has empty scores and the flag ``"failed"``, and takes no other row down.

    guard: ``"tiny"``, a Hub id, a folder (safetensors; no remote code runs), or a loaded ``Guard``. Named guards load
    on the first batch, in the process that scores, so that the scorer pickles as a few strings; ``spec``, ``revision``
    (of a Hub id) and ``dtype`` say how, see ``Guard.from_pretrained``. ``every``, ``unit``, ``max_tokens``,
    ``sharpen``, ``impl``, ``gemm``, ``budget``: see ``star_scores``. device: ``"auto"``, the current GPU, else the CPU.

    It is the batch function of other engines as it stands: ``dataset.map(StarScorer("tiny"), batched=True)``.
    """

    guard: str | Path | Guard
    _: KW_ONLY
    every: int = 5
    unit: str = "word"
    max_tokens: int | None = None
    sharpen: float | str = 1.0
    spec: GuardSpec | str | None = None
    revision: str | None = None
    dtype: str = "auto"
    device: str = "auto"
    impl: str = "auto"
    gemm: str = "auto"
    budget: int | None = None
    columns: Columns = COLUMNS
    max_bytes: int = MAX_BYTES
    _loaded: Guard | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.every, int) or self.every < 1:
            raise ValueError(f"every: expected a positive integer, got {self.every!r}")
        if self.unit not in UNITS:
            raise ValueError(f"unit: expected one of {', '.join(UNITS)}, got {self.unit!r}")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ValueError(f"max_tokens: expected a positive integer, got {self.max_tokens}")
        how = {"spec": self.spec, "revision": self.revision, "dtype": None if self.dtype == "auto" else self.dtype}
        given = [name for name, value in how.items() if value is not None]
        if given and (self.guard == "tiny" or not isinstance(self.guard, str | Path)):
            raise ValueError(f"{', '.join(given)}: only for a guard that is loaded by id or from a folder")

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[Any]]:
        columns = {
            name: values.tolist() if hasattr(values, "tolist") else list(values) for name, values in batch.items()
        }
        records = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        rows = list(read_rows([records], self.columns, max_bytes=self.max_bytes))
        scored = score_readable(self, rows, lambda done: None)
        return {name: [getattr(row, name) for row in scored] for name in ("scores", "ends", "flags", "error")}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_loaded": None}

    def score_rows(self, rows: Sequence[Row], report: Report) -> list[ScoredRow]:
        """Scores in the order of ``rows``, computed in batches of similar length; the same rows make the same batches.

        Errors that no row causes (a device that fails, options that no guard takes) are raised.
        """
        found: dict[int, ScoredRow] = {}
        self._load()
        for batch in length_batches(rows):
            for index, scored in zip(batch, self._scored([rows[index] for index in batch]), strict=True):
                found[index] = scored
            report(len(batch))
        return [found[index] for index in range(len(rows))]

    def identity(self) -> dict[str, Any]:
        """Guard (name, revision, template hash) and options. Pins a Hub id to the commit found now.

        ``revision`` is the Hub's commit, or a SHA-256 over the folder's configuration, tokenizer and weights, every
        byte of them: a guard trained further has files of the same names and sizes. Reading them costs less than
        loading the model. What moves scores by rounding alone (impl, gemm, budget, device) is left out.
        """
        name, revision, encoder, spec = self._described()
        rendered = [_rendered(encoder, probe) for probe in _PROBES]
        asked = {f.name: getattr(spec, f.name) for f in fields(spec) if f.name not in ("name", "messages", "note")}
        return {
            "guard": name,
            "revision": revision,
            "template_hash": _sha256(json.dumps([rendered, asked], default=str).encode()),
            "options": {
                "every": self.every,
                "unit": self.unit,
                "max_tokens": self.max_tokens,
                "sharpen": self.sharpen,
                "dtype": self.dtype,
            },
            "scoring_version": SCORING_VERSION,
        }

    def settle(self, earlier: Mapping[str, str]) -> dict[str, str]:
        """Choose the faster ``gemm`` once: measured anew, it may change within a run, and with it the last bits."""
        if self.gemm == "auto" and "gemm" in earlier:
            self.gemm = earlier["gemm"]
        self._load()
        return {"gemm": self.gemm}

    def _load(self) -> Guard:
        if self._loaded is None:
            import torch

            from ..cpu_linear import eligible_layers, onednn_is_faster
            from ..guard import Guard
            from ..scoring import star_scores

            guard = self.guard
            if guard == "tiny":
                guard = Guard.tiny()
            elif not isinstance(guard, Guard):
                guard = Guard.from_pretrained(str(guard), spec=self.spec, revision=self.revision, dtype=self.dtype)
            if guard is not self.guard:
                device = self.device if self.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
                guard.model.to(device)
            if self.gemm == "auto":
                layers = eligible_layers(guard.model)
                self.gemm = "onednn" if layers and onednn_is_faster(layers) else "default"
            star_scores(guard, {"prompt": ["Hello"], "response": ["Hi."]}, **self._options())  # refuses bad options
            self._loaded = guard
        return self._loaded

    def _options(self) -> dict[str, Any]:
        names = ("every", "unit", "max_tokens", "sharpen", "impl", "gemm", "budget")
        return {name: getattr(self, name) for name in names}

    def _scored(self, rows: Sequence[Row]) -> list[ScoredRow]:
        """Scores of a batch. Where it fails, the row that the error names is tried alone, or halves are."""
        import torch

        from ..scoring import star_scores

        batch: dict[str, list] = {"prompt": [row.history for row in rows], "response": [row.response for row in rows]}
        try:
            star = star_scores(self._load(), batch, **self._options())
        except (ValueError, TypeError, torch.OutOfMemoryError) as error:
            if len(rows) == 1:
                return [_failed(rows[0], _reason(error, rows[0]))]
            named = _NAMED_ROW.match(str(error))
            at = int(named[1]) if named and int(named[1]) < len(rows) else None
            if at is None:
                half = len(rows) // 2
                return [*self._scored(rows[:half]), *self._scored(rows[half:])]
            others = self._scored([*rows[:at], *rows[at + 1 :]])
            return [*others[:at], *self._scored(rows[at : at + 1]), *others[at:]]
        return [
            _failed(row, "the guard's logits are not finite")
            if "failed" in flags
            else ScoredRow(row.id, row.content_hash, scores.tolist(), ends, sorted(flags), None)
            for row, scores, ends, flags in zip(rows, star.scores, star.ends, star.flags, strict=True)
        ]

    def _described(self) -> tuple[str, str, Any, GuardSpec]:
        """Name, revision, chat encoder and spec, without loading a named guard's weights."""
        from ..chat import ChatEncoder
        from ..guard import Guard
        from ..specs import TINY, choose_spec, find_spec, read_config

        if isinstance(self.guard, Guard):
            return self.guard.spec.name, _weights_hash(self.guard), self.guard.encoder, self.guard.spec
        from transformers import AutoTokenizer

        name = str(self.guard)
        source = str(Path(__file__).parents[1] / "tiny_guard") if name == "tiny" else name
        config = read_config(source, revision=self.revision)
        if Path(source).is_dir():
            revision = _folder_hash(Path(source))
        else:
            if not config.get("_commit_hash"):
                raise ValueError(f"guard: the commit of {name!r} is not known; download it and pass the folder")
            revision = self.revision = str(config["_commit_hash"])
        tokenizer = AutoTokenizer.from_pretrained(source, revision=self.revision, trust_remote_code=False)
        spec = TINY if name == "tiny" else find_spec(self.spec) if isinstance(self.spec, str) else self.spec
        spec = spec or choose_spec([name], config, tokenizer.chat_template)
        encoder = ChatEncoder(
            tokenizer, template=spec.template, template_kwargs=spec.template_kwargs, messages=spec.messages
        )
        return name, revision, encoder, spec


def score_readable(scorer: Scorer, rows: Sequence[Row | FailedRow], report: Report) -> list[ScoredRow]:
    """``scorer.score_rows`` of the conversations among ``rows``, and the reason of every other row, in order."""
    readable = [row for row in rows if isinstance(row, Row)]
    scores = iter(scorer.score_rows(readable, report) if readable else ())
    report(len(rows) - len(readable))
    return [next(scores) if isinstance(row, Row) else _failed(row, row.reason) for row in rows]


def length_batches(rows: Sequence[Row]) -> Iterator[list[int]]:
    """Indices of rows of similar length, short ones first, under a cap of rows and characters per batch."""
    sizes = [len(row.response) + sum(len(turn["content"]) for turn in row.history) for row in rows]
    batch: list[int] = []
    room = BATCH_CHARACTERS
    for index in sorted(range(len(rows)), key=lambda index: (sizes[index], index)):
        if batch and (len(batch) == BATCH_ROWS or sizes[index] > room):
            yield batch
            batch, room = [], BATCH_CHARACTERS
        batch.append(index)
        room -= sizes[index]
    if batch:
        yield batch


def _failed(row: Row | FailedRow, reason: str) -> ScoredRow:
    return ScoredRow(row.id, row.content_hash, [], [], ["failed"], reason)


def _reason(error: Exception, row: Row) -> str:
    """The error without its place in the batch; one that quotes the row, as others' code might, is only named."""
    text = _NAMED_ROW.sub("", str(error), count=1)
    if isinstance(error, ValueError | TypeError) and not _quotes(text, row):
        return text
    roles = ", ".join(turn["role"] for turn in row.history[-8:])
    return f"{type(error).__name__} in a row of {len(row.response)} characters after the roles {roles}"


def _quotes(message: str, row: Row) -> bool:
    words = {word for turn in row.history for word in turn["content"].split()} | set(row.response.split())
    return any(len(word) > 8 and word in message for word in words)


def _rendered(encoder: Any, conversation: list[dict[str, str]]) -> str | None:
    try:
        return encoder.render([conversation], generation_prompt=True)[0]
    except ValueError:
        return None  # a template for one exchange only


def _folder_hash(folder: Path) -> str:
    files = sorted(path for path in folder.iterdir() if path.suffix in _GUARD_FILES and path.is_file())
    if not any(path.suffix == ".safetensors" for path in files):
        raise ValueError(f"guard: {folder} has no .safetensors file; other weights are not loaded")
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            digest.update(f"{path.name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return f"sha256:{digest.hexdigest()}"


def _weights_hash(guard: Guard) -> str:
    import torch

    digest = hashlib.sha256(guard.tokenizer.backend_tokenizer.to_str().encode() if guard.tokenizer.is_fast else b"")
    digest.update(guard.model.config.to_json_string().encode())
    for name, tensor in sorted(guard.model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return f"sha256:{digest.hexdigest()}"


def _sha256(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"
