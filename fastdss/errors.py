"""The errors for what fastdss refuses, distinct from what goes wrong inside it or inside another library.

A command prints a ``UserError`` as one line, since its words are all that a user needs; every other error keeps its
traceback. A ``UserError`` is also a ``ValueError``, and a ``UserTypeError`` a ``TypeError`` too, because Python code
expects these for a wrong value or type.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import cache
from numbers import Real
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

_WORDS: dict[Any, str] = {
    str: "text", bool: "True or False", int: "an integer", Real: "a number", Mapping: "a mapping", Sequence: "a list",
    Callable: "a function", NoneType: "None",
}  # fmt: skip
_KINDS: dict[Any, Any] = {float: Real, tuple: Sequence}  # what is taken for a field of another type, too


class UserError(ValueError):
    """An input or an option that fastdss does not take. The message names it, what was expected and what it got."""


class UserTypeError(UserError, TypeError):
    """A ``UserError`` about the type of something."""


class RowError(UserTypeError):
    """A row that cannot be used; the rows beside it may be good.

    Args:
        row: the number of the row, counted from 0.
        reason: why it cannot be used, without quoting its text.
    """

    def __init__(self, row: int, reason: str) -> None:
        super().__init__(f"row {row}: {reason}")
        self.row = row
        self.reason = reason

    def __reduce__(self) -> tuple[type[RowError], tuple[int, str]]:
        return type(self), (self.row, self.reason)


def expect(name: str, value: object, *kinds: type, wanted: str = "") -> None:
    """Refuse a ``value`` that is of none of ``kinds``: True and False are no numbers here, and text is no list.

    wanted: what is expected, where the names of the kinds do not say it.
    """
    fits = isinstance(value, kinds)
    fits = fits and (bool in kinds or not isinstance(value, bool)) and (str in kinds or not isinstance(value, str))
    if not fits:
        wanted = wanted or " or ".join(_WORDS.get(kind, f"a {kind.__name__}") for kind in kinds)
        raise UserTypeError(f"{name}: expected {wanted}, got {type(value).__name__}")


def expect_fields(options: Any, before: str = "") -> None:
    """Refuse a dataclass with a value that is not what its field's annotation says: a type, the outer one of a generic
    type, or one of several texts (``Literal``). ``before`` stands before the field's name in the error."""
    for name, kinds, choices in _fields(options.__class__):
        value = getattr(options, name)
        if isinstance(value, str) and value in choices:
            continue
        if not kinds:
            raise UserError(f"{before}{name}: expected one of {', '.join(choices)}, got {value!r}")
        words = [*(_WORDS.get(kind) or f"a {kind.__name__}" for kind in kinds), *map(repr, choices)]
        expect(before + name, value, *kinds, wanted=" or ".join(words))


@cache
def _fields(kind: Any) -> list[tuple[str, list[Any], list[str]]]:
    """Of each field: its name, the types that it may have, and the texts."""
    hints, found = get_type_hints(kind), []
    for name in (field.name for field in fields(kind)):
        parts = get_args(hints[name]) if get_origin(hints[name]) in (Union, UnionType) else (hints[name],)
        outer = [get_origin(part) or part for part in parts]
        choices = [text for part, of in zip(parts, outer, strict=True) if of is Literal for text in get_args(part)]
        found.append((name, [_KINDS.get(of, of) for of in outer if of is not Literal], choices))
    return found
