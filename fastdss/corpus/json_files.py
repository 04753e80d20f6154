"""JSON files: one object per line, arrays of objects in any layout, and objects that hold splits or columns."""

from __future__ import annotations

import codecs
import hashlib
import io
import json
import re
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from fastdss.chat.record import fits_columns
from fastdss.chat.shapes import is_message, is_round
from fastdss.errors import UserError

from .files import PEEKED, Found, Unreadable, each_name_once, lines_of, opened, suffixes_of, without_text
from .splits import check_split

_BLANKS = re.compile(r"[ \t\r\n]*")
_CUT = 12  # characters that hold any word or escape of JSON, and the part of a number that is none without the rest
_DECODER = json.JSONDecoder(object_pairs_hook=each_name_once)
_LARGEST_OBJECT = 1 << 30  # bytes of one object that holds columns: it must be in memory whole, so a choice bounds it


def read_json(path: str, file: io.BufferedReader, max_bytes: int, split: str | None) -> Iterator[Found]:
    """The records of a JSON file, whose layout is found from its content; suffixes are often wrong."""
    with opened(path) as sampled:  # a peek would end where the first piece that was recoded or decompressed does
        layout = _layout(path, _in_utf8(sampled).read(PEEKED))
    if layout == "object":
        yield from _whole(path, split)
        return
    check_split(path, split)
    if layout == "array":
        yield from _array(path)
    else:
        yield from _lines(_in_utf8(file), max_bytes, in_array=layout == "lines of an array")


# What is no UTF-16 becomes what is no UTF-8, for which a row is unreadable; for UTF-16 Python's own handlers raise.
_NO_UTF16 = "fastdss.no_utf16"
codecs.register_error(_NO_UTF16, lambda error: ("\udcff", getattr(error, "end", 0)))


def _in_utf8(file: io.BufferedReader) -> io.BufferedReader:
    """The file as UTF-8 without a byte order mark; UTF-16 is recoded as it is read."""
    beginning = file.peek(4)
    if beginning.startswith(codecs.BOM_UTF8):
        file.read(3)
    encoding = _utf16_of(file.peek(8)[:8])
    if encoding is None:
        return file

    class Recoded(io.RawIOBase):
        text = io.TextIOWrapper(file, encoding, errors=_NO_UTF16, newline="")

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            part = self.text.read(len(buffer) // 4).encode("utf-8", "surrogateescape")
            buffer[: len(part)] = part
            return len(part)

    return io.BufferedReader(Recoded(), PEEKED)


def _utf16_of(beginning: bytes) -> str | None:
    """The name of UTF-16 in which a file of JSON is: by its mark, or as it begins with two characters of ASCII, the
    first of which opens an object or an array."""
    if beginning.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) and b"\0" in beginning[2:]:
        return "utf-16"
    for name in ("utf-16-le", "utf-16-be"):
        text = beginning[:4].decode(name, "replace")
        if len(text) == 2 and text[0] in "{[" and "\0" != text[1] < "\x80":
            return name
    return None


def _layout(path: str, beginning: bytes) -> str:
    """How a file is laid out, told by its first bytes.

    ``"lines"``: one object per line. ``"lines of an array"``: an array with one object per line; read by lines, a bad
    line costs one record and not the file. ``"array"`` and ``"object"``: one JSON value in any other layout.

    A file whose suffix promises JSON Lines, and which as a whole is no JSON value, is read by lines.
    """
    is_whole = len(beginning) < PEEKED
    text = beginning.strip() if is_whole else beginning.lstrip()
    lines = [line.strip() for line in text.split(b"\n")]
    first_is_cut = not is_whole and len(lines) == 1
    further = [line for line in lines[1:] if line]
    damaged = is_whole and _is_called_lines(path) and _parsed(text) is None
    if text.startswith(b"["):
        if not first_is_cut and isinstance(_parsed(lines[0]), list):
            is_chat = _is_called_lines(path) and as_record(_parsed(lines[0])) is not None
            return "lines" if further or is_chat else "array"
        given = [lines[0][1:].strip(), *lines[1:]]
        given = [line for line in (given if is_whole else given[:-1]) if line not in (b"", b"]")]
        may_be_closed = not is_whole or text.endswith(b"]")
        if may_be_closed and given and not any(map(_spreads, given)) and isinstance(_parsed(_bare(given[0])), dict):
            return "lines of an array"
        return "lines" if damaged else "array"
    if not text.startswith(b"{"):
        return "lines"
    if first_is_cut:
        return "lines" if _has_two_lines(path) else "object"
    record = _parsed(lines[0].removesuffix(b","))
    if isinstance(record, dict):
        data = record.get("data")
        rows = isinstance(data, list) and all(isinstance(value, dict) for value in data)
        names = [name for name in record if name != "data" or not rows]
        single = not further and (not fits_columns(names) or _is_columns(record))
        return "object" if single else "lines"
    if lines[0] == b"{":  # over several lines, whatever the suffix promises
        return "object"
    damaged = damaged or (not is_whole and _is_called_lines(path) and not _may_go_on(text))
    return "object" if further and not further[0].startswith(b"{") and not damaged else "lines"


