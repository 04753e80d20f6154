"""Ctrl-C, and a reader that went away: a command ends in one line, wherever it was."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def noticing_interrupts() -> Iterator[list[int]]:
    """Within the context Ctrl-C raises ``KeyboardInterrupt`` as always, and adds its signal to the list.

    The list tells what another error comes from: lazy imports of transformers turn whatever stops them, Ctrl-C too,
    into a ``ModuleNotFoundError``.
    """
    noticed: list[int] = []
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:  # somebody else's business
        yield noticed
        return

    def note(number: int, frame: FrameType | None) -> None:
        noticed.append(number)
        signal.default_int_handler(number, frame)

    signal.signal(signal.SIGINT, note)
    try:
        yield noticed
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def stdout_is_lost() -> bool:
    """Whether stdout takes nothing any more. What it holds is forgotten then: Python would try again at its end, and
    complain."""
    try:
        print(flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False
