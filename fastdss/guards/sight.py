"""Checks that a guard sees what it judges: turns with marks in them are rendered, and the marks are looked for.

A template that expects content as typed parts drops plain text without an error, and the other way round; such a guard
would give every prefix of every row the same score.
"""

from __future__ import annotations

import re
from itertools import product
from typing import Any, NamedTuple

from fastdss.chat.encoder import ChatEncoder, Conversation, Message, RefusedByTemplate
from fastdss.errors import UserError

MARKS = {
    "system": "systemQ1Q",
    "earlier": "earlierQ2Q",
    "prompt": "promptQ3Q",
    "tool": "toolQ4Q",
    "response": "responseQ5Q",
}
CHAT = [{"role": role, "content": MARKS[name]} for role, name in (("user", "prompt"), ("assistant", "response"))]
LONGER = {  # conversations of more turns, which a template may refuse, or show in part
    "system": [{"role": "system", "content": MARKS["system"]}, *CHAT],
    "earlier": [{"role": "user", "content": MARKS["earlier"]}, {"role": "assistant", "content": "x"}, *CHAT],
    "tool": [CHAT[0], {"role": "assistant", "content": "x"}, {"role": "tool", "content": MARKS["tool"]}, CHAT[1]],
}
LONG = "Q7Q " * 2000 + "Q8Q"  # so long that a template with a limit would cut it
OTHERS = ("Q7Q", LONG)  # texts that replace a mark, to see whether the rendering follows
_WORD = re.compile(r"\w+")
_WITH = {"system": "a system turn", "earlier": "an earlier exchange", "tool": "a tool's result"}


class Sight(NamedTuple):
    """Which parts of a conversation a guard is shown beside the prompt and the response."""

    system: bool
    earlier: bool
    tool: bool


def check_sight(name: str, encoder: ChatEncoder, *, generation_prompt: bool, only_response: bool) -> dict[str, str]:
    """``ValueError`` unless the rendering holds prompt and response, in this order, and changes as they do.

    Returns the kinds of further turns, keys of ``LONGER``, that make the template drop the prompt or the response, each
    with a sentence that says so.
    """
    wanted = ("response",) if only_response else ("prompt", "response")
    try:
        text = _render(encoder, CHAT, generation_prompt)
    except RefusedByTemplate as error:
        raise UserError(f"{name}: {error}") from None
    except (TypeError, AttributeError, KeyError) as error:  # the template takes content as parts and was given text
        raise UserError(f"{name}: its chat template fails on plain turns ({type(error).__name__})") from None
    lost = _lost(text, wanted)
    if lost:
        raise UserError(
            f"{name}: a blind guard: its chat template drops the {' and the '.join(lost)}{_hint(encoder, lost)}; "
            "fastdss guards show GUARD shows what is rendered"
        )
    if text.rfind(MARKS["response"]) < max(text.find(MARKS[part]) for part in wanted):
        raise UserError(f"{name}: its chat template shows the response before the prompt")
    for part, other in product(wanted, OTHERS):
        changed = [{**turn, "content": turn["content"].replace(MARKS[part], other)} for turn in CHAT]
        shown = _render(encoder, changed, generation_prompt)
        if other not in shown if other == LONG else shown != text.replace(MARKS[part], other):
            raise UserError(f"{name}: its chat template rewrites or cuts the {part}")
    return {more: reason for more in LONGER if (reason := _unseen(encoder, more, wanted, generation_prompt))}


def check_seen(name: str, unseen: dict[str, str], conversation: Conversation) -> None:
    """``ValueError`` where ``conversation`` has turns of a kind in ``unseen`` (see ``check_sight``): the guard would
    not see what it judges."""
    roles = [turn["role"] for turn in conversation]
    present = {"system": "system" in roles, "earlier": roles.count("user") > 1, "tool": "tool" in roles}
    for more, reason in unseen.items():
        if present[more]:
            raise UserError(f"{name}: {reason}; a view with turns='exchange' and no system turns shows it less")


def check_shown(name: str, encoder: ChatEncoder, chat: Conversation, *, generation_prompt: bool) -> None:
    """``ValueError`` where the template drops words of the last user and assistant turns that it is given.

    What a template drops may depend on the text, such as all before a ``</think>``: no guard is shown that.
    """
    given = encoder.messages(chat) if encoder.messages else chat
    text, at = encoder.shown(chat, generation_prompt=generation_prompt), 0
    for turn in given[-2:]:
        if turn["role"] in ("user", "assistant"):
            at = _end(_plain(turn["content"]), text, at)
            if at < 0:
                raise UserError(f"{name}: its chat template drops a part of the turns that it judges")


def _end(content: str, text: str, at: int) -> int:
    """Where ``content`` ends in ``text[at:]``, if need be word by word, as escaped text is found; -1: nowhere."""
    whole = content.strip()
    words = [whole] if text.find(whole, at) >= 0 else _WORD.findall(content)
    for word in words:
        found = text.find(word, at)
        if found < 0:
            return -1
        at = found + len(word)
    return at


def _plain(content: Any) -> str:
    """The text of a message's content, which may be a list of parts."""
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content or ())


def find_sight(encoder: ChatEncoder, *, generation_prompt: bool) -> Sight:
    """Which parts of longer conversations are rendered; a part that the template refuses counts as not shown."""
    found = {}
    for part, chat in LONGER.items():
        try:
            found[part] = MARKS[part] in _render(encoder, chat, generation_prompt)
        except RefusedByTemplate:
            found[part] = False
    return Sight(**found)


def _unseen(encoder: ChatEncoder, more: str, wanted: tuple[str, ...], generation_prompt: bool) -> str:
    try:
        text = _render(encoder, LONGER[more], generation_prompt)
    except RefusedByTemplate:
        return ""  # nothing is hidden: the template refuses rows with such turns as well
    lost = _lost(text, wanted)
    return f"with {_WITH[more]} its chat template drops the {' and the '.join(lost)}" if lost else ""


def _lost(text: str, wanted: tuple[str, ...]) -> list[str]:
    return [part for part in wanted if MARKS[part] not in text]


def _render(encoder: ChatEncoder, chat: Conversation, generation_prompt: bool) -> str:
    (text,) = encoder.render([chat], generation_prompt=generation_prompt)
    return text


def _hint(encoder: ChatEncoder, lost: list[str]) -> str:
    """A hint for the user where the template would show the lost parts if content came in the other form."""
    given: Any = encoder.messages(CHAT) if encoder.messages else CHAT
    as_text = isinstance(given[0]["content"], str)

    def other(chat: Conversation) -> list[Message]:
        turns = encoder.messages(chat) if encoder.messages else chat
        return [
            {**t, "content": [{"type": "text", "text": t["content"]}] if as_text else t["content"][0]["text"]}
            for t in turns
        ]

    twin = ChatEncoder(
        encoder.tokenizer, template=encoder.template, template_kwargs=encoder.template_kwargs, messages=other
    )
    try:
        seen = all(MARKS[part] in _render(twin, CHAT, True) for part in lost)
    except (RefusedByTemplate, TypeError, AttributeError, KeyError):
        seen = False
    return f" (it takes content as {'parts' if as_text else 'text'}: messages=View(parts={as_text}))" if seen else ""
