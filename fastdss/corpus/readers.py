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
_HELP = {
    ".zip": "unpack it",
    ".tar": "unpack it",
    ".tgz": "unpack it",
    ".xlsx": "save it as CSV UTF-8",
    ".xls": "save it as CSV UTF-8",
    ".txt": "rename it by what it holds, or write a conversation a line as JSON",
    ".pkl": "save it as Parquet, since a pickle may run code",
    ".pickle": "save it as Parquet, since a pickle may run code",
}


def read_file(path: str, max_bytes: int, split: str | None = None) -> Iterator[Found]:
    """The records of a local file, or of a URL that fsspec can open.

    Raises ``ValueError`` for a file that does not exist, is of no known kind, or is a Git LFS pointer.
    """
    kind = kind_of(path)
    if kind is None:
        help = next((f"; {_HELP[suffix]}" for suffix in suffixes_of(path) if suffix in _HELP), "")
        raise UserError(f"{path}: expected one of {', '.join(KINDS)} (also {', '.join(PACKED)}), or a folder{help}")
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