def _may_go_on(beginning: bytes) -> bool:
    """Whether a JSON value may begin so: what is wrong with it is at most that it ends here."""
    text = beginning.decode(errors="ignore")
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        return error.msg.startswith("Unterminated string") or error.pos > len(text) - len("false")
    except RecursionError:
        return False
    return True


def _bare(line: bytes) -> bytes:
    """A line of an array without what follows its object."""
    return line.removesuffix(b"]").rstrip().removesuffix(b",")


def _spreads(line: bytes) -> bool:
    """Whether a line of an array shows that its objects do not have a line each: one goes on over several lines, or a
    line has several. (A line that is damaged shows nothing.)"""
    if line in (b"{", b"}", b"},", b"[") or line.startswith(b'"'):
        return True
    return _parsed(_bare(line)) is None and isinstance(_parsed(b"[" + _bare(line) + b"]"), list)


def as_record(value: Any) -> Mapping[str, Any] | None:
    """The value as a record: an object, or a list of messages; None where it is neither."""
    if isinstance(value, list) and value and all(is_message(item) or is_round(item) for item in value):
        return {"messages": value}
    return value if isinstance(value, Mapping) else None


def _is_called_lines(path: str) -> bool:
    """Whether the suffix promises JSON Lines."""
    return ".json" not in suffixes_of(path)


def _has_two_lines(path: str) -> bool:
    with opened(path) as file:
        return len(list(islice(lines_of(_in_utf8(file), PEEKED), 2))) > 1


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _lines(file: io.BufferedReader, max_bytes: int, *, in_array: bool) -> Iterator[Found]:
    """One object per line, without an array's brackets and the comma after an object."""
    first = True
    for number, line in lines_of(file, max_bytes):
        if isinstance(line, Unreadable):
            yield Found(line, number)
            continue
        text = line.removeprefix(codecs.BOM_UTF8).strip()  # files that were put together have one each
        if in_array:
            text = text.removeprefix(b"[").lstrip() if first else text
            text = text.removesuffix(b"]").rstrip()  # an object's own line ends in "}"
        first = False
        text = text[:-1].rstrip() if text.endswith(b"},") else text
        if text:
            yield Found(_object(text, hashlib.sha256(line).hexdigest()), number)


def _object(text: bytes, digest: str) -> Mapping[str, Any] | Unreadable:
    try:
        record = json.loads(text.decode(), object_pairs_hook=each_name_once)
    except (ValueError, RecursionError) as error:
        return Unreadable(f"not a line of JSON: {without_text(error)}", digest)
    found = as_record(record)
    if found is None:
        return Unreadable(f"expected a JSON object per line, got {type(record).__name__}", digest)
    return found


class _Text:
    """The text of a JSON file, of which only what is being read is in memory."""

    def __init__(self, file: io.BufferedReader) -> None:
        self.file = io.TextIOWrapper(_in_utf8(file), "utf-8", newline="")
        self.text, self.at = "", 0

    def next(self) -> str:
        """The next character that is no blank, which stays the next one; "" at the end."""
        while True:
            self.at = _BLANKS.match(self.text, self.at).end()  # type: ignore[union-attr]  # it always matches
            if self.at < len(self.text):
                return self.text[self.at]
            if not self._more():
                return ""

    def take(self, *marks: str) -> str:
        """The next character, one of ``marks``, is read; raises ``ValueError`` where it is another."""
        mark = self.next()
        if mark not in marks:
            raise json.JSONDecodeError(f"expected {' or '.join(marks)}", self.text, self.at)
        self.at += 1
        return mark

    def value(self) -> Any:
        """The next value is read."""
        self.next()
        while True:
            try:
                value, end = _DECODER.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                # What is cut is wrong at its end, or has a string without one.
                cut = error.pos > len(self.text) - _CUT or error.msg.startswith("Unterminated")
                if not cut or not self._more():
                    raise
                continue
            if end < len(self.text) - _CUT or not self._more():  # a number may go on
                self.at = end
                return value

    def values(self) -> Iterator[Any]:
        """The values of the array that comes next are read one by one; a comma may follow the last."""
        self.take("[")
        while self.next() != "]":
            yield self.value()
            if self.next() != "]":
                self.take(",")
        self.take("]")

    def names(self) -> Iterator[str]:
        """The names in the object that comes next; the caller reads the value of each."""
        self.take("{")
        while self.next() != "}":
            name = self.value()
            self.take(":")
            yield name
            if self.next() != "}":
                self.take(",")
        self.take("}")

    def end(self) -> None:
        """Raise ``ValueError`` where anything follows."""
        if self.next():
            raise json.JSONDecodeError("expected the end", self.text, self.at)

    def _more(self) -> bool:
        """Read on, at least as much as there is, so that a long value is not tried again and again."""
        part = self.file.read(max(PEEKED, len(self.text) - self.at))
        if part:
            self.text, self.at = self.text[self.at :] + part, 0
        return bool(part)


