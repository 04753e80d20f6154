"""How a data set is divided into shards: consecutive rows, named by their ids and contents, each id once."""

from __future__ import annotations

import hashlib
import sqlite3
import sys
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice, repeat

from fastdss.errors import UserError

from .engines import Shard
from .rows import NAMING, FailedRow, Row
from .store import shard_name
from .understood import Understood

# Rows of the first shard, and of the largest: sizes double from one to the other. A choice: an interruption costs one
# shard, and many small files are slow to read.
SHARD_ROWS = (16, 256)
UNIQUE = "--id-column names another column, --number-rows takes positions for ids"


@dataclass(frozen=True)
class Plan:
    """The input as shards of consecutive rows: their names, and how many rows each has."""

    names: list[str]
    sizes: list[int]


def make_plan(rows: Iterable[Row | FailedRow], shard_rows: int | None, understood: Understood | None = None) -> Plan:
    """Names and sizes of the shards of ``rows``; raises ``ValueError`` where an id occurs twice.

    The ids that were seen are kept in a temporary database on disk, so that memory does not grow with the data.
    """
    names, sizes = [], []
    understood = understood or Understood()
    with closing(sqlite3.connect("")) as seen:  # "" makes a private database in a temporary file
        for part in parts_of(understood.watching(_once(rows, seen)), shard_rows):
            names.append(shard_name((row.id, row.content_hash) for row in part))
            sizes.append(len(part))
    if not names:
        raise UserError("the input has no rows")
    if not understood.conversations:
        kind = next(iter((understood.reasons or understood.left_out_reasons).most_common(1)))[0]
        what = "is a conversation" if understood.failed else "has an answer to train"
        raise UserError(
            f"none of the {sum(sizes)} rows {what}; {understood.examples[kind]}; "
            f"fastdss check shows what was found; {NAMING}"
        )
    return Plan(names, sizes)


def _once(rows: Iterable[Row | FailedRow], seen: sqlite3.Connection) -> Iterator[Row | FailedRow]:
    """The rows as they are; raises ``ValueError`` at an id that occurred before. Rows that cannot be read often have no
    id but their position, which may be the id of another row; nothing is asked for by their ids, so they may repeat."""
    seen.execute("CREATE TABLE ids (digest BLOB PRIMARY KEY, position INTEGER) WITHOUT ROWID")
    for position, row in enumerate(rows):
        if isinstance(row, Row):
            _remember(seen, row.id, position)
        yield row


def _remember(seen: sqlite3.Connection, row_id: str, position: int) -> None:
    digest = hashlib.blake2b(row_id.encode(), digest_size=16).digest()
    try:
        seen.execute("INSERT INTO ids VALUES (?, ?)", (digest, position))
    except sqlite3.IntegrityError:
        (first,) = seen.execute("SELECT position FROM ids WHERE digest = ?", (digest,)).fetchone()
        raise UserError(
            f"rows {first} and {position} have the same id {row_id!r}; ids must be unique: {UNIQUE}"
        ) from None


def parts_of(rows: Iterable[Row | FailedRow], shard_rows: int | None) -> Iterator[list[Row | FailedRow]]:
    """The rows in consecutive groups. A group's size depends on its number alone, so that appended rows do not change
    the groups before them."""
    rows, sizes = iter(rows), _sizes() if shard_rows is None else repeat(min(shard_rows, sys.maxsize))
    while part := list(islice(rows, next(sizes))):
        yield part


def _sizes() -> Iterator[int]:
    size, largest = SHARD_ROWS
    yield size
    while size < largest:
        yield size
        size *= 2
    yield from repeat(largest)


def missing_shards(
    rows: Iterable[Row | FailedRow], plan: Plan, shard_rows: int | None, missing: set[int]
) -> Iterator[Shard]:
    """The missing shards with their rows; raises ``ValueError`` where the rows are not those of the plan any more."""
    parts = parts_of(rows, shard_rows)
    for number, planned in enumerate(plan.names):
        part = next(parts, [])
        if number not in missing:
            continue
        name = shard_name((row.id, row.content_hash) for row in part)
        if name != planned:
            raise UserError(f"the input changed while it was read: rows from {sum(plan.sizes[:number])} on are others")
        yield Shard(name, part)
