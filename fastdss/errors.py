"""The errors for what fastdss refuses, distinct from what goes wrong inside it or inside another library.

A command prints a ``UserError`` as one line, since its words are all that a user needs; every other error keeps its
traceback. A ``UserError`` is also a ``ValueError``, and a ``UserTypeError`` a ``TypeError`` too, because Python code
expects these for a wrong value or type.
"""

from __future__ import annotations


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
