"""A random sample of a data set's rows, drawn while they are read once."""

from __future__ import annotations

import hashlib
import heapq
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from fastdss.star.promise import Promise

from .rows import FailedRow, Row
from .store import shard_name

_FITTED = 5 / 3  # rows to fit the probe on, for each row on which the promise is then tested: a choice


@dataclass
class Sample:
    """A random sample of rows: those whose hash with the seed is lowest, whatever their order in the input."""

    promise: Promise
    seed: int
    readable: int = 0
    _lowest: list[tuple[int, int, Row]] = field(default_factory=list, repr=False)

    @property
    def wanted(self) -> int:
        return math.ceil(self.promise.least_rows * (1 + _FITTED))

    def watching(self, rows: Iterable[Row | FailedRow]) -> Iterator[Row | FailedRow]:
        """Yields ``rows`` as they are, and draws the sample from them on the way."""
        for row in rows:
            if isinstance(row, Row):
                self.readable += 1
                entry = (-self._place(row), self.readable, row)
                if len(self._lowest) < self.wanted:
                    heapq.heappush(self._lowest, entry)
                elif entry > self._lowest[0]:
                    heapq.heapreplace(self._lowest, entry)
            yield row

    @property
    def rows(self) -> list[Row]:
        """The sample's rows in a random order; none where approximating the other rows would not pay for the sample."""
        return [] if self.too_few else [row for _, _, row in sorted(self._lowest, reverse=True)]

    @property
    def too_few(self) -> str | None:
        """Why nothing is approximated, where the data has fewer than twice the sample's rows; else None."""
        if self.readable >= 2 * self.wanted:
            return None
        return f"the input has {self.readable} conversations, and it takes {2 * self.wanted} to approximate scores"

    @property
    def name(self) -> str:
        return shard_name((row.id, row.content_hash) for row in self.rows)

    def _place(self, row: Row) -> int:
        digest = hashlib.sha256(f"{self.seed}\0{row.id}\0{row.content_hash}".encode("utf-8", "surrogatepass"))
        return int.from_bytes(digest.digest()[:16], "big")
