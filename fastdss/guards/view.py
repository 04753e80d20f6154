"""What a guard is shown of a conversation, as data: which turns, and in which form its template takes them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from itertools import groupby
from typing import Literal

from fastdss.chat.encoder import Conversation, Message
from fastdss.errors import UserError, expect_fields

PLACES = ("{prompt}", "{response}")


@dataclass(frozen=True)
class View:
    """Which messages a guard's template is given: ``view(conversation)`` is the list.

    Args:
        turns: ``"conversation"``, all turns; ``"exchange"``, the last user turn and all that the assistant and its
            tools did after it; ``"response"``, the judged response alone.
        system: whether the template renders system turns; else they are left out.
        tools: whether the template knows the role ``tool``. Else the results of tools are joined with the assistant's
            turns beside them, and so are neighbours of one role. So user and assistant alternate, and a tool's output
            is never taken for the user's words.
        parts: whether the template takes content as a list of typed parts, instead of as text.
        prompt: for a guard that is asked by a text of its model card: that text, with ``{prompt}`` and ``{response}``
            where the exchange goes, sent as one user message.
        system_prompt: a system message at the beginning.
        instruction: a user turn at the end.
    """

    _: KW_ONLY
    turns: Literal["conversation", "exchange", "response"] = "conversation"
    system: bool = False
    tools: bool = False
    parts: bool = False
    prompt: str = ""
    system_prompt: str = ""
    instruction: str = ""

    def __post_init__(self) -> None:
        expect_fields(self)
        wanted = PLACES[1:] if self.turns == "response" else PLACES
        if self.prompt and not set(wanted) <= set(self._pieces):
            raise UserError(f"prompt: expected a text that holds {' and '.join(wanted)}")

    def __call__(self, conversation: Conversation) -> list[Message]:
        turns = [turn for turn in conversation if self.system or turn["role"] != "system"]
        if self.turns == "response":
            turns = turns[-1:]
        elif self.turns == "exchange" or self.prompt:
            turns = _last_exchange(turns)
        if not self.tools or self.prompt:
            turns = list(_alternating(turns))
        if self.prompt:
            turns = [{"role": "user", "content": self._filled(turns)}]
        if self.system_prompt:
            turns = [{"role": "system", "content": self.system_prompt}, *turns]
        if self.instruction:
            turns = [*turns, {"role": "user", "content": self.instruction}]
        if self.parts:
            turns = [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in turns]
        return turns

    @cached_property
    def _pieces(self) -> list[str]:
        return re.split("|".join(f"({re.escape(place)})" for place in PLACES), self.prompt)

    def _filled(self, turns: list[Message]) -> str:
        asked = next((turn["content"] for turn in turns if turn["role"] == "user"), "")
        texts = dict(zip(PLACES, (asked, turns[-1]["content"]), strict=True))
        return "".join(texts.get(piece, piece) for piece in self._pieces if piece)


def _last_exchange(turns: Conversation) -> list[Message]:
    """System turns, then the last user turn and everything after it; without a user turn, everything."""
    last = max((index for index, turn in enumerate(turns) if turn["role"] == "user"), default=0)
    return [turn for index, turn in enumerate(turns) if index >= last or turn["role"] == "system"]


def _alternating(turns: Conversation) -> Iterator[Message]:
    """The turns, with neighbours of one role joined; turns of tools count as the assistant's."""
    for side, group in groupby(turns, key=lambda turn: "assistant" if turn["role"] == "tool" else turn["role"]):
        texts = [turn["content"] for turn in group]
        yield {"role": side, "content": "\n\n".join(text for text in texts if text)}
