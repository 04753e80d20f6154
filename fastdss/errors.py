"""The errors for what fastdss refuses, distinct from what goes wrong inside it or inside another library.

A command prints a ``UserError`` as one line, since its words are all that a user needs; every other error keeps its
traceback. A ``UserError`` is also a ``ValueError``, and a ``UserTypeError`` a ``TypeError`` too, because Python code
expects these for a wrong value or type.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import NoneType

_WORDS = {
    str: "text",
    bool: "True or False",
    int: "an integer",
    Mapping: "a mapping",
    Sequence: "a list",
    NoneType: "None",
}


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
