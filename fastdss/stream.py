"""Scores while a response is being written: one forward of [new tokens + tail] per boundary, equal to the batch's."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from .attention import LONGEST_SEGMENT, KVStore, using_prefix_attention
from .chat import Message, check_conversation
from .engine import Runner, check_supported
from .packing import Segment
from .prefix_tree import shared_length

if TYPE_CHECKING:
    from .guard import Guard

_FINISHED_WORD = re.compile(r"\S+(?=\s)")


class StarStream:
    """``guard.stream(prompt)``: append text as it is generated, get P(safe) at the end of every ``every``-th word.

    ``scores`` and ``ends`` are what ``star_scores`` gives for ``text`` once ``close`` has added the score of the end.
    ``seconds[k]`` is how long boundary k took. Keys and values live in one store: a new boundary computes only the
    tokens with which its rendering leaves the one before, and overwrites that one's tail.
    """

    def __init__(self, guard: Guard, prompt: str | Sequence[Message], *, every: int = 5) -> None:
        if every < 1:
            raise ValueError(f"every: expected a positive integer, got {every}")
        turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        self.guard = guard
        self.every = every
        self.history = check_conversation(0, turns) if turns else []
        self.text = ""
        self.scores: list[float] = []
        self.ends: list[int] = []
        self.seconds: list[float] = []
        self.closed = False
        self._runner = Runner(guard.model, guard.verdict_ids)
        self._ids = np.empty(0, dtype=np.int64)  # what the store holds
        self._store = KVStore(1024)

    def append(self, text: str) -> list[float]:
        """The scores of the boundaries that ``text`` completes; a word is complete once whitespace follows it."""
        if self.closed:
            raise ValueError("the stream is closed")
        check_conversation(0, [{"role": "assistant", "content": self.text + text}])
        self.text += text
        words = [match.end() for match in _FINISHED_WORD.finditer(self.text)]
        ready = words[self.every - 1 :: self.every][len(self.ends) :]
        return [self._score(end) for end in ready]

    def close(self) -> list[float]:
        """The score of the whole text, unless the last boundary already ended there."""
        end = len(self.text.rstrip())
        self.closed = True
        return [] if self.ends and self.ends[-1] == end else [self._score(end)]

    def fork(self) -> StarStream:
        """An independent stream with the same past, for another continuation."""
        twin = StarStream(self.guard, self.history, every=self.every)
        twin.text, twin.closed = self.text, self.closed
        twin.scores, twin.ends, twin.seconds = list(self.scores), list(self.ends), list(self.seconds)
        twin._ids, twin._store = self._ids, self._store.resized(self._store.capacity)
        return twin

    def _score(self, end: int) -> float:
        begun = time.perf_counter()
        (rendering,) = self.guard.encode_prefixes(self.history, self.text, [end])
        if len(rendering) > self.guard.max_tokens:
            raise ValueError(f"{len(rendering)} tokens exceed the context of {self.guard.max_tokens}")
        check_supported(self.guard.model, len(rendering))
        if len(rendering) > self._store.capacity:
            self._store = self._store.resized(2 * len(rendering))
        ids = np.asarray(rendering)
        if not len(self._ids):
            self._load_head(ids)
        start = min(shared_length(self._ids, ids), len(ids) - 1)
        segment = Segment(0, start, rendering[start:], [(len(ids) - 1 - start, 0)])
        self._ids = ids[:start]  # nothing else is certain if the forward fails
        with using_prefix_attention(self.guard.model):
            for piece in segment.cut(LONGEST_SEGMENT):
                logits, _ = self._runner.run([piece], self._store)
        self._ids = ids
        self.ends.append(end)
        self.scores.append(self.guard.scores(logits[0].to(torch.promote_types(logits.dtype, torch.float32))).item())
        self.seconds.append(time.perf_counter() - begun)
        return self.scores[-1]

    def _load_head(self, ids: np.ndarray) -> None:
        """Begin with the keys and values of the template's head that the guard keeps."""
        head = np.asarray(self.guard.head.ids)
        known = shared_length(head, ids)
        if known:
            with using_prefix_attention(self.guard.model):
                self._store.load(self.guard.head.layers(self._runner, LONGEST_SEGMENT), [0], known)
        self._ids = head[:known]
