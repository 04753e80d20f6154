"""CSV files: their delimiter and encoding are found out; a record that cannot be read fails alone."""

from __future__ import annotations

import codecs
import csv
import hashlib
import io
import re
from collections.abc import Iterator
from itertools import chain
from typing import TextIO

from fastdss.chat.record import fits_columns, is_known
from fastdss.errors import UserError

from .files import Found, Unreadable, opened

# Characters. A quote that is never closed makes one record of the rest of the file, which must not fill the memory.
_LONGEST_RECORD = 1 << 28
_DELIMITERS = ",;\t|"
_SAMPLE = 1 << 22  # bytes that the encoding is guessed from: a choice, as the first letter beyond ASCII may come late
_MULTIBYTE = re.compile(rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}")
_HIGH = re.compile(rb"[\x80-\xff]")
# Bytes that Windows-1252 does not assign, or whose characters (þ, ÿ) ordinary text hardly has.
_NO_WINDOWS = re.compile(rb"[\x81\x8d\x8f\x90\x9d\xfe\xff]")
_SIGN_IN_WORD = re.compile(
    rb"(?<=[A-Za-z\xc0-\xff])[\xa1-\xa9\xac\xae-\xb3\xb5\xb6\xb8\xb9\xbc-\xbf\xd7\xf7](?=[A-Za-z\xc0-\xff])"
)
_HIGH_WORD = re.compile(rb"[\xa1-\xff]{4,}")
_TWO_LETTERS = re.compile(rb"[\xc0-\xff]{2}")
_LETTER = re.compile(rb"[\xc0-\xff]")
_ODD = 0.05  # share of odd bytes among those beyond ASCII up to which text counts as Western: a choice
_UNDECODED = re.compile("[\udc80-\udcff]")
_NO_ENCODING = "not valid UTF-8: save the file as UTF-8 (iconv -f ITS-ENCODING -t UTF-8)"
_GUESSED = "read as Windows-1252, since they are not UTF-8: where letters look wrong, save the file as UTF-8"
_DELIMITER_LINE = re.compile(r"\"?sep=([,;\t|])\"?\s*$", re.IGNORECASE)


class _Lines:
    """The lines of a CSV file. It keeps those of the present record until the caller ends it by ``end_record``."""

    def __init__(self, path: str, file: TextIO) -> None:
        self.path, self.file = path, file
        self.record: list[str] = []
        self.size = 0
        self.number = 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self.file.readline(_LONGEST_RECORD)
        self.size += len(line)
        if self.size >= _LONGEST_RECORD:
            raise UserError(
                f"{self.path}: line {self.began}: a record of {_LONGEST_RECORD} characters or more; is a quote not "
                "closed?"
            )
        if not line:
            raise StopIteration
        self.record.append(line)
        self.number += 1
        return line

    @property
    def began(self) -> int:
        """The number of the line on which the present record began."""
        return self.number - max(len(self.record), 1) + 1

    def end_record(self) -> tuple[str, int]:
        """End the present record; returns its SHA-256 and the number of the line on which it began."""
        whole = "".join(self.record).encode("utf-8", "surrogateescape")
        began = self.began
        self.record.clear()
        self.size = 0
        return hashlib.sha256(whole).hexdigest(), began


def read_csv(path: str, file: io.BufferedReader) -> Iterator[Found]:
    """Records as mappings from column to text; the first line names the columns."""
    with opened(path) as sampled:
        encoding = encoding_of(sampled.read(_SAMPLE))
    # Bytes that are invalid in this encoding become surrogates, so that only the row that holds them fails.
    text = io.TextIOWrapper(file, encoding, errors="surrogateescape", newline="")
    # The csv module's limit of a field is lifted, since rows.py checks the size of a whole row. It is one for the whole
    # process, and is not put back, for another file may be read at the same time.
    csv.field_size_limit(2**31 - 1)
    try:
        lines = _Lines(path, text)
        first = next(lines, "")
        said = _DELIMITER_LINE.match(first)
        if said is not None:  # Excel's: "sep=;" before the header
            lines.end_record()
            first = next(lines, "")
        delimiter = said[1] if said is not None else delimiter_of(path, first)
        try:
            names = next(csv.reader(chain([first], lines), delimiter=delimiter, strict=True), [])
        except csv.Error as error:
            raise UserError(f"{path}: its header is no record of CSV: {error}") from None
        blanks = any(name.startswith(" ") for name in names[1:])  # "a, b": a blank after each delimiter
        names = [name.strip() for name in names]
        check_names(path, names)
        lines.end_record()
        for fields, digest, line, size in _records(lines, delimiter, blanks):
            several = f", on {size} lines: is a quote not closed?" if size > 1 else ""
            if isinstance(fields, str):
                yield Found(Unreadable(fields, digest), line)
            elif any(map(_UNDECODED.search, fields)):
                yield Found(Unreadable(_NO_ENCODING, digest), line)
            elif len(fields) == len(names):
                yield Found(dict(zip(names, fields, strict=True)), line, _GUESSED if encoding == "cp1252" else None)
            elif fields:  # an empty line is no record, so it is skipped
                yield Found(Unreadable(f"{len(fields)} fields under a header of {len(names)}{several}", digest), line)
    finally:
        text.detach()