def _array(path: str, split: str | None = None) -> Iterator[Found]:
    """The objects of an array in any layout, or of the array of one split, one at a time in memory."""
    count = 0
    with opened(path) as file:
        text = _Text(file)
        try:
            for record in text.values() if split is None else _values_of(text, split):
                count += 1
                if (found := as_record(record)) is not None:
                    yield Found(found)
                else:
                    digest = hashlib.sha256(repr(record).encode("utf-8", "surrogatepass")).hexdigest()
                    yield Found(Unreadable(f"expected an object, got {type(record).__name__}", digest))
            if split is None:
                text.end()
        except (ValueError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else without_text(error)
            raise UserError(f"{path}: not JSON after {count} objects of its array ({reason})") from None


def _values_of(text: _Text, split: str) -> Iterator[Any]:
    for name in text.names():
        if name == split:
            yield from text.values()
            return
        text.value()


def _whole(path: str, split: str | None) -> Iterator[Found]:
    """The records of a file that is one object: named splits, columns, or a single record.

    In a file of JSON Lines that has only one line, an object with lists of objects is a record, as it would be if a
    second line followed.
    """
    names, lists = _top_level(path)
    if lists and not _is_called_lines(path) and not fits_columns([name for name in names if name != "data"]):
        if split is not None and split not in lists:
            raise UserError(f"{path} holds the splits {', '.join(lists)}: there is no {split!r}")
        if split is None and len(lists) > 1:
            raise UserError(f"{path} holds the splits {', '.join(lists)}: name one by --split")
        yield from _array(path, split or lists[0])
        return
    check_split(path, split)
    with opened(path) as file:
        content = _in_utf8(file).read(_LARGEST_OBJECT + 1)
    if len(content) > _LARGEST_OBJECT:
        raise UserError(f"{path}: one object of more than {_LARGEST_OBJECT} bytes; save it as JSON Lines")
    try:
        whole = json.loads(content.decode(), object_pairs_hook=each_name_once)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON: {without_text(error)}") from None
    if _is_columns(whole):
        yield from (Found(record) for record in _records(whole))
    else:
        yield Found(whole, 1)


def _top_level(path: str) -> tuple[list[str], list[str]]:
    """The names in the outermost object, and which of them hold lists of objects."""
    names: list[str] = []
    lists: list[str] = []
    with opened(path) as file:
        text = _Text(file)
        try:
            for name in text.names():
                names.append(name)
                if text.next() != "[":
                    text.value()
                elif any([isinstance(value, dict) for value in text.values()]):  # all are to be read
                    lists.append(name)
            text.end()
        except (json.JSONDecodeError, RecursionError):
            raise UserError(
                f"{path}: neither one JSON object a line nor one JSON object in all; jq -c . FILE writes objects that "
                "stand one after the other so"
            ) from None
    each_name_once([(name, None) for name in names])
    return names, lists


def _is_columns(whole: Mapping[str, Any]) -> bool:
    """Whether an object holds columns instead of one record, as pandas and ``Dataset.to_dict`` write them."""
    values = list(whole.values())
    if any(map(is_message, values)) or whole.keys() == {"data"}:  # messages as columns of their own, UltraChat's texts
        return False
    if {"columns", "data"} <= whole.keys() and isinstance(whole["columns"], list) and isinstance(whole["data"], list):
        return True
    if values and all(isinstance(value, dict) for value in values):
        by_name = not fits_columns(list(whole)) and all(fits_columns(list(value)) for value in values)
        return by_name or len({tuple(value) for value in values}) == 1
    plain = [value for value in values if isinstance(value, list)]
    if len(plain) != len(values) or len({len(value) for value in plain}) != 1:
        return False
    # A single conversation is a list of messages, that is of objects; a column of conversations is a list of lists.
    return not any(isinstance(value[0], dict) for value in plain if value)


def _records(whole: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    if {"columns", "data"} <= whole.keys():  # pandas' "split"
        for values in whole["data"]:
            yield dict(zip(whole["columns"], values, strict=True))
        return
    if all(isinstance(value, dict) for value in whole.values()) and not fits_columns(list(whole)):
        yield from whole.values()  # pandas' "index"
        return
    columns = {name: list(value.values() if isinstance(value, dict) else value) for name, value in whole.items()}
    for values in zip(*columns.values(), strict=True):
        yield dict(zip(columns, values, strict=True))
