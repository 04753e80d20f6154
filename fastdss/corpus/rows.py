"""Conversations from JSONL, Parquet, CSV, ``datasets`` folders or memory, one at a time and under caps.

Whatever is wrong with a row becomes a ``FailedRow`` with the reason: it takes nothing else down, and it stays in its
place. Reasons name positions, lengths and columns, never the text.
"""

from __future__ import annotations

import csv
import hashlib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TextIO

from fastdss.chat.encoder import Conversation, check_conversation
from fastdss.errors import RowError, UserError, UserTypeError

MAX_BYTES = 8 << 20  # of a row; more is a denial of service, not a conversation
TURNS = ("last", "all")
_SUFFIXES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".parquet": "parquet", ".csv": "csv"}
_ROWS_AT_ONCE = 64
_NAMING = "say which by columns=, or --prompt-column, --response-column, --messages-column"
_LONGEST_RECORD = 1 << 28  # characters of CSV; a quote that is not closed makes one record of all that follows

Source = str | Path | Iterable[Mapping[str, Any]]


@dataclass(frozen=True)
class Row:
    """A response and what came before it. ``content_hash``: SHA-256 of roles and contents, of nothing else."""

    id: str
    history: Conversation = field(repr=False)  # texts never reach a log by way of a repr
    response: str = field(repr=False)
    content_hash: str


@dataclass(frozen=True)
class FailedRow:
    """A row that is no conversation. ``content_hash``: SHA-256 of its record as it was found."""

    id: str
    reason: str
    content_hash: str


@dataclass(frozen=True)
class Columns:
    """Where conversations are: ``messages``, or ``prompt`` (text or messages) and ``response``; ``id`` is optional."""

    prompt: str = "prompt"
    response: str = "response"
    messages: str = "messages"
    id: str = "id"

    @property
    def names(self) -> tuple[str, str, str, str]:
        return self.id, self.prompt, self.response, self.messages


COLUMNS = Columns()


@dataclass(frozen=True)
class _Unreadable:
    reason: str
    digest: str


def read_rows(
    sources: Sequence[Source], columns: Columns = COLUMNS, *, max_bytes: int = MAX_BYTES
) -> Iterator[Row | FailedRow]:
    """``for source in sources: for record in source: yield Row(...)``, in order, with flat memory.

    sources: files (``.jsonl``, ``.parquet``, ``.csv``; UTF-8), folders (of ``Dataset.save_to_disk``, or of such files
    in the order of their names), or iterables of mappings such as a ``datasets.Dataset``. A row without an id gets its
    position over all sources. A row of more than ``max_bytes`` is a ``FailedRow``. Raises ``ValueError`` for sources
    that are missing, of another kind, or without the columns.
    """
    if max_bytes < 1:
        raise UserError(f"max_bytes: expected at least 1, got {max_bytes}")
    position = 0
    for source in expand(sources):
        for record in _records(source, columns, max_bytes):
            yield _row(position, record, columns, max_bytes)
            position += 1


def judged(rows: Iterable[Row | FailedRow], turns: str) -> Iterator[Row | FailedRow]:
    """The responses of conversations that a guard judges: the last turns (``turns="last"``, ``rows`` as they are), or
    every assistant's turn after what came before it (``"all"``).

    With ``"all"``, the row of turn ``t`` (counted from 0 over all messages) of conversation ``id`` is ``id#t``; a
    conversation that could not be read is one row, ``id#0``. What stands before the last ``#`` is always the
    conversation's id, so rows of unlike conversations never share one.
    """
    if turns not in TURNS:
        raise UserError(f"turns: expected one of {', '.join(TURNS)}, got {turns!r}")
    for row in rows:
        if turns == "last":
            yield row
        elif isinstance(row, FailedRow):
            yield replace(row, id=f"{row.id}#0")
        else:
            chat = [*row.history, {"role": "assistant", "content": row.response}]
            for t, turn in enumerate(chat):
                if turn["role"] == "assistant":
                    yield Row(f"{row.id}#{t}", chat[:t], turn["content"], content_hash(chat[: t + 1]))


def expand(sources: Sequence[Source]) -> list[Source]:
    """Sources with folders of files replaced by their files."""
    found: list[Source] = []
    for source in sources:
        path = Path(source) if isinstance(source, str | Path) else None
        if path is None or not path.is_dir() or (path / "state.json").is_file():
            found.append(source)
            continue
        if (path / "dataset_dict.json").is_file():
            splits = sorted(split.name for split in path.iterdir() if (split / "state.json").is_file())
            raise UserError(f"{path} holds the splits {', '.join(splits)}: give one of their folders")
        files = sorted(file for file in path.iterdir() if file.suffix in _SUFFIXES)
        if not files:
            raise UserError(f"{path} holds no {', '.join(_SUFFIXES)} file and no saved datasets.Dataset")
        found += files
    return found


