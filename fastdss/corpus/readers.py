"""The records of files, one at a time, so that memory does not grow with the file.

A record that cannot be read is returned as ``Unreadable``, and the others are read; a file that cannot be read raises
``ValueError``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from fastdss.errors import UserError

from .csv_files import read_csv
from .files import KINDS, PACKED, Found, check_is_data, kind_of, opened, seekable, suffixes_of
from .json_files import read_json
from .splits import check_split
from .tables import read_arrow, read_parquet

# What people have that is no data in itself, and what helps.
_UNPACK, _CONVERT, _PICKLE = "unpack it", "save it as Parquet", "save it as Parquet, since a pickle may run code"
_HELP = {
    **dict.fromkeys((".zip", ".tar", ".tgz", ".7z", ".rar"), _UNPACK),
    **dict.fromkeys((".orc", ".avro", ".lance", ".db", ".sqlite", ".sqlite3", ".duckdb"), _CONVERT),
    **dict.fromkeys((".pkl", ".pickle"), _PICKLE),
    **dict.fromkeys((".xlsx", ".xls", ".ods"), "save it as CSV UTF-8"),
    **dict.fromkeys((".yaml", ".yml", ".toml", ".xml"), "save it as JSON"),
    ".txt": "rename it by what it holds, or write a conversation a line as JSON",
}
_MAY_BE_NOTES = (".yaml", ".yml", ".toml", ".xml", ".txt")


def help_with(name: str) -> str | None:
    """What helps with a file of no known kind; None where nothing is known."""
    return next((_HELP[suffix] for suffix in suffixes_of(name) if suffix in _HELP), None)


def is_unread(name: str) -> bool:
    """Whether a file of this name holds rows, as far as one can tell, that nothing here reads."""
    return kind_of(name) is None and any(s in _HELP and s not in _MAY_BE_NOTES for s in suffixes_of(name))


def read_file(path: str, max_bytes: int, split: str | None = None) -> Iterator[Found]:
    """The records of a local file, or of a URL that fsspec can open.

    Raises ``ValueError`` for a file that does not exist, is of no known kind, or is a Git LFS pointer.
    """
    kind = kind_of(path)
    if kind is None:
        help = help_with(path)
        raise UserError(
            f"{path}: expected one of {', '.join(KINDS)} (also {', '.join(PACKED)}), or a folder"
            + (f"; {help}" if help else "")
        )
    with opened(path) as file:
        check_is_data(path, file.peek(256)[:256], kind)
        if kind == "json":
            yield from read_json(path, file, max_bytes, split)
            return
        check_split(path, split)
        if kind == "csv":
            yield from read_csv(path, file)
        else:
            readers: dict[str, Callable[..., Any]] = {"parquet": read_parquet, "arrow": read_arrow}
            with seekable(path, file) as whole:
                yield from readers[kind](path, whole)
