"""One scored response: the result of scoring, also when it is read from a data set; token weights are made of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import NamedTuple

import torch
from torch import Tensor

from fastdss.chat.conversation import Conversation, Message, plain


class Flag(StrEnum):
    """What is special about a scored response."""

    EMPTY = "empty"  # it has no text; one score, at end 0
    CONTROL_TOKENS = "control_tokens"  # its conversation spells control tokens, which were scored as literal text
    DELIMITER = "delimiter"  # its conversation quotes a plain-text delimiter of the guard's template
    TRUNCATED = "truncated"  # prefixes beyond ``max_tokens`` have no score
    FAILED = "failed"  # the guard's logits are not finite: no score can be used
    ONE_BOUNDARY = "one_boundary"  # it has a single score, so a safe part cannot be told from an unsafe one
    UNSCORED = "unscored"  # kept without a score, at weight 0: the reference model alone decides


@dataclass(frozen=True)
class ScoredResponse:
    """P(safe) of the prefixes of one response.

    Args:
        history: the messages that a guard that reads text saw before the response.
        response: the text that was judged.
        scores: ``[K]`` float32, of the prefixes ``response[: ends[k]]``.
        ends: ``[K]`` where the prefixes end, in characters.
        flags: what is special about the response.
        row: the row of the batch that it comes from.
        conversation: the whole conversation; None: it consists of ``history`` and ``response``.
        turn: the place of the response among the turns of ``conversation``.
        exact: ``[K]`` bool, true for scores that the guard computed, false for those that a ``TrunkProbe``
            approximated; None: the guard computed all.
        missed: for a response that was computed whole to audit a probe, the largest error that its approximations would
            have had.
    """

    history: list[Message] = field(repr=False)  # texts never reach a log by way of a repr
    response: str = field(repr=False)
    scores: Tensor
    ends: list[int]
    flags: frozenset[Flag] = frozenset()
    row: int = 0
    conversation: Conversation | None = field(default=None, repr=False)
    turn: int | None = None
    exact: Tensor | None = None
    missed: float | None = None

    @classmethod
    def of(
        cls,
        history: list[Message],
        response: str,
        scores: Iterable[float],
        ends: Iterable[int],
        flags: Iterable[str] = (),
        row: int = 0,
    ) -> ScoredResponse:
        """From plain numbers and names, such as a table holds."""
        values = torch.tensor(list(scores), dtype=torch.float32, device="cpu")
        return cls(history, response, values, list(ends), frozenset(map(Flag, flags)), row)

    @classmethod
    def in_conversation(
        cls,
        conversation: Conversation,
        turn: int,
        scores: Iterable[float],
        ends: Iterable[int],
        flags: Iterable[str] = (),
        row: int = 0,
    ) -> ScoredResponse:
        """Turn ``turn`` of a conversation, from plain numbers and names."""
        text = conversation.turns[turn].answer.text
        plain_response = cls.of(conversation.before(turn), text, scores, ends, flags, row)
        return replace(plain_response, conversation=conversation, turn=turn)

    @property
    def place(self) -> int:
        """Which turn of its conversation the response is."""
        return len(self.history) if self.turn is None else self.turn

    @property
    def chat(self) -> Conversation:
        """The whole conversation."""
        if self.conversation is not None:
            return self.conversation
        return plain([*self.history, {"role": "assistant", "content": self.response}])

    def __repr__(self) -> str:
        flags = "".join(f", {flag}" for flag in sorted(self.flags))
        low = f", lowest {self.scores.min():.3f}" if len(self.scores) else ""
        return f"ScoredResponse(row {self.row}: {len(self.response)} characters, {len(self.scores)} scores{low}{flags})"

    @property
    def failed(self) -> bool:
        """Whether the guard gave no score; such a row never counts as safe."""
        return Flag.FAILED in self.flags

    @property
    def complete(self) -> bool:
        """Whether the guard saw all of the response."""
        return Flag.TRUNCATED not in self.flags

    @property
    def final(self) -> float:
        """The static verdict, P(safe) of the whole response; NaN where the guard did not see all of it."""
        return self.scores[-1].item() if self.complete else float("nan")


class ScoredConversation(NamedTuple):
    """A conversation and its scored turns, which are the ones that get weights."""

    conversation: Conversation
    turns: list[ScoredResponse]
