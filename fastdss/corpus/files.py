"""Files: which kind they are, decompressing them, and reading their lines with bounded memory."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import re
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
_MAGIC = {
    ".gz": rb"\x1f\x8b",
    ".zst": rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18",
    ".xz": rb"\xfd7zXZ\x00",
    ".bz2": rb"BZh[1-9](?:1AY&SY|\x17\x72\x45\x38\x50\x90)",
}
PACKED = tuple(_MAGIC)
_BEGINNING = 256  # bytes that tell what a file is
# What a file may be instead of data, and what helps.
_FOREIGN = {
    rb"/annex/objects/|(\.\./)*\.git/annex/": "is a pointer of git-annex, not the data: run `git annex get` on it",
    rb"PK\x03\x04": "is a ZIP archive: unpack it (a workbook of Excel: save it as CSV UTF-8)",
    rb"\s*<(?:!DOCTYPE|html|\?xml|Error)": "is a page of HTML or XML, not data: was a page to sign in saved?",
}
_TABLES = {b"PAR1": ".parquet", b"ARROW1": ".arrow"}


@dataclass(frozen=True)
class Unreadable:
    """Stands for a record that could not be read. ``digest``: SHA-256 of what the file holds in its place."""

    reason: str
    digest: str


class Found(NamedTuple):
    """A record, and the line of its file on which it begins (None where the file has no lines).

    ``note``: what had to be guessed to read it, for the user to judge.
    """

    record: Mapping[str, Any] | Unreadable
    line: int | None = None
    note: str | None = None

    def __repr__(self) -> str:  # never the text
        return f"Found({type(self.record).__name__}, line={self.line})"


def suffixes_of(path: str) -> list[str]:
    """The suffixes of a file's name in lower case, without the question that an address may end with."""
    name = path.partition("?")[0] if is_url(path) else path
    return [suffix.lower() for suffix in PurePosixPath(name).suffixes]


def kind_of(name: str) -> str | None:
    """The reader of a file, told by its suffixes in any letter case; None where there is none."""
    suffixes = suffixes_of(name)
    if suffixes and suffixes[-1] in PACKED:
        suffixes.pop()
    return KINDS.get(suffixes[-1]) if suffixes else None


def is_url(path: str) -> bool:
    return "://" in path


@contextmanager
def opened(path: str) -> Iterator[io.BufferedReader]:
    """The bytes of a local file or a URL, decompressed where its first bytes say that it is compressed."""
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
    with raw:
        whole = raw if isinstance(raw, io.BufferedReader) else io.BufferedReader(raw, PEEKED)
        begun = whole.peek(_BEGINNING)[:_BEGINNING]
        check_is_data(path, begun)
        with _unpacked(path, whole, _packing_of(path, begun)) as file:
            yield file if isinstance(file, io.BufferedReader) else io.BufferedReader(file, PEEKED)


def check_is_data(path: str, begun: bytes, kind: str | None = None) -> None:
    """Raise ``ValueError`` where the first bytes say that a file is something else than data, or of another kind."""
    if begun.startswith(b"version https://git-lfs.github.com/spec/"):
        raise UserError(
            f"{path} is a Git LFS pointer, not the data: run `git lfs pull` in its repository, or download the file"
        )
    for magic, reason in _FOREIGN.items():
        if re.match(magic, begun, re.IGNORECASE):
            raise UserError(f"{path} {reason}")
    for magic, suffix in _TABLES.items():
        if kind in ("json", "csv") and begun.startswith(magic):
            raise UserError(f"{path} holds a table, not text: rename it to {suffix}")


def _packing_of(path: str, begun: bytes) -> str | None:
    """How a file is compressed, by its first bytes: its name is often wrong."""
    found = next((suffix for suffix, magic in _MAGIC.items() if re.match(magic, begun)), None)
    promised = next(reversed(suffixes_of(path)), "")
    if found is None and promised in PACKED and begun:
        raise UserError(
            f"{path}: its compression is damaged: it does not begin as {promised} does (if it is not compressed, "
            f"rename it without {promised})"
        )
    return found


@contextmanager
def _unpacked(path: str, raw: Any, packing: str | None) -> Iterator[Any]:
    damaged: list[type[Exception]] = [EOFError, lzma.LZMAError, gzip.BadGzipFile, zlib.error]
    if packing == ".zst":
        require(path, "score", "zstandard")
        import zstandard

        damaged.append(zstandard.ZstdError)
        file: Any = _Zstandard(raw)
    else:
        unpack: Any = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}.get(packing or "")
        file = raw if unpack is None else unpack(raw, "rb")
    try:
        yield file
    except tuple(damaged) as error:
        raise UserError(f"{path}: its compression is damaged ({type(error).__name__})") from None
    except OSError as error:
        if packing == ".bz2":
            raise UserError(f"{path}: its compression is damaged ({error})") from None
        raise
    finally:
        if file is not raw:
            file.close()


class _Zstandard(io.RawIOBase):
    """A decompressed stream. ``zstandard``'s own reader takes the end of a file for the end of its last frame, so that
    a file of which a half is missing looked whole; here that is an ``EOFError``, as in gzip."""

    _READ = 1 << 12  # bytes at a time: some decompress to a thousand times as many

    def __init__(self, raw: Any) -> None:
        import zstandard

        # Frames of --long may look back over 2 GiB; the default refuses them as if they were damaged.
        self.decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 31)
        self.raw, self.frame = raw, self.decompressor.decompressobj()
        self.begun = False  # whether the present frame has begun
        self.ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.ready:
            given = self.frame.unused_data if self.frame.eof else b""
            given = given or self.raw.read(self._READ)
            if not given:
                if self.begun and not self.frame.eof:
                    raise EOFError("the last frame has no end")
                return 0
            if self.frame.eof:
                self.frame = self.decompressor.decompressobj()
            self.begun = True
            self.ready = memoryview(self.frame.decompress(given))
        count = min(len(buffer), len(self.ready))
        buffer[:count] = self.ready[:count]
        self.ready = self.ready[count:]
        return count


@contextmanager
def seekable(path: str, file: BinaryIO) -> Iterator[Any]:
    """A file in which Arrow can seek, since it reads tables from both ends; compressed and remote ones are copied."""
    import pyarrow as pa

    if not is_url(path):
        with Path(path).open("rb") as raw:
            packing = _packing_of(path, raw.read(_BEGINNING))
        if packing is None:
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
