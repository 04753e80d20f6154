"""Scores while a response is being written: one forward of [new tokens + tail] per boundary, equal to the batch's."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdss.chat.boundaries import UNITS, find_ends, find_settled_ends
from fastdss.chat.encoder import Message, check_conversation, settled_spans, text_spans
from fastdss.errors import UserError
from fastdss.guards.guard import GuardModel
from fastdss.prefix.attention import LONGEST_SEGMENT, KVStore, using_prefix_attention
from fastdss.prefix.engine import Runner, check_supported
from fastdss.prefix.packing import Segment
from fastdss.prefix.tree import shared_length
from fastdss.prefix.whole import batched_logits


class StarStream:
    """``guard.stream(prompt)``: append text as it is generated, get P(safe) at the end of every ``every``-th ``unit``.

    Units are those of ``star_scores`` (tokens the guard's, or ``unit_tokenizer``'s), and so are ``scores`` and ``ends``
    once ``close`` has added the score of the end. ``seconds[k]`` is how long boundary k took. Keys and values live in
    one store: a new boundary computes only the tokens with which its rendering leaves the one before, and overwrites
    that one's tail.
    """

    def __init__(
        self,
        guard: GuardModel,
        prompt: str | Sequence[Message],
        *,
        every: int = 5,
        unit: str = "word",
        unit_tokenizer: Any = None,
    ) -> None:
        if every < 1:
            raise UserError(f"every: expected a positive integer, got {every}")
        if unit not in UNITS:
            raise UserError(f"unit: expected one of {UNITS}, got {unit!r}")
        turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        self.guard = guard
        self.every = every
        self.unit = unit
        self.unit_tokenizer = unit_tokenizer or guard.tokenizer
        self.history = check_conversation(0, turns) if turns else []
        self.text = ""
        self.scores: list[float] = []
        self.ends: list[int] = []
        self.seconds: list[float] = []
        self.closed = False
        self._runner = None if guard.bidirectional else Runner(guard.model, guard.token_ids)
        self._ids = np.empty(0, dtype=np.int64)  # what the store holds
        self._store = KVStore(1024)

    def append(self, text: str) -> list[float]:
        """The scores of the boundaries that ``text`` settles: a word once whitespace follows it, a token once another
        word begins, a sentence once something follows that is no part of it."""
        if self.closed:
            raise UserError("the stream is closed")
        check_conversation(0, [{"role": "assistant", "content": self.text + text}])
        self.text += text
        settled = find_settled_ends(
            self.text, every=self.every, unit=self.unit, spans=lambda text: settled_spans(self.unit_tokenizer, text)
        )
        return self._advance(settled)

    def close(self) -> list[float]:
        """The scores of the boundaries that only the end settles, the whole text's among them."""
        self.closed = True
        ends = find_ends(
            self.text, every=self.every, unit=self.unit, spans=lambda text: text_spans(self.unit_tokenizer, text)
        )
        return self._advance(ends)

    def _advance(self, ends: list[int]) -> list[float]:
        if ends[: len(self.ends)] != self.ends:
            raise UserError("the tokenizer moved a boundary that was already scored; use another unit")
        return [self._score(end) for end in ends[len(self.ends) :]]

    def fork(self) -> StarStream:
        """An independent stream with the same past, for another continuation."""
        twin = StarStream(
            self.guard, self.history, every=self.every, unit=self.unit, unit_tokenizer=self.unit_tokenizer
        )
        twin.text, twin.closed = self.text, self.closed
        twin.scores, twin.ends, twin.seconds = list(self.scores), list(self.ends), list(self.seconds)
        twin._ids, twin._store = self._ids, self._store.resized(self._store.capacity)
        return twin

    def _score(self, end: int) -> float:
        begun = time.perf_counter()
        renderings = self.guard.encode_prefixes(self.history, self.text, [end])
        longest = max(map(len, renderings))
        if longest > self.guard.max_tokens:
            raise UserError(f"{longest} tokens exceed the context of {self.guard.max_tokens}")
        if self._runner is None:
            logits = batched_logits(self.guard.model, self.guard.token_ids, renderings, separator=self.guard.separator)
        else:
            logits = self._tree_logits(self._runner, renderings, longest)
        score = self.guard.scores(logits.to(torch.promote_types(logits.dtype, torch.float32))).item()
        self.ends.append(end)
        self.scores.append(score)
        self.seconds.append(time.perf_counter() - begun)
        return score

    def _tree_logits(self, runner: Runner, renderings: list[list[int]], longest: int) -> Tensor:
        check_supported(self.guard.model, longest)
        if longest > self._store.capacity:
            self._store = self._store.resized(2 * longest)
        with using_prefix_attention(self.guard.model):
            return torch.cat([self._logits(runner, rendering) for rendering in renderings])

    def _logits(self, runner: Runner, rendering: list[int]) -> Tensor:
        ids = np.asarray(rendering)
        if not len(self._ids):
            self._load_head(runner, ids)
        start = min(shared_length(self._ids, ids), len(ids) - 1)
        segment = Segment(0, start, rendering[start:], [(len(ids) - 1 - start, 0)])
        self._ids = ids[:start]  # nothing else is certain if the forward fails
        for piece in segment.cut(LONGEST_SEGMENT):
            logits, _ = runner.run([piece], self._store)
        self._ids = ids
        return logits

    def _load_head(self, runner: Runner, ids: np.ndarray) -> None:
        """Begin with the keys and values of the template's head that the guard keeps."""
        head = np.asarray(self.guard.head.ids)
        known = shared_length(head, ids)
        if known:
            self._store.load(self.guard.head.layers(runner, LONGEST_SEGMENT), [0], known)
        self._ids = head[:known]
