"""Scores of responses while they are written: one forward of [new tokens + tail] per boundary. They equal those that
``star_scores`` gives.

Many conversations can share that forward (``StarStreams``); a ``StarStream`` that is opened alone has its own.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from fastdss.chat.boundaries import find_ends, find_settled_ends
from fastdss.chat.encoder import Message, check_conversation, settled_spans, text_spans
from fastdss.errors import UserError, UserTypeError, expect
from fastdss.guards.guard import GuardModel, expect_tokenizer
from fastdss.prefix.engine import check_supported
from fastdss.prefix.growing import GrowingTexts
from fastdss.prefix.in_use import cpu_by_default
from fastdss.prefix.whole import batched_logits

from .options import ScoringOptions


class StarStream:
    """Scores of one response while it is written: append its text, get P(safe) at the end of every ``every``-th unit.

    Units are those of ``star_scores``; once ``close`` has added the score of the end, ``scores`` and ``ends`` are the
    same too. ``seconds[k]`` is how long the call took that gave score k. At a new boundary only those tokens are
    computed that its rendering does not share with the one before.

    Args:
        guard: the guard that judges; ``guard.stream(prompt)`` is the same.
        prompt: text, or a list of messages.
        every: units per scored chunk.
        unit: ``"word"``, ``"token"``, ``"sentence"`` or ``"character"``.
        unit_tokenizer: the tokenizer whose tokens are counted; None: the guard's.
        company: the ``StarStreams`` whose forwards score it together with other streams; None: it is alone.
    """

    def __init__(
        self,
        guard: GuardModel,
        prompt: str | Sequence[Message],
        *,
        every: int = 5,
        unit: str = "word",
        unit_tokenizer: Any = None,
        company: StarStreams | None = None,
    ) -> None:
        expect("guard", guard, GuardModel, wanted="a Guard")
        ScoringOptions(every=every, unit=unit)  # type: ignore[arg-type]  # checks them
        expect("prompt", prompt, str, Sequence, wanted="text or a list of messages")
        if unit_tokenizer is not None:
            expect_tokenizer("unit_tokenizer", unit_tokenizer)
        if company is not None:
            expect("company", company, StarStreams)
        turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        self.guard = guard
        self.every = every
        self.unit = unit
        self.unit_tokenizer = guard.tokenizer if unit_tokenizer is None else unit_tokenizer
        self.history = check_conversation(0, turns) if turns else []
        self.text = ""
        self.scores: list[float] = []
        self.ends: list[int] = []
        self.seconds: list[float] = []
        self.closed = False
        self.company = StarStreams(guard) if company is None else company
        if self.company.guard is not guard:
            raise UserError("company: expected the StarStreams of the same guard, got another guard's")

    def append(self, text: str) -> list[float]:
        """Append text that was written since the last call.

        Args:
            text: the new text, as short as a character.

        Returns:
            list: the scores of the boundaries that it settles: the end of a word once whitespace follows it, of a token
                once another word begins, of a sentence once something follows that is not a part of it.
        """
        return self.company.append({self: text}).of(self)

    def close(self) -> list[float]:
        """End the response.

        Returns:
            list: the scores of the boundaries that only the end settles, as a rule that of the whole text.
        """
        return self.company.append({}, ended=[self]).of(self)

    def abandon(self) -> None:
        """End the stream without scoring its end, and free what it holds on the device."""
        self.closed = True
        self.company.forget(self)

    def fork(self) -> StarStream:
        """Copy the stream, to try another continuation of the text so far.

        Returns:
            StarStream: an independent stream with the same past.
        """
        twin = StarStream(
            self.guard,
            self.history,
            every=self.every,
            unit=self.unit,
            unit_tokenizer=self.unit_tokenizer,
            company=self.company,
        )
        twin.text, twin.closed = self.text, self.closed
        twin.scores, twin.ends, twin.seconds = list(self.scores), list(self.ends), list(self.seconds)
        self.company.copy(self, twin)
        return twin

    def _due(self, text: str, ended: bool) -> Iterator[tuple[int, list[list[int]]]]:
        """Append ``text``, and yield the boundaries that have no score yet, each with its renderings."""
        if self.closed and not ended:
            raise UserError("the stream is closed")
        check_conversation(0, [{"role": "assistant", "content": self.text + text}])
        self.text += text
        self.closed = ended
        find, spans = (find_ends, text_spans) if ended else (find_settled_ends, settled_spans)
        ends = find(self.text, every=self.every, unit=self.unit, spans=lambda text: spans(self.unit_tokenizer, text))
        if ends[: len(self.ends)] != self.ends:
            raise UserError("the tokenizer moved a boundary that was already scored; use another unit")
        for end in ends[len(self.ends) :]:
            renderings = self.guard.encode_prefixes(self.history, self.text, [end])
            longest = max(map(len, renderings))
            if longest > self.guard.max_tokens:
                raise UserError(f"{longest} tokens exceed the context of {self.guard.max_tokens}")
            if not self.guard.bidirectional:
                check_supported(self.guard.model, longest)
            yield end, renderings


class NewScores(NamedTuple):
    """The result of ``StarStreams.append``: the new scores of each stream, and the errors of those that failed.

    A stream in ``failed`` has no entry in ``scores``, so that an empty list is not taken for safety. Its own ``scores``
    keep all that was scored before.
    """

    scores: dict[StarStream, list[float]]
    failed: dict[StarStream, ValueError]

    def of(self, stream: StarStream) -> list[float]:
        """The stream's new scores; raises the stream's error where it failed."""
        if stream in self.failed:
            raise self.failed[stream]
        return self.scores[stream]


class StarStreams:
    """Streams of many conversations, scored together: each call of ``append`` scores all new boundaries in one forward.

    ```python
    streams = StarStreams(guard)                         # or guard.streams()
    first, second = streams.open("How do I reach Anna?"), streams.open("Is it safe?", every=2, unit="token")
    new = streams.append({first: "You can ", second: "It is. "})
    new.scores[first]                                    # what first.append("You can ") would have returned
    ```

    Conversations join and leave at any time. A stream closes by ``ended``, by its own ``close`` or ``abandon``, or when
    nobody holds it any more; its place on the device is then free. An error of one stream (a context that is full, text
    that is not valid, logits that are not finite, which give NaN) does not affect the others.

    Args:
        guard: the guard that judges all of them.
        budget: tokens per forward pass; None: a number that depends on the device.
    """

    def __init__(self, guard: GuardModel, *, budget: int | None = None) -> None:
        expect("guard", guard, GuardModel, wanted="a Guard")
        ScoringOptions(budget=budget)  # checks it
        self.guard = guard
        self.budget = budget
        self._texts: GrowingTexts | None = None
        if not guard.bidirectional:
            guard.check_tree()
            self._texts = GrowingTexts(guard.model, guard.token_ids, guard.head, budget=budget)

    def open(
        self, prompt: str | Sequence[Message], *, every: int = 5, unit: str = "word", unit_tokenizer: Any = None
    ) -> StarStream:
        """A stream for one more conversation, with boundaries of its own; see ``StarStream``.

        Args:
            prompt: text, or a list of messages.
            every: units per scored chunk.
            unit: ``"word"``, ``"token"``, ``"sentence"`` or ``"character"``.
            unit_tokenizer: the tokenizer whose tokens are counted; None: the guard's.

        Returns:
            StarStream: it is scored together with the others that were opened here.
        """
        return StarStream(self.guard, prompt, every=every, unit=unit, unit_tokenizer=unit_tokenizer, company=self)

    @cpu_by_default()
    def append(self, pieces: Mapping[StarStream, str], *, ended: Collection[StarStream] = ()) -> NewScores:
        """Append text to some streams and close others, in one forward.

        An error of the forward itself (a device without room) is raised as it is; the same streams can then be tried
        again with empty text.

        Args:
            pieces: the new text of each stream.
            ended: streams to close; they may have a last piece in ``pieces``.

        Returns:
            NewScores: the new scores of every stream that was named, or its error where it failed.

        Raises:
            UserError: for streams of another ``StarStreams`` and pieces that are not text, before any is appended.
        """
        begun = time.perf_counter()
        expect("pieces", pieces, Mapping, wanted="text for each stream")
        expect("ended", ended, Collection, wanted="a list of streams")
        named = list(dict.fromkeys([*pieces, *ended]))
        if any(not isinstance(stream, StarStream) or stream.company is not self for stream in named):
            raise UserError("pieces: expected streams that this StarStreams opened, got one of another")
        if not all(isinstance(text, str) for text in pieces.values()):
            raise UserTypeError("pieces: expected text for each stream, got something else; nothing was appended")
        due: dict[StarStream, list[tuple[int, list[list[int]]]]] = {stream: [] for stream in named}
        failed: dict[StarStream, ValueError] = {}
        for stream in named:
            try:
                for found in stream._due(pieces.get(stream, ""), stream in ended):
                    due[stream].append(found)
            except ValueError as error:
                failed[stream] = error
        scores = self._scores({stream: [rows for _, rows in found] for stream, found in due.items() if found})
        seconds = time.perf_counter() - begun
        for stream, new in scores.items():
            stream.scores += new
            stream.ends += [end for end, _ in due[stream]]
            stream.seconds += [seconds] * len(new)
        for stream in ended:
            self.forget(stream)
        return NewScores({stream: scores.get(stream, []) for stream in named if stream not in failed}, failed)

    def copy(self, stream: StarStream, to: StarStream) -> None:
        """Let ``to`` continue from the text that ``stream`` has reached."""
        if self._texts is not None:
            self._texts.copy(stream, to)

    def forget(self, stream: StarStream) -> None:
        """Free what is held for the stream; if it goes on after all, its text is computed anew."""
        if self._texts is not None:
            self._texts.forget(stream)

    def _scores(self, due: Mapping[StarStream, Sequence[Sequence[Sequence[int]]]]) -> dict[StarStream, list[float]]:
        texts = {stream: [row for rows in found for row in rows] for stream, found in due.items()}
        if not texts:
            return {}
        if self._texts is None:
            flat = [row for rows in texts.values() for row in rows]
            logits = batched_logits(
                self.guard.model, self.guard.token_ids, flat, budget=self.budget, separator=self.guard.separator
            )
        else:
            logits = self._texts.logits(texts)
        values = iter(self.guard.scores(logits.to(torch.promote_types(logits.dtype, torch.float32))).tolist())
        return {stream: [next(values) for _ in found] for stream, found in due.items()}
