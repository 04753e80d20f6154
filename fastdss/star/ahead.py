"""Runs ahead: a worker thread makes the next renderings while the ones before them are scored."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from fastdss.upstream.process import ProcessSetting

Item = TypeVar("Item")
Made = TypeVar("Made")

_SWITCH = 1e-4  # seconds until Python switches threads; with its default each operation may wait 5 ms for the worker
_switching = ProcessSetting(sys.getswitchinterval, sys.setswitchinterval, lambda before: min(before, _SWITCH))


class Ahead(Generic[Item, Made]):
    """``map(make, items)``: the same results in the same order, made by one worker thread beside the caller.

    An error of ``make`` is raised at the caller's next step, before more is computed in vain; of several errors, that
    of the earliest item. Leaving the loop early (an error, Ctrl-C) drops the items that were not begun and does not
    wait for the one that was. ``waited``: seconds that the caller spent waiting.
    """

    def __init__(self, make: Callable[[Item], Made], items: Sequence[Item]) -> None:
        self.make = make
        self.items = items
        self.waited = 0.0

    def __iter__(self) -> Iterator[Made]:
        if len(self.items) == 1:  # there is no next item to make meanwhile
            yield self._timed(lambda: self.make(self.items[0]))
            return
        pool = ThreadPoolExecutor(1, thread_name_prefix="fastdss-ahead")
        futures = [pool.submit(self.make, item) for item in self.items]
        try:
            with _switching:
                for k, future in enumerate(futures):
                    _raise_first(futures[k:])
                    yield self._timed(future.result)
        finally:
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
