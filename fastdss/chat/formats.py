"""The formats in which files hold conversations, as one table; a record's columns tell which format it has.

``read_record`` makes a ``Conversation`` of a record, and says which format it found and which columns and keys of
messages it did not use. Errors name columns, places and lengths, never the text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastdss.errors import UserError

from . import layouts
from .conversation import Conversation, Turn
from .record import COLUMNS, MEDIA, MESSAGES, SYSTEMS, Columns, Record, names_of
from .shapes import is_message, is_round
from .turns import NO_MEDIA, is_missing

# What stands in a text for a picture or a sound that lies in a column of its own.
_PLACEHOLDER = re.compile(r"<\|?(?:image|video|audio)(?:_pad|_?\d+)?\|?>", re.IGNORECASE)


@dataclass(frozen=True)
class Format:
    """``fits`` recognises a record by its columns, ``turns`` reads it; ``columns`` describes them in the docs."""

    name: str
    columns: str
    fits: Callable[[Record], bool]
    turns: Callable[[Record], list[Turn]]


@dataclass(frozen=True)
class Reading:
    """A conversation, the format in which it was found, and the parts of the record that were not used."""

    conversation: Conversation
    format: str
    unused: list[str] = field(default_factory=list)
    unused_keys: list[str] = field(default_factory=list)
    scored: bool = False  # the record holds scores already


def read_record(values: Mapping[str, Any], columns: Columns = COLUMNS, *, format: str = "auto") -> Reading:
    """The conversation of a record; ``ValueError`` or ``TypeError`` says what is wrong with it.

    format: a name of ``FORMATS``, or ``"auto"``: the first that fits the record's columns. Nulls are values, such as an
    argument of a call: those that Arrow puts in are for ``nulls`` to take out before.
    """
    record = Record(values, columns)
    found = choose_format(record, columns, format)
    turns = found.turns(record)
    tools = layouts.tools(record)
    for system in [record.take(name) for name in SYSTEMS if name in record][::-1]:
        turns = layouts.with_system(system, turns)
    if not turns:
        raise UserError("expected a non-empty list of messages, got none")
    _check_media(record, turns)
    return Reading(Conversation(tuple(turns), tools), found.name, record.unused, sorted(record.keys), record.scored)


def choose_format(record: Record, columns: Columns = COLUMNS, format: str = "auto") -> Format:
    """The format named, or the first that fits; ``ValueError`` says which columns there are and what helps."""
    check_format(format)
    if format != "auto":
        return BY_NAME[format]
    for entry in FORMATS:
        if entry.fits(record):
            return entry
    if is_message(record.values):
        raise UserError("it is one message: expected a conversation a row, with its messages as a list in 'messages'")
    if set(record.values) - {columns.id} == {"text"}:
        raise UserError(
            "text alone does not tell who speaks: expected a conversation a row, with its messages as a list in "
            "'messages', or a prompt and a response"
        )
    raise UserError(
        f"expected {columns.messages!r}, or {columns.prompt!r} and {columns.response!r}, or the columns of another "
        f"format; it has {names_of(record.values)}"
        + (f"; without a value: {names_of(dict.fromkeys(record.missing))}" if record.missing else "")
    )


def check_format(format: str) -> None:
    if format != "auto" and format not in BY_NAME:
        raise UserError(f"format: expected one of auto, {', '.join(BY_NAME)}, got {format!r}")


def _check_media(record: Record, turns: Sequence[Turn]) -> None:
    """Refuse a text with a placeholder for what lies in a column of images, videos or sounds."""
    held = next((name for name in MEDIA if name in record and not _is_empty(record.peek(name))), None)
    if held is not None and any(_PLACEHOLDER.search(turn.content) for turn in turns):
        raise UserError(f"{held}: {NO_MEDIA}")


def _is_empty(value: Any) -> bool:
    return isinstance(value, Sequence) and not len(value)


def _has_openai_keys(record: Record) -> bool:
    keys = ("tool_calls", "function_call", "weight", "refusal", "tool_call_id")
    return any(
        isinstance(m, Mapping)
        and (any(not is_missing(m.get(key)) for key in keys) or not isinstance(m.get("content") or "", str))
        for m in ([] if isinstance(record.peek(record.first(MESSAGES) or ""), str) else layouts.raw_messages(record))
    )


def _is_sharegpt(record: Record) -> bool:
    return any(isinstance(message, Mapping) and "from" in message for message in layouts.raw_messages(record)[:1])


def _has_rounds(record: Record) -> bool:
    name = record.first(MESSAGES)
    value = record.peek(name) if name else None
    return isinstance(value, Sequence) and any(map(is_round, value[:1]))


FORMATS = (
    Format(
        "oasst",
        "rows of trees: `message_id`, `parent_id`, `text`, `role`; what is `deleted` is not trained",
        lambda r: "oasst_path" in r,
        layouts.oasst,
    ),
    Format(
        "kto",
        "a prompt and an answer (or `messages`) and `label` or `kto_tag`: true is trained, false left out",
        layouts.is_kto,
        layouts.kto,
    ),
    Format(
        "preference",
        "`chosen` (text, HH-RLHF's rounds, or messages), with `prompt` or `conversations` where it is an answer alone",
        lambda r: "chosen" in r,
        layouts.preference,
    ),
    Format(
        "openai-preference",
        "`preferred_output`, and `input` with `messages` and `tools`",
        lambda r: "preferred_output" in r and "input" in r,
        layouts.preferred,
    ),
    Format(
        "gemini",
        "`contents` of `role` and `parts`, `systemInstruction`, `tools`",
        lambda r: r.first(MESSAGES) == "contents",
        layouts.messages,
    ),
    Format(
        "sharegpt",
        "`conversations` of `from` and `value` (human, gpt, system, function_call, observation, tool), "
        "`system`, `tools`",
        _is_sharegpt,
        layouts.messages,
    ),
    Format(
        "rounds",
        "`conversation` of `input` and `output`, `human` and `assistant` or the like; `system`",
        _has_rounds,
        layouts.messages,
    ),
    Format(
        "openai",
        "`messages` with `tool_calls`, parts of content (Anthropic's and Bedrock's calls and results too), `weight`; "
        "`tools`",
        _has_openai_keys,
        layouts.messages,
    ),
    Format(
        "messages",
        "`messages`, `conversations` or `conversation` of `role` and `content`, `tools`, `system`",
        lambda r: r.first(MESSAGES) is not None,
        layouts.messages,
    ),
    Format(
        "ultrachat",
        "`data`: texts of user and assistant by turns",
        lambda r: layouts.holds_texts(r.peek("data")),
        layouts.ultrachat,
    ),
    Format(
        "xlam",
        "`query`, and `answers`: the calls; `tools`",
        lambda r: "query" in r and "answers" in r,
        layouts.calls,
    ),
    Format(
        "alpaca",
        "`instruction`, `input`, `output`, `system`, `history`",
        lambda r: "instruction" in r and "output" in r,
        layouts.pair,
    ),
    Format(
        "prompt-response",
        "`prompt`, `question`, `query`, `inputs` or `instruction`, and `response`, `completion`, `answer`, `targets` "
        "or `output`, text or messages; `instruction`, `context`, `input`, `system`, `system_prompt`, `history`, "
        "`tools`, `reasoning_content`",
        layouts.has_pair,
        layouts.pair,
    ),
)
BY_NAME = {entry.name: entry for entry in FORMATS}


def format_table() -> Iterator[str]:
    """The table of formats, as the documentation has it."""
    yield "| format | columns |"
    yield "|---|---|"
    yield from (f"| {entry.name} | {entry.columns} |" for entry in sorted(FORMATS, key=lambda entry: entry.name))
