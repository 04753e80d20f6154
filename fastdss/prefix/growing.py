"""Logits at the ends of the renderings of many growing texts, computing each new token once.

A text keeps the keys and values of its last rendering in a slot. Of the next rendering only the tokens from the first
difference on are computed; they overwrite the end of the last one. The renderings of all texts go through the model
together: segments of different slots do not see each other, and those of one slot are in order, so that each may
overwrite what the one before wrote.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from torch import Tensor

from .attention import LONGEST_SEGMENT, using_prefix_attention
from .engine import KeptHead, Runner, fingerprint
from .memory import SMALLEST_BUDGET, halved
from .packed_attention import attend_packed
from .packing import Segment, micro_batches
from .rounds import fetch
from .slots import Slots
from .tree import shared_length

Texts = Mapping[Any, Sequence[Sequence[int]]]  # the renderings of each owner, in order


class GrowingTexts:
    """Keys and values of the texts of many owners, which come and go.

    An owner is any object that can be referenced weakly; when it is gone, its slot is free again. ``budget`` tokens go
    through the model at a time; when memory runs out, the call is repeated with half of them. When the model has
    changed (see ``fingerprint``), all texts are computed anew.
    """

    def __init__(
        self,
        model: Any,
        verdict_ids: Sequence[int],
        head: KeptHead,
        *,
        budget: int | None = None,
        attend: Callable[..., Tensor] = attend_packed,
    ) -> None:
        self._model = model
        self._asked = verdict_ids, attend
        self._head = head
        self._budget = budget
        self._begin()

    def _begin(self) -> None:
        self._runner = Runner(self._model, *self._asked)
        self._slots = Slots()
        self._held: WeakKeyDictionary[Any, np.ndarray] = WeakKeyDictionary()  # the tokens that each slot holds
        self._fingerprint = fingerprint(self._runner.body)

    def logits(self, texts: Texts) -> Tensor:
        """Logits ``[renderings, R]`` on the CPU, owner after owner, as one forward per rendering would give them."""
        with using_prefix_attention(self._model):
            if fingerprint(self._runner.body) != self._fingerprint:
                self._begin()
            self._runner.read_head(self._model)
            budget = self._budget or (800 if self._runner.device.type == "cpu" else 8192)
            while True:
                try:
                    return self._logits(texts, budget)
                except RuntimeError as error:
                    budget = halved(budget, error, possible=budget > SMALLEST_BUDGET)

    def copy(self, owner: Any, to: Any) -> None:
        """Give ``to`` a copy of the owner's text, to go on from there."""
        if owner in self._held:
            self._slots.copy(owner, to, len(self._held[owner]))
            self._held[to] = self._held[owner]

    def forget(self, owner: Any) -> None:
        """Drop the owner's text and free its slot."""
        self._held.pop(owner, None)
        self._slots.release(owner)

    def _logits(self, texts: Texts, budget: int) -> Tensor:
        self._make_room(texts, budget)
        segments, held, count = [], {}, 0
        for owner, renderings in texts.items():
            base, ids = self._slots.base(owner), self._held[owner]
            certain = len(ids)
            for rendering in renderings:
                last, ids = ids, np.asarray(rendering)
                start = min(shared_length(last, ids), len(ids) - 1)
                certain = min(certain, start)
                segments.append(Segment(base, start, list(rendering[start:]), [(len(ids) - 1 - start, count)]))
                count += 1
            held[owner] = ids
            # The forward below overwrites the other positions; if it fails, only these are still valid.
            self._held[owner] = self._held[owner][:certain]
        batches = micro_batches(segments, budget, LONGEST_SEGMENT)
        found = [self._runner.run(batch, self._slots.store) for batch in batches]
        logits = fetch([rows for rows, _ in found])  # in the segments' order
        self._held.update(held)
        return logits

    def _make_room(self, texts: Texts, budget: int) -> None:
        """Make every slot long enough. A new one begins with what its text shares with the template's kept head."""
        head = np.asarray(self._head.ids)
        new = []
        for owner, renderings in texts.items():
            held = self._held.pop(owner, None)  # if memory runs out while its slot moves, nothing in it is valid
            self._slots.reserve(owner, max(map(len, renderings)), 0 if held is None else len(held))
            if held is None:
                new.append((owner, shared_length(head, np.asarray(renderings[0]))))
            else:
                self._held[owner] = held
        saved = self._head.layers(self._runner, budget) if any(known for _, known in new) else {}
        for owner, known in new:
            self._slots.store.load(saved, [self._slots.base(owner)], known)
            self._held[owner] = head[:known]
