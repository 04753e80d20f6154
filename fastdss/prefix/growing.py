"""Texts that grow, many at once: logits at the ends of their renderings, each new token computed once.

A text keeps its last rendering's keys and values in a slot. The next rendering computes the tokens with which it leaves
that one and overwrites its tail. Renderings of all texts go through the model together: segments of different slots do
not see each other, and those of one slot are in the order in which each may overwrite the one before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from torch import Tensor

from .attention import LONGEST_SEGMENT, using_prefix_attention
from .engine import SMALLEST_BUDGET, KeptHead, Runner, fetch, out_of_memory
from .packed_attention import attend_packed
from .packing import Segment, micro_batches
from .slots import Slots
from .tree import shared_length

Texts = Mapping[Any, Sequence[Sequence[int]]]  # the renderings of each owner, in order


class GrowingTexts:
    """Keys and values of the texts of many owners, which come and go; an owner is anything that can be held weakly.

    ``budget`` tokens go through the model at a time; when memory runs out it is halved for what is left of the call.
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
        self._runner = Runner(model, verdict_ids, attend)
        self._head = head
        self._budget = budget or (800 if self._runner.device.type == "cpu" else 8192)
        self._slots = Slots()
        self._held: WeakKeyDictionary[Any, np.ndarray] = WeakKeyDictionary()  # the tokens that each slot holds

    def logits(self, texts: Texts) -> Tensor:
        """``[renderings, R]`` on the CPU, owner after owner, as one forward per rendering would give them."""
        budget = self._budget
        with using_prefix_attention(self._model):
            while True:
                try:
                    return self._logits(texts, budget)
                except RuntimeError as error:
                    if budget <= SMALLEST_BUDGET or not out_of_memory(error):
                        raise
                    budget = max(budget // 2, SMALLEST_BUDGET)

    def copy(self, owner: Any, to: Any) -> None:
        """Let ``to`` go on from where ``owner`` is."""
        if owner in self._held:
            self._slots.copy(owner, to, len(self._held[owner]))
            self._held[to] = self._held[owner]

    def forget(self, owner: Any) -> None:
        """Give up what is held of the owner's text."""
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
            # If the forward fails, only these positions still hold what they held.
            self._held[owner] = self._held[owner][:certain]
        batches = micro_batches(segments, budget, LONGEST_SEGMENT)
        found = [self._runner.run(batch, self._slots.store) for batch in batches]
        logits = fetch([rows for rows, _ in found])  # in the segments' order
        self._held.update(held)
        return logits

    def _make_room(self, texts: Texts, budget: int) -> None:
        """Slots that are long enough; new ones begin with what the guard keeps of its template's head."""
        head = np.asarray(self._head.ids)
        new = []
        for owner, renderings in texts.items():
            held = self._held.get(owner)
            self._slots.reserve(owner, max(map(len, renderings)), 0 if held is None else len(held))
            if held is None:
                new.append((owner, shared_length(head, np.asarray(renderings[0]))))
        saved = self._head.layers(self._runner, budget) if any(known for _, known in new) else {}
        for owner, known in new:
            self._slots.store.load(saved, [self._slots.base(owner)], known)
            self._held[owner] = head[:known]
