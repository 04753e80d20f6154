"""What happens when a device's memory runs out: fewer tokens at a time, the same scores, and one line in the log."""

from __future__ import annotations

import functools
import logging
import re

import torch

_log = logging.getLogger(__name__)
SMALLEST_BUDGET = 16  # tokens at a time; when memory runs out the budget is halved, but not below this (a choice)
_OUT_OF_MEMORY = re.compile(r"out of memory|(not enough|can't allocate) memory|_ALLOC_FAILED", re.IGNORECASE)


def halved(budget: int, error: RuntimeError, *, possible: bool, least: int = SMALLEST_BUDGET) -> int:
    """The budget to go on with after ``error``, which is raised again unless memory ran out and something can be made
    smaller (``possible``)."""
    if not possible or not out_of_memory(error):
        raise error
    _say()
    return min(budget, max(budget // 2, least))


def out_of_memory(error: RuntimeError) -> bool:
    """Whether the error is one of the many by which devices and libraries report that memory ran out."""
    return isinstance(error, torch.OutOfMemoryError) or _OUT_OF_MEMORY.search(str(error)) is not None


@functools.cache
def _say() -> None:
    """Once a process: a data set has thousands of batches, and each may run out of memory."""
    _log.warning("memory ran out while scoring: going on with fewer tokens at a time; a smaller budget saves tries")
