"""Settings that Python and PyTorch keep for the whole process, changed for as long as any thread needs it."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import Any


class ProcessSetting:
    """A context in which a setting has another value: from the first thread that enters to the last that leaves, when
    it becomes again what it was before the first. Restoring it at each exit would restore another thread's value.

    get, set: read and write the setting. wanted: the value within the context, from the one before it.
    """

    def __init__(self, get: Callable[[], Any], set: Callable[[Any], None], wanted: Callable[[Any], Any]) -> None:
        self._get, self._set, self._wanted = get, set, wanted
        self._lock, self._within, self._before = Lock(), 0, None

    def __enter__(self) -> None:
        with self._lock:
            if not self._within:
                self._before = self._get()
                self._set(self._wanted(self._before))
            self._within += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._within -= 1
            if not self._within:
                self._set(self._before)
