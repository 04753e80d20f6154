"""A conversation as a policy is trained on it: one rendering, and where in it the text of each turn stands.

The places are found by rendering the conversation once more with a unique word in place of each text. What stands
between these words is the template's frame; the true rendering must be the same frame around the true texts, which the
template may have stripped. So all that is assumed about a template is that it writes texts as they are, and a text that
it drops or rewrites is an error of that conversation.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import takewhile
from typing import Any

from fastdss.errors import UserError

from .conversation import THINK_TAGS, Conversation, Message, Turn
from .encoder import ChatEncoder, Encoding, RefusedByTemplate, nested_strings
from .own_tags import CALL_TAGS, RESULT_TAGS, in_own_forms, with_words
from .placing import Field, Piece, argument_pieces, check_all_there, placed_in

_ARGUMENTS: Any = {"argumentQ": "c"}
_REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")


@dataclass(frozen=True)
class Written:
    """What a policy writes in one turn: tokens ``first`` to ``last``, the end of the turn among them if there is one.

    ``ended`` says whether the last token is the end of the turn. ``pieces`` ascend.
    """

    first: int
    last: int
    ended: bool
    pieces: list[Piece]

    def place(self, position: int) -> int:
        """The place in the answer of a position in the rendering; in the frame after a piece it is the piece's end."""
        at = 0
        for piece in self.pieces:
            if position <= piece.begin:
                break
            at = piece.at + min(position, piece.end) - piece.begin
        return at


@dataclass(frozen=True)
class Rendered:
    """A conversation's tokens, and for each turn that was asked for, which of them the policy writes."""

    encoding: Encoding
    written: dict[int, Written]


@dataclass
class _Draft:
    """The messages, ``skeleton``: the same with a unique word in place of each text, and the texts of these words.

    ``tags``: words in the messages for the tags around reasoning, which replace them after rendering. They are needed
    where the template has no key for reasoning and the tags are control tokens, which content must not spell.
    """

    messages: list[Message] = field(default_factory=list)
    skeleton: list[Message] = field(default_factory=list)
    fields: dict[str, Field] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)


