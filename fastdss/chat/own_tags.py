"""What a conversation spells in tags that the policy's template writes itself: reasoning in ``<think>``, and as Hermes'
data has them calls in ``<tool_call>`` and results in ``<tool_response>``.

To such a policy the tags are tokens; from content they would come letter by letter, and a result would stand in two
pairs of tags. The text that was judged stays as it is: the parts of a turn point into it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from .conversation import Answer, Call, Conversation, Part, Turn

CALL_TAGS = ("<tool_call>", "</tool_call>")
RESULT_TAGS = ("<tool_response>", "</tool_response>")
_DECODER = json.JSONDecoder()


def in_own_forms(conversation: Conversation, *, calls: bool, results: bool) -> Conversation:
    """The conversation with calls and results, each where asked for, in place of text that spells them."""
    turns = [with_calls(turn) if calls else turn for turn in conversation.turns]
    turns = [without_tags(turn) if results else turn for turn in turns]
    return replace(conversation, turns=tuple(turns))


def with_calls(turn: Turn) -> Turn:
    """The turn with the calls that end its text as calls; as it is where it spells none, or one that is no JSON."""
    said, opening, _ = turn.content.partition(CALL_TAGS[0])
    if not opening or turn.role != "assistant" or turn.calls or turn.untrained:
        return turn
    shift = len(turn.answer.text) - len(turn.content)  # reasoning in a field of its own stands before the content
    calls, parts = [], []
    try:
        for begin, spelled in _blocks(turn.content, len(said)):
            json.loads(spelled)  # refuses what is no JSON
            members = {key: (value, *span) for key, value, *span in _members(spelled)}
            (name, at, end), (arguments, first, last) = members["name"], members["arguments"]
            if not isinstance(name, str) or not isinstance(arguments, dict):
                return turn
            calls.append(Call(name, arguments))
            parts.append(Part("name", spelled[at + 1 : end - 1], shift + begin + at + 1))
            parts.append(Part("arguments", spelled[first:last], shift + begin + first))
    except (ValueError, KeyError, IndexError, RecursionError):
        return turn
    before = replace(turn, content=said.rstrip())
    answer = Answer(turn.answer.text, [*before.answer.parts, *parts], shift + len(before.content))
    return replace(before, calls=tuple(calls), spelled=answer)


def without_tags(turn: Turn) -> Turn:
    """A tool's turn without the tags around its one result."""
    whole, (opening, closing) = turn.content.strip(), RESULT_TAGS
    result = whole.removeprefix(opening).removesuffix(closing)
    is_one = len(whole) - len(result) == len(opening + closing) and opening not in result and closing not in result
    return replace(turn, content=result.strip()) if is_one and turn.role == "tool" else turn


def with_words(turn: Turn, text: str, tags: Mapping[str, str]) -> str:
    """``text``, the turn's, with words in place of the two tags around its reasoning, and of no other tags."""
    if turn.role != "assistant" or (not turn.reasoning and turn.thinking[1] == 0):
        return text
    (before, opening), (after, closing) = tags.items()
    begin = text.index(opening)
    thought = next((part for part in turn.answer.parts if part.kind == "reasoning"), None)
    end = text.index(closing, begin if thought is None else thought.begin + len(thought.text))
    return text[:begin] + before + text[begin + len(opening) : end] + after + text[end + len(closing) :]


def _blocks(text: str, position: int) -> Iterator[tuple[int, str]]:
    """Where the texts in tags begin that make up the whole of ``text[position:]``, and what they are; raises
    ``ValueError`` where anything else stands there."""
    opening, closing = CALL_TAGS
    while position < len(text):
        begin = _blank(text, position + len(opening))
        end = text.index(closing, begin)
        spelled = text[begin:end].rstrip()
        if not text.startswith(opening, position) or not spelled.startswith("{") or opening in spelled:
            raise ValueError
        yield begin, spelled
        position = end + len(closing)
        while position < len(text) and text[position].isspace():
            position += 1


def _members(text: str) -> Iterator[tuple[str, Any, int, int]]:
    """The names and values of a JSON object, and where each value begins and ends."""
    position = _blank(text, 1)
    while text[position] != "}":
        name, position = _DECODER.raw_decode(text, position)
        begin = _blank(text, _blank(text, position) + 1)
        value, end = _DECODER.raw_decode(text, begin)
        yield name, value, begin, end
        position = _blank(text, end)
        position = _blank(text, position + 1) if text[position] == "," else position


def _blank(text: str, position: int) -> int:
    """The position of what follows blanks."""
    while text[position] in " \t\r\n":
        position += 1
    return position
