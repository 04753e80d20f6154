"""Where the texts of a conversation stand in its rendering, told by a second rendering with words in their places."""

from __future__ import annotations

import json
from collections.abc import Mapping
from difflib import SequenceMatcher
from typing import Any, NamedTuple

from fastdss.errors import UserError

from .conversation import Part
from .encoder import nested_strings

# Limit for a product of two lengths: a call's arguments, and the text in which they are looked for. 2048 x 2048
# characters take 0.13 s.
_MATCHED = 1 << 22


class Piece(NamedTuple):
    """``text[begin:end]`` of the rendering is the part of the turn's answer that begins at its character ``at``."""

    begin: int
    end: int
    at: int


class Field(NamedTuple):
    """A text in a message: its turn, its kind, the text, its place in the answer, and whether the policy writes it."""

    turn: int
    kind: str
    text: str
    at: int
    written: bool = True


def check_all_there(skeleton: str, fields: Mapping[str, Field]) -> None:
    for word, found in fields.items():
        if word not in skeleton and found.kind != "reasoning":  # templates drop earlier turns' reasoning
            what = "a tool call" if found.kind == "name" else "the text"
            raise UserError(
                f"the policy's chat template drops or rewrites {what} of message {found.turn}: its tokens cannot be "
                "aligned"
            )


def placed_in(skeleton: str, text: str, fields: Mapping[str, Field]) -> dict[str, tuple[int, int]]:
    """Where each field's text stands in the rendering ``text``; ``skeleton`` has words in place of the texts."""
    order = sorted((at, word) for word in fields for at in [skeleton.find(word)] if at >= 0)
    frames, position = [], 0
    for at, word in order:
        frames.append(skeleton[position:at])
        position = at + len(word)
    frames.append(skeleton[position:])
    placed: dict[str, tuple[int, int]] = {}
    position = _past(text, 0, frames[0])
    for (_, word), frame in zip(order, frames[1:], strict=True):
        shown = fields[word].text
        forms = dict.fromkeys([shown, shown.strip(), shown.lstrip(), shown.rstrip()])
        if not fields[word].written:  # such as a tool's result, which may stand as JSON; what is learnt may not
            forms |= dict.fromkeys(json.dumps(shown, ensure_ascii=ascii)[1:-1] for ascii in (False, True))
        found = next((form for form in forms if text.startswith(form + frame, position)), None)
        if found is None:
            raise UserError(
                f"the policy's chat template rewrites the text of message {fields[word].turn}, so its tokens cannot be "
                "aligned"
            )
        placed[word] = position, position + len(found)
        position = _past(text, position + len(found), frame)
    if position != len(text):
        raise UserError("the policy's chat template writes other frames around other texts")
    return placed


def _past(text: str, position: int, frame: str) -> int:
    """The position after ``frame``, which must stand at ``position`` of ``text``."""
    if not text.startswith(frame, position):
        raise UserError("the policy's chat template writes other frames around other texts")
    return position + len(frame)


def argument_pieces(text: str, room: tuple[int, int, int], arguments: Any, part: Part) -> list[Piece]:
    """Where a call's arguments stand: as their JSON, or in a form of the template's own.

    room: where they may begin, where the next piece begins, and the first special token before that, up to which a form
    of the template's own is looked for.
    """
    begin, limit, stop = room
    found = text.find(part.text, begin, limit)
    if found >= 0:
        return [Piece(found, found + len(part.text), part.begin)]
    region = text[begin:stop]
    forms = (lambda s: s.strip(), lambda s: json.dumps(s)[1:-1], lambda s: json.dumps(s, ensure_ascii=False)[1:-1])
    lost = any(not any(form(value) in region for form in forms) for value in nested_strings(arguments))
    if lost or len(region) * len(part.text) > _MATCHED:
        raise UserError("the policy's chat template rewrites the arguments of a tool call")
    blocks = SequenceMatcher(None, region, part.text, autojunk=False).get_matching_blocks()
    return [Piece(begin + b.a, begin + b.a + b.size, part.begin + b.b) for b in blocks if b.size]
