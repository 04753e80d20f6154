"""A conversation: everything that a policy is trained to write or sees while it writes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple

from fastdss.errors import UserError

ROLES = ("system", "user", "assistant", "tool")  # those that chat templates know
WHICH_TURNS = ("last", "all")
THINK_TAGS = ("<think>", "</think>")

Message = dict[str, Any]


@dataclass(frozen=True)
class Call:
    """One call of a tool. ``arguments`` is an object, or the data's text where that is not a JSON object."""

    name: str
    arguments: Any = field(default_factory=dict)
    id: str | None = None

    @property
    def arguments_text(self) -> str:
        """The arguments as text: an object becomes JSON, as chat templates write it."""
        return self.arguments if isinstance(self.arguments, str) else json.dumps(self.arguments, ensure_ascii=False)


class Part(NamedTuple):
    """A piece of what an assistant's turn writes; it begins at character ``begin`` of the whole answer."""

    kind: Literal["reasoning", "content", "name", "arguments"]
    text: str
    begin: int


class Answer(NamedTuple):
    """All that a turn writes as one text, in the order in which a policy writes it, and the pieces of this text.

    ``text[:said]`` is the part before the calls.
    """

    text: str
    parts: list[Part]
    said: int


@dataclass(frozen=True)
class Turn:
    """One turn. ``content`` is its text as the data has it, a leading ``<think>`` block included.

    ``reasoning`` is the reasoning that the data keeps in a field of its own. ``train`` is false where the data says
    that the turn is not to be learnt; ``untrained`` has the character spans of ``content`` that are not to be learnt.
    ``spelled``: the answer as the data has it, where that has the calls as text in a form of its own.
    """

    role: str
    content: str = ""
    reasoning: str = ""
    calls: tuple[Call, ...] = ()
    call_id: str | None = None
    name: str | None = None
    train: bool = True
    untrained: tuple[tuple[int, int], ...] = ()
    spelled: Answer | None = field(default=None, compare=False)

    def __repr__(self) -> str:  # without the text, which must not reach a log
        return f"Turn({self.role!r}, {len(self.content)} characters, {len(self.calls)} calls)"

    @property
    def is_empty(self) -> bool:
        """Whether the turn writes nothing: no text and no call."""
        said = self.content[self.thinking[1] :]
        return not (said.strip() or self.thinking[0] or self.reasoning.strip() or self.calls)

    @cached_property
    def thinking(self) -> tuple[str, int]:
        """The text of a leading ``<think>`` block, which may be empty, and where the rest of ``content`` begins."""
        begun, (opening, closing) = self.content.lstrip(), THINK_TAGS
        if self.role != "assistant" or self.reasoning or not begun.startswith(opening):
            return "", 0
        thought, closed, rest = begun.removeprefix(opening).partition(closing)
        return (thought.strip(), len(self.content) - len(rest.lstrip())) if closed else ("", 0)

    @cached_property
    def answer(self) -> Answer:
        """The text that is judged and trained: reasoning, content and calls, each call as JSON."""
        if self.spelled is not None:
            return self.spelled
        parts: list[Part] = []
        thought, rest = self.thinking
        text = self.content
        if self.reasoning:
            opening = "<think>\n"
            parts.append(Part("reasoning", self.reasoning, len(opening)))
            text = f"{opening}{self.reasoning}\n</think>\n\n"
            rest = -len(text)
            text += self.content
        elif thought:
            begin = self.content.index(thought, self.content.index(THINK_TAGS[0]) + len(THINK_TAGS[0]))
            parts.append(Part("reasoning", thought, begin))
        if self.content[max(rest, 0) :]:
            parts.append(Part("content", self.content[max(rest, 0) :], abs(rest)))
        said = len(text)
        for call in self.calls:
            name = json.dumps(call.name, ensure_ascii=False)[1:-1]
            text += ("\n" if text else "") + '{"name": "'
            parts.append(Part("name", name, len(text)))
            text += f'{name}"'
            text += ', "arguments": '
            parts.append(Part("arguments", call.arguments_text, len(text)))
            text += call.arguments_text + "}"
        return Answer(text, parts, said)

    def is_trained_at(self, place: int) -> bool:
        """Whether the character of ``answer`` that ends at ``place`` is one to be learnt."""
        begin = 0 if not self.reasoning else self.answer.said - len(self.content)
        return not any(start < place - begin <= end for start, end in self.untrained)

    def record(self) -> Message:
        """The turn as plain JSON, with only the keys that have a value; ``formats.read_record`` reads it back."""
        calls = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments_text}}
            for call in self.calls
        ]
        optional = {
            "reasoning_content": self.reasoning or None,
            "tool_calls": calls or None,
            "tool_call_id": self.call_id,
            "name": self.name,
            "weight": None if self.train else 0,
            "training_detail": [
                {"begin_offset": begin, "end_offset": end - 1, "train": False} for begin, end in self.untrained
            ]
            or None,
        }
        given = {key: value for key, value in optional.items() if value is not None}
        return {"role": self.role, "content": self.content, **given}


