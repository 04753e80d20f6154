"""Conversations read from files or memory, one at a time and of limited size.

A row that cannot be used becomes a ``FailedRow`` with the reason: the other rows are read, and it keeps its place among
them. Reasons name lines, positions, lengths and columns, never the text.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, groupby, islice
from pathlib import Path
from typing import Any

from fastdss.chat import oasst
from fastdss.chat.conversation import WHICH_TURNS, Conversation
from fastdss.chat.formats import Reading, check_format, read_record
from fastdss.chat.record import COLUMNS, SCORES, Columns
from fastdss.chat.turns import is_missing
from fastdss.errors import UserError

from .files import Found, Unreadable, too_long, without_text
from .sources import Source, expand, read_source

MAX_BYTES = 8 << 20  # of a row: a choice, far beyond any guard's context; a larger row is a mistake or an attack
NAMING = "--format names a format, --prompt-column and its like name columns"


@dataclass(frozen=True)
class DataOptions:
    """How data is read; ``score``, ``check`` and ``train`` take the same options.

    columns: names of columns that are not those of a known format.
    format: one of ``formats.FORMATS``; ``"auto"`` finds it by the columns.
    split, config: which one to read where a folder, a file or a Hub id holds several.
    turns: ``"all"`` judges every turn of the assistant that is to be trained, ``"last"`` the last of them.
    max_bytes: rows larger than this fail.
    """

    columns: Columns = COLUMNS
    format: str = "auto"
    split: str | None = None
    config: str | None = None
    turns: str = "all"
    max_bytes: int = MAX_BYTES

    def __post_init__(self) -> None:
        check_format(self.format)
        if self.turns not in WHICH_TURNS:
            raise UserError(f"turns: expected one of {', '.join(WHICH_TURNS)}, got {self.turns!r}")
        if self.max_bytes < 1:
            raise UserError(f"max_bytes: expected at least 1, got {self.max_bytes}")


DATA = DataOptions()


@dataclass(frozen=True)
class Row:
    """A conversation and which of its turns are to be judged.

    ``content_hash``: SHA-256 of all of the conversation that scores or training depend on. ``line``: where it begins in
    its file. ``others``: columns that are no part of the conversation. ``note``: what was guessed to read it.
    """

    id: str
    conversation: Conversation
    judged: tuple[int, ...]
    content_hash: str
    line: int | None = None
    others: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)
    reading: Reading | None = field(default=None, repr=False, compare=False)
    note: str | None = field(default=None, repr=False, compare=False)

    def packed(self) -> dict[str, Any]:
        """What scoring needs of the row, as plain JSON values."""
        tools = {"tools": list(self.conversation.tools)} if self.conversation.tools else {}
        return {
            "id": self.id,
            "messages": self.conversation.records(),
            **tools,
            "judged": list(self.judged),
            "content_hash": self.content_hash,
        }

    @staticmethod
    def unpacked(record: Mapping[str, Any]) -> Row:
        given = {name: record[name] for name in ("messages", "tools") if name in record}
        conversation = read_record(given).conversation
        return Row(record["id"], conversation, tuple(record["judged"]), record["content_hash"])


@dataclass(frozen=True)
class FailedRow:
    """A row that holds no usable conversation, or (``left_out``) one in which nothing is to be trained.

    ``content_hash``: SHA-256 of its record as it was found.
    """

    id: str
    reason: str
    content_hash: str
    left_out: bool = False
    line: int | None = None


def read_rows(sources: Sequence[Source], options: DataOptions = DATA) -> Iterator[Row | FailedRow]:
    """The rows of all sources in order, one at a time, so that memory does not grow with the data.

    sources: files (see ``files.KINDS``, compressed or not), folders of such files or of ``Dataset.save_to_disk``, URLs,
    Hub ids, and data in memory: a list of mappings, a ``datasets.Dataset``, a pandas frame or a pyarrow table. A row
    without an id gets its position over all sources as its id. Raises ``ValueError`` for sources that are missing or of
    another kind.
    """
    expanded = expand(sources, options.split, options.config)
    position = 0
    for source in expanded:
        name = Path(source).name if isinstance(source, str | Path) and len(expanded) > 1 else None
        for found in gathered(read_source(source, options.max_bytes, options.split)):
            yield _row(position, name, found, options)
            position += 1


def gathered(records: Iterable[Found]) -> Iterator[Found]:
    """The records as they are; OpenAssistant's trees of messages become the conversations in those trees."""
    records = iter(records)
    first = next(records, None)
    if first is None:
        return
    whole = chain([first], records)
    if not isinstance(first.record, Mapping):
        yield from whole
    elif oasst.is_message(first.record):
        yield from _paths(whole)
    elif oasst.is_tree(first.record):
        for found in whole:
            if isinstance(found.record, Mapping) and oasst.is_tree(found.record):
                yield from (Found(path, found.line) for path in oasst.paths_of_tree(found.record))
            else:
                yield found
    else:
        yield from whole


