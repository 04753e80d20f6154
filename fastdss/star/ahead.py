"""Renderings are made by a worker thread while the ones before them are scored."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")

_SWITCH = 1e-4  # seconds; with Python's 5 ms every launched operation might wait that long for the worker thread


class Ahead(Generic[Item, Made]):
    """``map(make, items)``: the same results in the same order, made by one worker thread beside the caller.

    An error of ``make`` is raised at the next step of the caller, before more is computed for nothing; the first one in
    the order of the items, whatever the threads do. Leaving the loop early (an error, Ctrl-C) drops what was not begun
    and waits for nothing. ``waited``: seconds that the caller stood still.
    """

    def __init__(self, make: Callable[[Item], Made], items: Sequence[Item]) -> None:
        self.make = make
        self.items = items
        self.waited = 0.0

    def __iter__(self) -> Iterator[Made]:
        if len(self.items) == 1:  # nothing to run ahead of
            yield self._timed(lambda: self.make(self.items[0]))
            return
        before = sys.getswitchinterval()
        pool = ThreadPoolExecutor(1, thread_name_prefix="fastdss-ahead")
        futures = [pool.submit(self.make, item) for item in self.items]
        sys.setswitchinterval(min(before, _SWITCH))
        try:
            for k, future in enumerate(futures):
                _raise_first(futures[k:])
                yield self._timed(future.result)
        finally:
            sys.setswitchinterval(before)
            pool.shutdown(wait=False, cancel_futures=True)

    def _timed(self, get: Callable[[], Made]) -> Made:
        begun = time.perf_counter()
        made = get()
        self.waited += time.perf_counter() - begun
        return made


def _raise_first(futures: Sequence[Future[Made]]) -> None:
    for future in futures:
        if not future.done():
            return
        future.result()