def _records(lines: _Lines, delimiter: str, skip_blanks: bool) -> Iterator[tuple[list[str] | str, str, int, int]]:
    """The fields of each record or why it has none, its SHA-256, the line on which it began, and how many it has.

    Raises ``UserError`` where a quote is broken so that nothing tells which line begins the next record: lines might be
    swallowed by a field, or the middle of one be read as a record.
    """
    reader = csv.reader(lines, delimiter=delimiter, strict=True, skipinitialspace=skip_blanks)
    broken = None  # the line of a broken record that may go on
    while True:
        try:
            found: list[str] | str = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            found = f"not a record of CSV: {error}"
            if broken is None and (len(lines.record) > 1 or _goes_on(lines.record[0], delimiter, skip_blanks)):
                broken = lines.began
        if found and broken is not None and (broken != lines.began or len(lines.record) > 1):
            raise UserError(
                f"{lines.path}: line {broken}: a quote is not closed, or not doubled within its field, so that nothing "
                'tells where the next record begins: write "" for a quote within quotes, or save it as JSON Lines'
            )
        size = len(lines.record)
        yield found, *lines.end_record(), size


def _goes_on(line: str, delimiter: str, skip_blanks: bool) -> bool:
    """Whether a broken record may go on after its first line: there a field is open, if only a quote before a delimiter
    ends one."""
    mark = re.escape(delimiter)
    opening = re.compile(rf'(?:^|{mark}){" *" if skip_blanks else ""}"')
    closing = re.compile(rf'"(?={mark}|\s*$)')
    position = 0
    while begun := opening.search(line, position):
        ended = closing.search(line, begun.end())
        if ended is None:
            return True
        position = ended.end()
    return False


def encoding_of(sample: bytes) -> str:
    """UTF-16 by its mark or its NUL bytes; Windows-1252 where there are bytes beyond ASCII, none are UTF-8 and they
    look like it; else UTF-8, in which rows of any other encoding fail."""
    if sample.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    if sample[1:2] == b"\0" or sample[3:4] == b"\0":
        return "utf-16-le"
    if sample[:1] == b"\0":
        return "utf-16-be"
    high = bool(_HIGH.search(sample))
    if high and not _MULTIBYTE.search(sample) and not _NO_WINDOWS.search(sample) and _is_western(sample):
        return "cp1252"
    return "utf-8-sig"


def _is_western(sample: bytes) -> bool:
    """Whether bytes beyond ASCII look like Windows-1252. Other code pages have letters where it has signs, and words of
    such bytes alone."""
    foreign = filter(_is_foreign, _HIGH_WORD.findall(sample))
    odd = len(_SIGN_IN_WORD.findall(sample)) + sum(map(len, foreign))
    return odd <= _ODD * len(_HIGH.findall(sample))


def _is_foreign(word: bytes) -> bool:
    """Whether bytes beyond ASCII are a word of another code page: two letters, and a third that does not end it."""
    two = _TWO_LETTERS.search(word)
    return two is not None and _LETTER.search(word, two.end(), len(word) - 1) is not None


def delimiter_of(path: str, header: str) -> str:
    """The delimiter that splits the header into columns of a known format, else the most frequent one."""
    outside = re.sub(r'"[^"]*"', "", header)
    by_count = sorted(_DELIMITERS, key=lambda mark: (-outside.count(mark), _DELIMITERS.index(mark)))
    for mark in by_count:
        names = next(iter(csv.reader([header], delimiter=mark)), []) if mark in outside else []
        if fits_columns([name.strip() for name in names]):
            return mark
    return by_count[0] if by_count[0] in outside else ","


def check_names(path: str, names: list[str]) -> None:
    """Raise ``ValueError`` where two columns of a known name, in any letter case, are equal: other readers may take the
    other one."""
    for name in names:
        if is_known(name) and names.count(name) > 1:
            raise UserError(f"{path}: {names.count(name)} columns are named {name!r}: rename all but one")
