"""Slots of many texts in one store of keys and values: taken, widened and given back at any time.

One store, because one attention kernel reads the slots of all texts of a micro-batch.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch

from .attention import KVStore

_GRAIN = 64  # positions: a slot is a multiple of it, so that a text does not move with every word


class Slots:
    """Each owner has a run of positions of ``store``; an owner that nobody holds any more has given its own back."""

    def __init__(self) -> None:
        self.store = KVStore(0)
        self._places: WeakKeyDictionary[Any, tuple[int, int]] = WeakKeyDictionary()  # base and size

    def base(self, owner: Any) -> int:
        """Where the owner's slot begins."""
        return self._places[owner][0]

    @torch.inference_mode()
    def reserve(self, owner: Any, size: int, kept: int) -> None:
        """See that ``owner`` has a slot of ``size`` positions, of which the first ``kept`` hold what they held.

        A slot that is too small grows by half more than what is asked for, and moves where its neighbour is near.
        """
        base, room = self._places.get(owner, (0, 0))
        if size <= room:
            return
        room = -(-(size + size // 2) // _GRAIN) * _GRAIN
        others = sorted(place for other, place in self._places.items() if other is not owner)
        new = base if _free(others, base, room, self.store.capacity) else _first_gap(others, room)
        if new + room > self.store.capacity:
            self.store = self.store.resized(max(new + room, 2 * self.store.capacity))
        if kept and new != base:
            for pair in self.store.layers.values():
                for rows in pair:
                    rows[:, new : new + kept] = rows[:, base : base + kept].clone()
        self._places[owner] = new, room

    @torch.inference_mode()
    def copy(self, owner: Any, to: Any, size: int) -> None:
        """Give ``to`` a slot with the first ``size`` positions of ``owner``'s."""
        self.reserve(to, size, 0)
        source, target = self.base(owner), self.base(to)
        for pair in self.store.layers.values():
            for rows in pair:
                rows[:, target : target + size] = rows[:, source : source + size]

    def release(self, owner: Any) -> None:
        """The owner's slot is free again; with the last one the store's memory goes."""
        self._places.pop(owner, None)
        if not self._places:
            self.store = KVStore(0)


def _free(others: list[tuple[int, int]], base: int, room: int, capacity: int) -> bool:
    """Whether a slot may stay at ``base``: nobody else's is in its way, and the store need not grow for it."""
    return base + room <= capacity and all(base + room <= at or at + size <= base for at, size in others)


def _first_gap(others: list[tuple[int, int]], room: int) -> int:
    """The first place with ``room`` positions before, between or after the slots of others, which are sorted."""
    end = 0
    for at, size in others:
        if at - end >= room:
            return end
        end = max(end, at + size)
    return end