class PolicyChat:
    """Renders conversations for a policy with its tokenizer's chat template, or ``template``."""

    def __init__(
        self, tokenizer: Any, *, template: str | None = None, template_kwargs: Mapping[str, Any] | None = None
    ) -> None:
        self.encoder = ChatEncoder(tokenizer, template=template, template_kwargs=template_kwargs)

    @cached_property
    def reasoning_key(self) -> str | None:
        """The key of a message under which the template looks for reasoning, None where it looks for none."""
        answers: dict[str, Message] = {
            key: {"role": "assistant", "content": "b", key: "reasonQ"} for key in _REASONING_KEYS
        }
        return next((key for key, answer in answers.items() if self._shows("reasonQ", answer)), None)

    @cached_property
    def forgets_reasoning(self) -> bool:
        """Whether a template without a key for reasoning drops the text in think tags, as R1's does."""
        if self.reasoning_key is not None:
            return False
        opening, closing = THINK_TAGS
        answer: Message = {"role": "assistant", "content": f"{opening}reasonQ{closing}answerQ"}
        return self._shows("answerQ", answer) and not self._shows("reasonQ", answer)

    @cached_property
    def shows_tools(self) -> bool:
        """Whether the template writes the definitions of tools."""
        function = {"name": "toolQ", "description": "d", "parameters": {"type": "object", "properties": {}}}
        tools = [{"type": "function", "function": function}]
        return self._shows("toolQ", tools=tools)

    @cached_property
    def _calls_as_text(self) -> bool:
        """Whether the template writes the arguments of a call only where they are JSON text, as DeepSeek V3's does."""
        return "callQ" not in self._sample_of_call(_ARGUMENTS) and "callQ" in self._sample_of_call(
            json.dumps(_ARGUMENTS)
        )

    @cached_property
    def _sample_call(self) -> str:
        """What the template writes for a call of ``callQ`` whose argument is ``argumentQ``."""
        return self._sample_of_call(json.dumps(_ARGUMENTS) if self._calls_as_text else _ARGUMENTS)

    def _sample_of_call(self, arguments: Any) -> str:
        call = {"type": "function", "function": {"name": "callQ", "arguments": arguments}}
        return self._sample({"role": "assistant", "content": "b", "tool_calls": [call]})

    @cached_property
    def _tags_calls(self) -> bool:
        """Whether the template writes calls, and the tags that Hermes' data spells are its own tokens."""
        return all(map(self.encoder.is_control_string, CALL_TAGS)) and "callQ" in self._sample_call

    @cached_property
    def _arguments_first(self) -> bool:
        """Whether the template writes a call's arguments before its name."""
        return 0 <= self._sample_call.find("argumentQ") < self._sample_call.find("callQ")

    @cached_property
    def _tags_results(self) -> bool:
        """Whether the template puts the tags that Hermes' data spells around a tool's result."""
        return self._shows(RESULT_TAGS[0], {"role": "assistant", "content": "b"}, {"role": "tool", "content": "c"})

    def _in_own_forms(self, conversation: Conversation) -> Conversation:
        return in_own_forms(conversation, calls=self._tags_calls, results=self._tags_results)

    def _shows(self, word: str, *answer: Message, tools: Sequence[Any] = ()) -> bool:
        """Whether the template writes ``word`` for a short conversation."""
        return word in self._sample(*answer, tools=tools)

    def _sample(self, *answer: Message, tools: Sequence[Any] = ()) -> str:
        """What the template writes for a short conversation; nothing where it refuses it."""
        chat: list[Message] = [{"role": "user", "content": "a"}, *answer]
        try:
            return self.encoder.render([chat], generation_prompt=False, tools=tools)[0]
        except ValueError:
            return ""

    @cached_property
    def _plain(self) -> tuple[str, str]:
        """The text around a plain answer: the header, which a policy is given to start from, and what follows."""
        asked: list[Message] = [{"role": "user", "content": "askedQ"}]
        before, after = self.encoder.frame(asked)
        try:
            bare, given = (self.encoder.render([asked], generation_prompt=g)[0] for g in (False, True))
        except RefusedByTemplate:
            return "", after
        if not before.startswith(bare):
            bare = _shared(bare, before)
        header, prompt = before[len(bare) :], given[len(_shared(bare, given)) :]
        return _shared(header, prompt) or ("" if prompt else header), after

    @cached_property
    def _end_of_turn(self) -> int | None:
        ids = self.encoder.tokenize([self._plain[1]])[0] if self._plain[1] else []
        return next((index for index in ids if self.encoder.is_control(index)), None)

    def messages(self, conversation: Conversation) -> list[Message]:
        """The messages that the template is given."""
        return self._draft(self._in_own_forms(conversation)).messages

    def render(self, conversation: Conversation, turns: Sequence[int]) -> Rendered:
        """The conversation's tokens, and what the policy writes in ``turns``.

        Raises ``ValueError`` where the template refuses the conversation, or drops or rewrites any of its texts.
        """
        conversation = self._in_own_forms(conversation)
        draft = self._draft(conversation)
        encoding = self.encoder.encode_with_offsets(draft.messages, tools=conversation.tools, written=draft.tags)
        (skeleton,) = self.encoder.render([draft.skeleton], generation_prompt=False, tools=conversation.tools)
        check_all_there(skeleton, draft.fields)
        placed = placed_in(skeleton, encoding.text, draft.fields)
        written = {t: self._written(t, conversation, draft, encoding, placed) for t in turns}
        return Rendered(encoding, written)

    def _draft(self, conversation: Conversation) -> _Draft:
        stem = "Qz"
        texts = list(nested_strings([turn.record() for turn in conversation.turns])) + list(
            nested_strings(conversation.tools)
        )
        while any(stem in text for text in texts):
            stem += "Qz"
        draft = _Draft()
        if self.reasoning_key is None and all(map(self.encoder.is_control_string, THINK_TAGS)):
            draft.tags = {f"{stem}tag{number}q": tag for number, tag in enumerate(THINK_TAGS)}
        asked = max((t for t, turn in enumerate(conversation.turns) if turn.role == "user"), default=0)
        for t, turn in enumerate(conversation.turns):
            past = t < asked and self.forgets_reasoning
            message, skeleton = self._message(turn, past), self._message(turn, past)
            if draft.tags and not past and message["content"]:
                message["content"] = with_words(turn, message["content"], draft.tags)
            for call, found in self._fields(t, turn, past):
                word = f"{stem}{len(draft.fields)}q"
                draft.fields[word] = found
                if call is None:
                    key = self.reasoning_key if found.kind == "reasoning" else None
                    skeleton[key or "content"] = word
                else:
                    skeleton["tool_calls"][call]["function"]["name"] = word
            draft.messages.append(message)
            draft.skeleton.append(skeleton)
        return draft

    def _message(self, turn: Turn, past: bool) -> Message:
        thought, content = self._texts(turn, past)
        message: Message = {"role": turn.role, "content": content}
        if thought and self.reasoning_key is not None:
            message[self.reasoning_key] = thought
        if turn.calls:
            message["tool_calls"] = [
                {
                    "type": "function",
                    "function": {
                        "name": call.name,
                        "arguments": call.arguments_text if self._calls_as_text else call.arguments,
                    },
                    **({"id": call.id} if call.id else {}),
                }
                for call in turn.calls
            ]
        if turn.role == "tool":
            message |= {"tool_call_id": turn.call_id} if turn.call_id else {}
        if turn.name:
            message["name"] = turn.name
        return message

    def _texts(self, turn: Turn, past: bool) -> tuple[str, str]:
        """Reasoning and content for the template; where it has no key for reasoning, that is a part of the content.

        past: the turn is before the last question, and the template drops the reasoning of such turns.
        """
        if turn.role != "assistant":
            return "", turn.content
        thought, rest = turn.thinking
        if past:
            return "", turn.content if turn.reasoning else turn.content[rest:]
        if self.reasoning_key is None:
            return "", turn.answer.text[: turn.answer.said]
        return (turn.reasoning, turn.content) if turn.reasoning else (thought, turn.content[rest:])

    def _fields(self, t: int, turn: Turn, past: bool) -> Iterator[tuple[int | None, Field]]:
        """The texts of turn ``t`` that the rendering must show; names of calls with the call's number, others None."""
        thought, content = self._texts(turn, past)
        parts = {part.kind: part for part in turn.answer.parts} if turn.role == "assistant" else {}
        if thought:
            yield None, Field(t, "reasoning", thought, parts["reasoning"].begin)
        if content.strip():
            whole = (self.reasoning_key is None and not past) or "content" not in parts
            at = 0 if whole else parts["content"].begin
            yield None, Field(t, "content", content, at, turn.role == "assistant")
        names = [part for part in turn.answer.parts if part.kind == "name"] if turn.calls else []
        for number, part in enumerate(names):
            yield number, Field(t, "name", part.text, part.begin)

    def _written(
        self,
        t: int,
        conversation: Conversation,
        draft: _Draft,
        encoding: Encoding,
        placed: Mapping[str, tuple[int, int]],
    ) -> Written:
        text = encoding.text
        own = [(placed[word], found) for word, found in draft.fields.items() if found.turn == t and word in placed]
        if not own:
            raise UserError(f"the policy's chat template writes nothing of message {t}")
        spans = sorted(placed[word] for word, found in draft.fields.items() if found.turn != t and word in placed)
        first, last = own[0][0][0], own[-1][0][1]
        before = max((end for _, end in spans if end <= first), default=0)
        after = min((begin for begin, _ in spans if begin >= last), default=len(text))
        pieces: list[Piece] = []
        calls = iter(zip(conversation.turns[t].calls, _parts_of(conversation.turns[t], "arguments"), strict=True))
        limits = [*(span[0] for span, _ in own[1:]), after]
        for ((begin, end), found), limit in zip(own, limits, strict=True):
            if found.kind == "name":
                call, part = next(calls)
                stops = (a for k, (a, _) in enumerate(encoding.offsets) if self.encoder.is_special(encoding.ids[k]))
                stop = next((a for a in stops if end <= a < limit), limit)
                past = pieces[-1].end if pieces else before
                room = (past, begin, begin) if self._arguments_first else (end, limit, stop)
                pieces += sorted([Piece(begin, end, found.at), *argument_pieces(text, room, call.arguments, part)])
                continue
            skipped = len(found.text) - len(found.text.lstrip()) if not found.text.startswith(text[begin:end]) else 0
            pieces.append(Piece(begin, end, found.at + skipped))
        first, last = pieces[0].begin, pieces[-1].end
        start = self._start(t, draft, text, before, first, conversation.tools)
        return self._tokens(encoding, start, last, after, pieces)

    def _start(self, t: int, draft: _Draft, text: str, before: int, first: int, tools: Sequence[Any]) -> int:
        """Where the policy begins to write: after the header that it is given."""
        lines = self._plain[0].splitlines(keepends=True)
        for count in range(len(lines), 0, -1):  # a header may end in "<think>\n", which past turns lack
            header = "".join(lines[:count])
            at = text.rfind(header, before, first)
            if at >= 0:
                return at + len(header)
        try:
            (past,) = self.encoder.render([draft.messages[:t]], generation_prompt=False, tools=tools)
        except ValueError:
            return first
        return len(past) if before <= len(past) <= first and text.startswith(past) else first

    def _tokens(self, encoding: Encoding, start: int, end: int, after: int, pieces: list[Piece]) -> Written:
        """The tokens of ``text[start:end]``, and the end of the turn if it stands before ``after``, the next text."""
        inside = [t for t, (a, b) in enumerate(encoding.offsets) if a < end and b > start]
        first = inside[0] if inside else _first_from(encoding.offsets, end)
        last = inside[-1] if inside else first - 1
        here = after < len(encoding.text)
        tail = range(last + 1, _first_from(encoding.offsets, after) if here else len(encoding.ids))
        stops = [t for t in tail if encoding.ids[t] == self._end_of_turn]
        stops = stops or [t for t in tail if self.encoder.is_special(encoding.ids[t])]
        if stops:
            return Written(first, self._through_eos(encoding, stops[0], tail), True, pieces)
        if not here:  # GLM ends no turn, but what closes a call in the last one is written
            last = max(last, _first_from(encoding.offsets, len(encoding.text.rstrip())) - 1)
        return Written(first, last, False, pieces)

    def _through_eos(self, encoding: Encoding, stop: int, tail: range) -> int:
        """The token ``stop``, or the end of sequence behind it if all between is control (Command R7B's two ends)."""
        eos = self.encoder.tokenizer.eos_token_id
        controls = takewhile(lambda t: self.encoder.is_control(encoding.ids[t]), range(stop, tail.stop))
        return next((t for t in controls if encoding.ids[t] == eos), stop)


def _shared(one: str, other: str) -> str:
    """The longest text with which both begin."""
    size = next((i for i, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), None)
    return one[: min(len(one), len(other)) if size is None else size]


def _parts_of(turn: Turn, kind: str) -> list[Any]:
    return [part for part in turn.answer.parts if part.kind == kind]


def _first_from(offsets: Sequence[tuple[int, int]], position: int) -> int:
    return next((t for t, (a, _) in enumerate(offsets) if a >= position), len(offsets))
