"""Slots for many texts in one store of keys and values; they can be taken, widened and released at any time.

All share one store because one attention kernel reads the slots of all texts of a micro-batch.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch

from .attention import KVStore

_GRAIN = 64  # a slot's size is a multiple of this many positions, so that a text that grows rarely moves (a choice)


class Slots:
    """Each owner has a slot: a run of positions of ``store``.

    Owners are held weakly: when an owner is garbage-collected, its slot is free again.
    """

    def __init__(self) -> None:
        self.store = KVStore(0)
        self._places: WeakKeyDictionary[Any, tuple[int, int]] = WeakKeyDictionary()  # base and size

    def base(self, owner: Any) -> int:
        """Where the owner's slot begins."""
        return self._places[owner][0]

    @torch.inference_mode()
    def reserve(self, owner: Any, size: int, kept: int) -> None:
        """Make sure that ``owner`` has a slot of at least ``size`` positions; the first ``kept`` keep their contents.

        A slot that is too small gets half as much again as is asked for, so that it seldom needs to grow. It moves if
        another slot is in the way.
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
        """Give ``to`` a slot that begins with a copy of the first ``size`` positions of the owner's slot."""
        self.reserve(to, size, 0)
        source, target = self.base(owner), self.base(to)
        for pair in self.store.layers.values():
            for rows in pair:
                rows[:, target : target + size] = rows[:, source : source + size]

    def release(self, owner: Any) -> None:
        """Free the owner's slot. When no slot is left, the store's memory is freed too."""
        self._places.pop(owner, None)
        if not self._places:
            self.store = KVStore(0)


def _free(others: list[tuple[int, int]], base: int, room: int, capacity: int) -> bool:
    """Whether a slot of ``room`` positions fits at ``base``: within the store, and over no other slot."""
    return base + room <= capacity and all(base + room <= at or at + size <= base for at, size in others)


def _first_gap(others: list[tuple[int, int]], room: int) -> int:
    """The first position from which ``room`` positions are free. others: ``(base, size)`` of all slots, sorted."""
    end = 0
    for at, size in others:
        if at - end >= room:
            return end
        end = max(end, at + size)
    return end