@dataclass(frozen=True)
class Conversation:
    """Turns, system turns included, and the definitions of the tools that may be called."""

    turns: tuple[Turn, ...]
    tools: tuple[Any, ...] = ()

    def __repr__(self) -> str:  # without the texts, which must not reach a log
        return f"Conversation({', '.join(turn.role for turn in self.turns)}; {len(self.tools)} tools)"

    @property
    def trained(self) -> list[int]:
        """The indices of the assistant's turns that are to be learnt and are not empty."""
        return [
            t
            for t, turn in enumerate(self.turns)
            if turn.role == "assistant" and turn.train and not turn.is_empty and not _covered(turn)
        ]

    def judged(self, which: str) -> list[int]:
        """The indices of the turns to judge: all trained ones, or the last of them."""
        if which not in WHICH_TURNS:
            raise UserError(f"turns: expected one of {', '.join(WHICH_TURNS)}, got {which!r}")
        return self.trained if which == "all" else self.trained[-1:]

    def why_untrained(self) -> str:
        """The reason why no turn is trained; it means nothing where one is."""
        answers = [turn for turn in self.turns if turn.role == "assistant"]
        if not answers:
            return "it has no turn of the assistant"
        if all(turn.is_empty for turn in answers):
            return "the assistant's answer is empty"
        return "every answer of the assistant is marked as not to be trained, or empty"

    def before(self, t: int) -> list[Message]:
        """The messages before turn ``t`` for a guard that reads text: calls as JSON, tools in a system turn."""
        seen = [{"role": turn.role, "content": _as_text(turn)} for turn in self.turns[:t]]
        if self.tools:
            tools = json.dumps(list(self.tools), ensure_ascii=False)
            if seen and seen[0]["role"] == "system":
                seen[0] = {"role": "system", "content": f"{seen[0]['content']}\n\n{tools}"}
            else:
                seen.insert(0, {"role": "system", "content": tools})
        return seen

    def records(self) -> list[Message]:
        """The turns as plain JSON."""
        return [turn.record() for turn in self.turns]

    @property
    def digest(self) -> str:
        """SHA-256 of the whole conversation: texts, calls, tools, and marks of what is not to be learnt."""
        whole = {"messages": self.records(), **({"tools": list(self.tools)} if self.tools else {})}
        return hashlib.sha256(json.dumps(whole, ensure_ascii=False, sort_keys=True).encode()).hexdigest()

    @property
    def characters(self) -> int:
        return sum(len(turn.answer.text) for turn in self.turns)


def _covered(turn: Turn) -> bool:
    """Whether everything that the turn writes is marked as not to be trained."""
    left = "".join(
        turn.content[begin:end]
        for begin, end in zip(
            [0, *(end for _, end in turn.untrained)],
            [*(begin for begin, _ in turn.untrained), len(turn.content)],
            strict=True,
        )
    )
    return bool(turn.untrained) and not left.strip() and not turn.calls and not turn.reasoning


def _as_text(turn: Turn) -> str:
    return turn.answer.text if turn.role == "assistant" else turn.content


def plain(messages: Sequence[Mapping[str, str]]) -> Conversation:
    """A conversation of messages that have a role and content and nothing else."""
    return Conversation(tuple(Turn(message["role"], message["content"]) for message in messages))
