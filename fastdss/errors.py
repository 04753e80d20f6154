"""What fastdss refuses, told apart from what goes wrong inside it or inside another library.

A command prints a ``UserError`` as one line, since its words are all that a user needs; every other error keeps its
traceback. In Python a ``UserError`` is a ``ValueError`` (or a ``TypeError`` too), as callers expect.
"""

from __future__ import annotations


class UserError(ValueError):
    """An input or an option that fastdss does not take. The message names it, what was expected and what it got."""


class UserTypeError(UserError, TypeError):
    """A ``UserError`` about the type of something."""


class RowError(UserTypeError):
    """A row that cannot be used; the rows beside it may be good.

    Args:
        row: which row, from 0.
        reason: why, without its text.
    """

    def __init__(self, row: int, reason: str) -> None:
        super().__init__(f"row {row}: {reason}")
        self.row = row
        self.reason = reason

    def __reduce__(self) -> tuple[type[RowError], tuple[int, str]]:
        return type(self), (self.row, self.reason)