def _records(source: Source, columns: Columns, max_bytes: int) -> Iterator[Mapping[str, Any] | _Unreadable]:
    if not isinstance(source, str | Path):
        if isinstance(source, Iterator):
            raise UserTypeError("source: expected what can be read twice, such as a list or a Dataset, got an iterator")
        yield from source
        return
    path = Path(source)
    if not path.exists():
        raise UserError(f"{path} does not exist")
    kind = "datasets" if path.is_dir() else _SUFFIXES.get(path.suffix)
    if kind is None:
        raise UserError(f"{path}: expected one of {', '.join(_SUFFIXES)} or a folder")
    if not path.is_dir() and not path.is_file():  # what was read once from a pipe would never come again
        raise UserError(f"{path}: expected a file that can be read twice, not a pipe or device")
    if kind == "jsonl":
        yield from _jsonl(path, max_bytes)
    else:
        yield from {"parquet": _parquet, "csv": _csv, "datasets": _saved}[kind](path, columns)


def _jsonl(path: Path, max_bytes: int) -> Iterator[Mapping[str, Any] | _Unreadable]:
    with path.open("rb") as file:
        if file.read(3) != b"\xef\xbb\xbf":  # a byte order mark
            file.seek(0)
        while line := file.readline(min(max_bytes + 1, sys.maxsize)):
            digest, size = hashlib.sha256(line), len(line)
            if size > max_bytes and not line.endswith(b"\n"):
                while more := file.readline(1 << 20):
                    digest.update(more)
                    size += len(more)
                    if more.endswith(b"\n"):
                        break
                yield _Unreadable(_too_long(size, max_bytes), digest.hexdigest())
                continue
            if not line.strip():
                continue
            try:
                record = json.loads(line.decode(), object_pairs_hook=_each_name_once)
            except (ValueError, RecursionError) as error:
                yield _Unreadable(f"not a line of JSON: {_without_text(error)}", digest.hexdigest())
                continue
            if not isinstance(record, dict):
                yield _Unreadable(f"expected a JSON object per line, got {type(record).__name__}", digest.hexdigest())
                continue
            yield record