def _paths(records: Iterable[Found]) -> Iterator[Found]:
    names = oasst.TreeNames()

    def tree(found: Found) -> Any:
        record = found.record
        return names(record) if isinstance(record, Mapping) and oasst.is_message(record) else found

    for name, group in groupby(records, tree):
        if isinstance(name, Found):
            yield name
            continue
        rows = ((found.record, found.line) for found in group if isinstance(found.record, Mapping))
        messages = list(islice(rows, oasst.LARGEST_TREE))
        reasons = oasst.strays([row for row, _ in messages])
        for (row, line), reason in [*zip(messages, reasons, strict=True), *((more, oasst.TOO_MANY) for more in rows)]:
            if reason is not None:
                yield Found(Unreadable(reason, _record_hash(row)), line)
        whole = [row for (row, _), reason in zip(messages, reasons, strict=True) if reason is None]
        yield from (Found(path, messages[0][1]) for path in oasst.paths_of_rows(whole))


def _row(position: int, file: str | None, found: Found, options: DataOptions) -> Row | FailedRow:
    place = f"row {position}" if found.line is None else f"line {found.line}"
    place = place if file is None else f"{file}, {place}"
    record, columns = found.record, options.columns
    if isinstance(record, Unreadable):
        return FailedRow(str(position), f"{place}: {record.reason}", record.digest, line=found.line)
    if not isinstance(record, Mapping):
        reason = f"{place}: expected a mapping of columns, got {type(record).__name__}"
        return FailedRow(str(position), reason, _record_hash({"": record}), line=found.line)
    record = {str(name): value for name, value in record.items()}
    row_id = str(position)
    try:
        given = record.get(columns.id) if columns.id else None
        row_id = row_id if is_missing(given) or given == "" else str(given)
        size = len(row_id.encode()) if len(row_id) <= 1000 else options.max_bytes + len(row_id)
        reading = read_record(record, columns, format=options.format)
        conversation = reading.conversation
        size += sum(len(turn.answer.text.encode()) for turn in conversation.turns)
        size += len(json.dumps(conversation.tools, default=str)) if conversation.tools else 0
        if size > options.max_bytes:
            raise UserError(too_long(size, options.max_bytes))
        digest = conversation.digest
    except (ValueError, TypeError, RecursionError) as error:
        reason = f"{place}: {without_text(error)}"
        return FailedRow(_plain(row_id, position), reason, _record_hash(record), line=found.line)
    judged = conversation.judged(options.turns)
    if not judged:
        reason = f"{place}: {conversation.why_untrained()}"
        has_answer = any(turn.role == "assistant" for turn in conversation.turns)
        return FailedRow(row_id, reason, digest, has_answer, found.line)
    others = {name: record[name] for name in reading.unused}
    if reading.scored:
        others |= {name: record[name] for name in SCORES if name in record}
    return Row(row_id, conversation, tuple(judged), digest, found.line, others, reading, found.note)


def _record_hash(record: Mapping[str, Any]) -> str:
    values = list(record.items())
    try:
        raw = repr(values)
    except (ValueError, RecursionError):  # an integer of thousands of digits, or lists nested thousands deep
        raw = repr([(str(name)[:100], type(value).__name__) for name, value in values])
    return hashlib.sha256(raw.encode("utf-8", "surrogatepass")).hexdigest()


def _plain(row_id: str, position: int) -> str:
    """The id, or the row's position where the id is no valid text or longer than 1,000 bytes."""
    try:
        return row_id if len(row_id.encode()) <= 1000 else str(position)
    except UnicodeEncodeError:
        return str(position)
