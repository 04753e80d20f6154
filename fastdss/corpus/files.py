"""Files: which kind they are, decompressing them, and reading their lines with bounded memory."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import sys
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple

from fastdss.errors import UserError
from fastdss.optional import require

ROWS_AT_ONCE = 64  # of a table, in memory as Python objects: a choice, as rows may have megabytes each
PEEKED = 1 << 16  # bytes at a file's beginning from which its layout is found: a choice
KINDS = {
    ".jsonl": "json", ".ndjson": "json", ".json": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet",
    ".arrow": "arrow", ".feather": "arrow", ".ipc": "arrow",
}  # fmt: skip
PACKED = (".gz", ".zst", ".xz", ".bz2")


@dataclass(frozen=True)
class Unreadable:
    """Stands for a record that could not be read. ``digest``: SHA-256 of what the file holds in its place."""

    reason: str
    digest: str


class Found(NamedTuple):
    """A record, and the line of its file on which it begins (None where the file has no lines)."""

    record: Mapping[str, Any] | Unreadable
    line: int | None = None

    def __repr__(self) -> str:  # never the text
        return f"Found({type(self.record).__name__}, line={self.line})"


def kind_of(name: str) -> str | None:
    """The reader of a file, told by its suffixes in any letter case; None where there is none."""
    suffixes = [suffix.lower() for suffix in PurePosixPath(name).suffixes]
    if suffixes and suffixes[-1] in PACKED:
        suffixes.pop()
    return KINDS.get(suffixes[-1]) if suffixes else None


def is_url(path: str) -> bool:
    return "://" in path


@contextmanager
def opened(path: str) -> Iterator[io.BufferedReader]:
    """The bytes of a local file or a URL; by its suffix a compressed file is decompressed."""
    if is_url(path):
        import fsspec

        try:
            raw = fsspec.open(path, "rb").open()
        except (ImportError, ValueError, OSError) as error:
            raise UserError(f"{path} cannot be opened: {type(error).__name__}: {error}") from None
    else:
        if not Path(path).exists():
            raise UserError(f"{path} does not exist")
        if not Path(path).is_file():  # a pipe can be read once only, and sources are read twice
            raise UserError(f"{path}: expected a file that can be read twice, not a pipe or device")
        raw = Path(path).open("rb", buffering=PEEKED)  # noqa: SIM115
    with raw, _unpacked(path, raw) as file:
        yield file if isinstance(file, io.BufferedReader) else io.BufferedReader(file, PEEKED)


@contextmanager
def _unpacked(path: str, raw: Any) -> Iterator[Any]:
    suffix = PurePosixPath(path).suffix.lower()
    damaged: list[type[Exception]] = [EOFError, lzma.LZMAError, gzip.BadGzipFile, zlib.error]
    if suffix == ".zst":
        require(path, "score", "zstandard")
        import zstandard

        damaged.append(zstandard.ZstdError)
        file: Any = zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True)
    else:
        unpack: Any = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}.get(suffix)
        file = raw if unpack is None else unpack(raw, "rb")
    try:
        yield file
    except tuple(damaged) as error:
        raise UserError(f"{path}: its compression is damaged ({type(error).__name__})") from None
    except OSError as error:
        if suffix == ".bz2":
            raise UserError(f"{path}: its compression is damaged ({error})") from None
        raise
    finally:
        if file is not raw:
            file.close()


@contextmanager
def seekable(path: str, file: BinaryIO) -> Iterator[Any]:
    """A file in which Arrow can seek, since it reads tables from both ends; compressed and remote ones are copied."""
    import pyarrow as pa

    if not is_url(path) and PurePosixPath(path).suffix.lower() not in PACKED:
        with pa.memory_map(path) as mapped:
            yield mapped
        return
    with tempfile.TemporaryFile() as copy:
        while part := file.read(1 << 20):
            copy.write(part)
        copy.seek(0)
        yield copy


def each_name_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """``dict(pairs)``; raises ``ValueError`` where a name occurs twice. Readers disagree on which of two values counts,
    so the text that was scored might not be the text that is trained on."""
    record = dict(pairs)
    if len(record) < len(pairs):
        raise UserError("a name occurs twice in an object")
    return record


def too_long(size: int, limit: int) -> str:
    return f"{size} bytes exceed the limit of {limit} bytes per row (--max-bytes)"


def without_text(error: BaseException) -> str:
    """An error's message without quotations of the data. A decoding error quotes bytes: only its position is kept."""
    if isinstance(error, UnicodeError):
        return f"not valid UTF-8 (position {getattr(error, 'start', '?')})"
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return str(error)


def lines_of(file: BinaryIO, max_bytes: int) -> Iterator[tuple[int, bytes | Unreadable]]:
    """The lines that are not blank, with their numbers; a line of more than ``max_bytes`` is never in memory whole."""
    number = 0
    while line := file.readline(min(max_bytes + 1, sys.maxsize)):
        number += 1
        if len(line) > max_bytes and not line.endswith(b"\n"):
            digest, size = hashlib.sha256(line), len(line)
            while more := file.readline(1 << 20):
                digest.update(more)
                size += len(more)
                if more.endswith(b"\n"):
                    break
            yield number, Unreadable(too_long(size, max_bytes), digest.hexdigest())
        elif line.strip():
            yield number, line