def _each_name_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Readers disagree on which of two values counts: what was scored need not be what is trained on."""
    record = dict(pairs)
    if len(record) < len(pairs):
        raise UserError("a name occurs twice in an object")
    return record


def _parquet(path: Path, columns: Columns) -> Iterator[Mapping[str, Any] | _Unreadable]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            names = _present(path, file.schema_arrow.names, columns)
            for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE, columns=names):
                try:
                    records = batch.to_pylist()
                except (ValueError, OverflowError):
                    records = [_alone(batch.slice(i, 1)) for i in range(len(batch))]
                yield from records
    except (pa.ArrowException, UnicodeError) as error:  # not all of which are ValueErrors
        raise UserError(f"{path}: not to be read as Parquet: {_without_text(error)}") from None


def _alone(batch: Any) -> Mapping[str, Any] | _Unreadable:
    """The record of a batch of one; Arrow holds bytes that are no text and dates that Python has not."""
    try:
        return batch.to_pylist()[0]
    except UnicodeError as error:
        reason = _without_text(error)
    except (ValueError, OverflowError) as error:
        reason = f"a value that Python cannot hold ({type(error).__name__})"
    return _Unreadable(reason, hashlib.sha256(batch.serialize()).hexdigest())


class _Lines:
    """Lines of a CSV file, and those of the present record, which end where the caller says so."""

    def __init__(self, path: Path, file: TextIO) -> None:
        self.path, self.file = path, file
        self.record: list[str] = []
        self.size = 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self.file.readline(_LONGEST_RECORD)
        self.size += len(line)
        if self.size >= _LONGEST_RECORD:
            raise UserError(f"{self.path}: a record of {_LONGEST_RECORD} characters or more; is a quote not closed?")
        if not line:
            raise StopIteration
        self.record.append(line)
        return line

    def end_record(self) -> str:
        """SHA-256 of the record, after which another begins."""
        whole = "".join(self.record).encode("utf-8", "surrogateescape")
        self.record.clear()
        self.size = 0
        return hashlib.sha256(whole).hexdigest()


def _csv(path: Path, columns: Columns) -> Iterator[Mapping[str, Any] | _Unreadable]:
    limit = csv.field_size_limit(2**31 - 1)  # the row's own cap comes after the fields are known
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            lines = _Lines(path, file)
            reader = csv.reader(lines, strict=True)
            try:
                names = next(reader, [])
            except csv.Error as error:
                raise UserError(f"{path}: its header is no record of CSV: {error}") from None
            _present(path, names, columns)
            lines.end_record()
            while True:
                try:
                    fields = next(reader)
                except StopIteration:
                    return
                except csv.Error as error:
                    yield _Unreadable(f"not a record of CSV: {error}", lines.end_record())
                    continue
                digest = lines.end_record()
                if len(fields) == len(names):
                    yield dict(zip(names, fields, strict=True))
                elif fields:  # an empty line is no record
                    yield _Unreadable(f"{len(fields)} fields under a header of {len(names)}", digest)
    finally:
        csv.field_size_limit(limit)


def _saved(path: Path, columns: Columns) -> Iterator[Mapping[str, Any] | _Unreadable]:
    from datasets import load_from_disk

    dataset = load_from_disk(str(path))
    dataset = dataset.select_columns(_present(path, dataset.column_names, columns))
    raw = dataset.with_format("arrow")
    for start in range(0, len(dataset), _ROWS_AT_ONCE):
        places = range(start, min(start + _ROWS_AT_ONCE, len(dataset)))
        try:
            records = list(dataset.select(places))
        except (ValueError, OverflowError):
            records = [_alone(raw[i : i + 1].combine_chunks().to_batches()[0]) for i in places]
        yield from records


def _present(path: Path, names: Iterable[str], columns: Columns) -> list[str]:
    """The columns to read; ``ValueError`` where there is no conversation in them."""
    names = list(names)
    present = [name for name in columns.names if name in names]
    for name in present:
        if names.count(name) > 1:  # which of them counts, readers decide differently
            raise UserError(f"{path}: {names.count(name)} columns are named {name!r}")
    if columns.messages not in present and not {columns.prompt, columns.response} <= set(present):
        raise UserError(f"{path}: {_lacking(columns)}; it has {', '.join(names)}; {_NAMING}")
    return present


def _lacking(columns: Columns) -> str:
    return f"expected {columns.messages!r}, or {columns.prompt!r} and {columns.response!r}"


def _row(position: int, record: Mapping[str, Any] | _Unreadable, columns: Columns, max_bytes: int) -> Row | FailedRow:
    if isinstance(record, _Unreadable):
        return FailedRow(str(position), f"row {position}: {record.reason}", record.digest)
    given = record.get(columns.id)
    row_id = str(position)
    try:
        row_id = row_id if given is None or given == "" else str(given)
        size = len(row_id.encode()) if len(row_id) <= 1000 else max_bytes + len(row_id)
        turns = check_conversation(position, _messages(record, columns))
        size += sum(len(turn["content"].encode()) for turn in turns)
        if size > max_bytes:
            raise UserError(_too_long(size, max_bytes))
        if turns[-1]["role"] != "assistant":
            raise UserError(f"the last turn must be the assistant's, it is the {turns[-1]['role']}'s")
    except (ValueError, TypeError, RecursionError) as error:
        reason = f"row {position}: {error.reason if isinstance(error, RowError) else _without_text(error)}"
        return FailedRow(_plain(row_id, position), reason, _record_hash(record, columns))
    return Row(row_id, turns[:-1], turns[-1]["content"], content_hash(turns))


def _record_hash(record: Mapping[str, Any], columns: Columns) -> str:
    values = [record.get(name) for name in columns.names]
    try:
        raw = repr(values)
    except (ValueError, RecursionError):  # integers of thousands of digits, lists in lists in lists
        raw = repr([type(value).__name__ for value in values])
    return hashlib.sha256(raw.encode("utf-8", "surrogatepass")).hexdigest()


def _messages(record: Mapping[str, Any], columns: Columns) -> Any:
    messages = record.get(columns.messages)
    if messages is not None:
        return messages if isinstance(messages, str) else list(messages)
    prompt, response = record.get(columns.prompt), record.get(columns.response)
    if prompt is None or response is None:
        raise UserError(f"{_lacking(columns)}; it has {len(record)} columns")
    prompt = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    return [*prompt, {"role": "assistant", "content": response}]


def content_hash(turns: Conversation) -> str:
    """SHA-256 of a conversation's roles and contents."""
    pairs = [[turn["role"], turn["content"]] for turn in turns]
    return hashlib.sha256(json.dumps(pairs, ensure_ascii=False).encode()).hexdigest()


def _plain(row_id: str, position: int) -> str:
    """An id that can be written down: the position instead of one that is no valid text or longer than any name."""
    try:
        return row_id if len(row_id.encode()) <= 1000 else str(position)
    except UnicodeEncodeError:
        return str(position)


def _too_long(size: int, limit: int) -> str:
    return f"{size} bytes exceed the limit of {limit} bytes per row"


def _without_text(error: BaseException) -> str:
    """What an error says; a decoding error quotes bytes and is told by its position alone."""
    if isinstance(error, UnicodeError):
        return f"not valid UTF-8 (position {getattr(error, 'start', '?')})"
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return str(error)
