"""The guard that users hold: what judges a conversation, and streams that score a response while it is written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastdss.chat.encoder import Message
from fastdss.guards.guard import GuardModel

from .stream import StarStream, StarStreams


class Guard(GuardModel):
    __doc__ = GuardModel.__doc__

    def stream(
        self, prompt: str | Sequence[Message], *, every: int = 5, unit: str = "word", unit_tokenizer: Any = None
    ) -> StarStream:
        """Scores of a response while it is being written, see ``StarStream``.

        Args:
            prompt: text, or a list of messages.
            every: units per scored chunk.
            unit: ``"word"``, ``"token"``, ``"sentence"`` or ``"character"``.
            unit_tokenizer: whose tokens are counted; None: the guard's.

        Returns:
            StarStream: to which text is appended.
        """
        return StarStream(self, prompt, every=every, unit=unit, unit_tokenizer=unit_tokenizer)

    def streams(self, *, budget: int | None = None) -> StarStreams:
        """Scores of many responses that are being written at once, see ``StarStreams``.

        Args:
            budget: tokens per forward pass; None leaves it to the device.

        Returns:
            StarStreams: which opens a stream for each.
        """
        return StarStreams(self, budget=budget)
