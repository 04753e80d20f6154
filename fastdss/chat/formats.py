"""The formats in which files hold conversations, as one table; a record's columns tell which format it has.

``read_record`` makes a ``Conversation`` of a record, and says which format it found and which columns and keys of
messages it did not use. Errors name columns, places and lengths, never the text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fastdss.errors import UserError, UserTypeError

from .conversation import Conversation, Turn
from .record import COLUMNS, Columns, Record, names_of
from .tool_parts import definition, unused_in, without_tool_parts
from .turns import check_text, is_missing, parsed, read_turn, unused_keys

JOIN = "\n"  # between an instruction and its input or context, as LLaMA-Factory has it
_MESSAGES = ("messages", "conversations", "conversation")
_PROMPTS = ("prompt", "instruction", "question", "query", "input")
_ANSWERS = ("response", "completion", "output", "answer")
_CONTEXTS = ("context", "input")
_SYSTEMS = ("system", "system_prompt")
_REASONING = ("reasoning_content", "thinking")
_BOOLEANS = {"true": True, "false": False}  # as cells of a CSV file spell them
_ROUND = re.compile(r"(?:^|\n\n)(Human|Assistant):[ \t]?")


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

    format: a name of ``FORMATS``, or ``"auto"``: the first that fits the record's columns.
    """
    record = Record(values, columns)
    found = choose_format(record, columns, format)
    turns = found.turns(record)
    tools = _tools(record)
    for system in [record.take(name) for name in _SYSTEMS if name in record][::-1]:
        turns = _with_system(system, turns)
    if not turns:
        raise UserError("expected a non-empty list of messages, got none")
    return Reading(Conversation(tuple(turns), tools), found.name, record.unused, sorted(record.keys), record.scored)


def choose_format(record: Record, columns: Columns = COLUMNS, format: str = "auto") -> Format:
    """The format named, or the first that fits; ``ValueError`` says which columns there are and what helps."""
    check_format(format)
    if format != "auto":
        return BY_NAME[format]
    for entry in FORMATS:
        if entry.fits(record):
            return entry
    raise UserError(
        f"expected {columns.messages!r}, or {columns.prompt!r} and {columns.response!r}, or the columns of another "
        f"format; it has {names_of(record.values)}"
    )


def check_format(format: str) -> None:
    if format != "auto" and format not in BY_NAME:
        raise UserError(f"format: expected one of auto, {', '.join(BY_NAME)}, got {format!r}")


def known_columns(columns: Columns = COLUMNS) -> set[str]:
    """Every column that any format reads."""
    known = {*columns.names, *_MESSAGES, *_PROMPTS, *_ANSWERS, *_CONTEXTS, *_SYSTEMS, *_REASONING}
    return known | {"history", "tools", "chosen", "data", "label", "star"}


def fits_columns(names: Sequence[str], columns: Columns = COLUMNS) -> bool:
    """Whether a table with these columns can hold conversations; it can be asked before a row is read."""
    known = {*columns.names[1:], *_MESSAGES, *_ANSWERS, "chosen", "data", "star"}
    return bool(known & set(names)) or {"text", "role", "parent_id"} <= set(names)


def _listed(record: Record, name: str, value: Any) -> list[Turn]:
    """A list of messages, or its JSON, as turns."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            value = parsed(value)
        except ValueError as error:
            raise UserError(f"{name}: expected a list of messages, got {error}") from None
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        raise UserTypeError(
            f"{name}: expected a non-empty list of messages, got {type(value).__name__}"
            if not isinstance(value, Mapping)
            else f"{name}: expected a mapping per message in a list, got one mapping"
        )
    for message in value:
        if isinstance(message, Mapping):
            record.keys |= unused_keys(message) | unused_in(message)
    return [
        read_turn(index, part)
        for index, message in enumerate(value)
        for part in without_tool_parts(f"message {index}", message)
    ]


def _messages(record: Record) -> list[Turn]:
    name = record.first(_MESSAGES)
    if name is None:
        raise UserError(f"expected one of the columns {', '.join(_MESSAGES)}; it has {names_of(record.values)}")
    return _listed(record, name, record.take(name))


def _element(record: Record) -> Mapping[str, Any]:
    """The first message of a list of messages, to tell formats apart; empty where there is none."""
    name = record.first(_MESSAGES)
    value = record.peek(name) if name else None
    if isinstance(value, str) and value.lstrip()[:1] == "[":
        try:
            value = parsed(value)
        except ValueError:
            return {}
    first = value[0] if isinstance(value, Sequence) and not isinstance(value, str) and len(value) else None
    return first if isinstance(first, Mapping) else {}


def _has_openai_keys(record: Record) -> bool:
    name = record.first(_MESSAGES)
    value = record.peek(name) if name else None
    if isinstance(value, str) or not isinstance(value, Sequence):
        return False
    keys = ("tool_calls", "function_call", "weight", "refusal", "tool_call_id")
    return any(
        isinstance(m, Mapping)
        and (any(not is_missing(m.get(key)) for key in keys) or not isinstance(m.get("content") or "", str))
        for m in value
    )


def _pair(record: Record) -> list[Turn]:
    """The turns of a prompt and a response, each text or messages; history and context belong to the prompt."""
    answer_name = record.first(_ANSWERS)
    if answer_name is None:
        raise UserError(f"expected a column one of {', '.join(_ANSWERS)}; it has {names_of(record.values)}")
    turns = _question(record, f"expected a column one of {', '.join(_PROMPTS)}; it has {names_of(record.values)}")
    answer = record.take(answer_name)
    if _is_list(answer):
        return [*turns, *_listed(record, answer_name, answer)]
    thoughts = record.take(*_REASONING)
    message = {"role": "assistant", "content": _text(answer_name, answer), "reasoning_content": thoughts}
    return [*turns, read_turn(len(turns), message)]


def _question(record: Record, missing: str) -> list[Turn]:
    """The turns before an answer: a history, then a prompt of messages, of HH-RLHF's rounds, or of text and context."""
    name = record.first(_PROMPTS)
    if name is None:
        raise UserError(missing)
    prompt, turns = record.take(name), _history(record)
    if _is_list(prompt):
        return [*turns, *_listed(record, name, prompt)]
    asked = [_text(name, prompt)]
    if _ROUND.match(asked[0]) and "\n\nAssistant:" in asked[0]:
        return [*turns, *_rounds(asked[0])]
    while (about := record.first(_CONTEXTS)) is not None:
        asked.append(_text(about, record.take(about)))
    text = JOIN.join(piece for piece in asked if piece.strip()) or asked[0]
    return [*turns, Turn("user", _checked(f"message {len(turns)}", text))]


def _history(record: Record) -> list[Turn]:
    history = record.take("history")
    if history is None or history == "":
        return []
    if isinstance(history, str):
        history = parsed(history)
    turns: list[Turn] = []
    for number, pair in enumerate(history if isinstance(history, Sequence) else [None]):
        if isinstance(pair, Mapping):
            turns.append(read_turn(number, pair))
            continue
        if isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) != 2:
            raise UserTypeError(f"history {number}: expected a pair of question and answer")
        turns += [
            read_turn(number, {"role": role, "content": text})
            for role, text in zip(("user", "assistant"), pair, strict=True)
        ]
    return turns


def _preference(record: Record) -> list[Turn]:
    """The turns with the chosen answer; the rejected one is not read, since nothing should imitate it."""
    chosen = record.take("chosen")
    if isinstance(chosen, Mapping):  # LLaMA-Factory's ranking data: one message, after those of the conversation
        chosen = [chosen]
    if not _is_list(chosen):
        text = _text("chosen", chosen)
        if _ROUND.match(text):
            return _beside_prompt(record, _rounds(text))
        chosen = [{"role": "assistant", "content": text}]
    turns = _listed(record, "chosen", chosen)
    if any(turn.role != "assistant" for turn in turns):
        return _beside_prompt(record, turns)
    if record.first(_PROMPTS) is None and record.first(_MESSAGES) is not None:
        return [*_messages(record), *turns]
    missing = f"chosen is an answer alone: expected one of {', '.join(_PROMPTS)} or of {', '.join(_MESSAGES)} beside it"
    return [*_question(record, missing), *turns]


def _beside_prompt(record: Record, turns: list[Turn]) -> list[Turn]:
    """``turns``, which hold their prompt. A column ``prompt`` that says the same is used; another counts as unused."""
    prompt = record.peek("prompt")
    if isinstance(prompt, str) and any(prompt.strip() == turn.content.strip() for turn in turns):
        record.take("prompt")
    return turns


def _rounds(text: str) -> list[Turn]:
    """HH-RLHF's text: rounds of ``Human:`` and ``Assistant:``."""
    pieces = _ROUND.split(text)[1:]
    roles = {"Human": "user", "Assistant": "assistant"}
    turns = [
        read_turn(index, {"role": roles[role], "content": said.strip()})
        for index, (role, said) in enumerate(zip(pieces[::2], pieces[1::2], strict=True))
    ]
    return turns[:-1] if turns and turns[-1].is_empty and turns[-1].role == "assistant" and len(turns) > 1 else turns


def _kto(record: Record) -> list[Turn]:
    """The turns, all of them marked as not to be trained where people did not like the answer."""
    label = record.take("label")
    label = _BOOLEANS.get(label.strip().lower()) if isinstance(label, str) else label
    if label not in (0, 1):
        raise UserError(f"label: expected true or false, got {type(label).__name__}")
    turns = _messages(record) if record.first(_MESSAGES) else _pair(record)
    return turns if label else [replace(turn, train=False) for turn in turns]


def _ultrachat(record: Record) -> list[Turn]:
    said = record.take("data")
    said = parsed(said) if isinstance(said, str) else said
    if isinstance(said, str) or not isinstance(said, Sequence):
        raise UserTypeError(f"data: expected a list of texts, got {type(said).__name__}")
    return [
        read_turn(index, {"role": ("user", "assistant")[index % 2], "content": text}) for index, text in enumerate(said)
    ]


def _oasst(record: Record) -> list[Turn]:
    """A path through a tree of messages, as ``oasst.py`` makes it."""
    path = record.take("oasst_path")
    if path is None:
        raise UserError("oasst: expected rows of a tree, read from a file")
    for name in ("text", "role", "message_id", "parent_id", "message_tree_id", "user_id", "created_date"):
        record.used.add(name)
    return [read_turn(index, message) for index, message in enumerate(path)]


def _tools(record: Record) -> tuple[Any, ...]:
    tools = record.take("tools")
    legacy = record.take("functions") if tools is None else None  # OpenAI's name before there were tools
    if legacy is not None:
        legacy = parsed(legacy) if isinstance(legacy, str) else legacy
        tools = [{"type": "function", "function": function} for function in legacy]
    if tools is None or tools == "":
        return ()
    if isinstance(tools, str):
        try:
            tools = parsed(tools)
        except ValueError as error:
            raise UserError(f"tools: expected a list of definitions, got {error}") from None
    if tools is None:
        return ()
    tools = [tools] if isinstance(tools, Mapping) else tools
    if isinstance(tools, str) or not isinstance(tools, Sequence):
        raise UserTypeError(f"tools: expected a list of definitions, got {type(tools).__name__}")
    return tuple(definition(parsed(tool) if isinstance(tool, str) else tool) for tool in tools)


def _with_system(system: Any, turns: list[Turn]) -> list[Turn]:
    """``turns`` with ``system`` in their system turn, before its own text unless that holds ``system`` already."""
    text = _checked("system", _text("system", system))
    if not text.strip():
        return turns
    if turns and turns[0].role == "system":
        own = turns[0].content
        return turns if text.strip() in own else [Turn("system", f"{text}\n\n{own}"), *turns[1:]]
    return [Turn("system", text), *turns]


def _is_list(value: Any) -> bool:
    """Whether ``value`` may hold messages: a list, or text that begins as the JSON of one."""
    if isinstance(value, str):
        return re.match(r"\s*\[\s*\{\s*[\"'](role|from|content|value)[\"']\s*:", value) is not None
    return isinstance(value, Sequence) and not isinstance(value, bytes)


def _is_boolean(value: Any) -> bool:
    return isinstance(value, bool) or (isinstance(value, str) and value.strip().lower() in _BOOLEANS)


def _holds_texts(value: Any) -> bool:
    """Whether ``value``, a sequence, may be a list of texts, or text that begins as the JSON of one."""
    return re.match(r"\s*\[\s*[\"']", value) is not None if isinstance(value, str) else not isinstance(value, bytes)


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise UserTypeError(f"{name}: expected text, got {type(value).__name__}")
    return value


def _checked(place: str, text: str) -> str:
    check_text(place, text)
    return text


def _has_pair(record: Record) -> bool:
    return record.first(_PROMPTS) is not None and any(name in record for name in _ANSWERS)


FORMATS = (
    Format("oasst", "rows of trees: `message_id`, `parent_id`, `text`, `role`", lambda r: "oasst_path" in r, _oasst),
    Format(
        "kto",
        "`prompt`, `completion` (or `messages`) and `label`: true is trained, false left out",
        lambda r: _is_boolean(r.peek("label")) and ("completion" in r or r.first(_MESSAGES) is not None),
        _kto,
    ),
    Format(
        "preference",
        "`chosen` (text, HH-RLHF's rounds, or messages), with `prompt` or `conversations` where it is an answer alone",
        lambda r: "chosen" in r,
        _preference,
    ),
    Format(
        "sharegpt",
        "`conversations` of `from` and `value` (human, gpt, system, function_call, observation, tool), "
        "`system`, `tools`",
        lambda r: "from" in _element(r),
        _messages,
    ),
    Format(
        "openai",
        "`messages` with `tool_calls`, parts of content (Anthropic's `tool_use`, `tool_result` too), `weight`; `tools`",
        _has_openai_keys,
        _messages,
    ),
    Format(
        "messages",
        "`messages`, `conversations` or `conversation` of `role` and `content`, `tools`, `system`",
        lambda r: r.first(_MESSAGES) is not None,
        _messages,
    ),
    Format(
        "ultrachat",
        "`data`: texts of user and assistant by turns",
        lambda r: isinstance(r.peek("data"), Sequence) and _holds_texts(r.peek("data")),
        _ultrachat,
    ),
    Format(
        "alpaca",
        "`instruction`, `input`, `output`, `system`, `history`",
        lambda r: "instruction" in r and "output" in r,
        _pair,
    ),
    Format(
        "prompt-response",
        "`prompt`, `question`, `query` or `instruction`, and `response`, `completion`, `answer` or `output`, text or "
        "messages; `context`, `input`, `system`, `system_prompt`, `history`, `tools`, `reasoning_content`",
        _has_pair,
        _pair,
    ),
)
BY_NAME = {entry.name: entry for entry in FORMATS}


def format_table() -> Iterator[str]:
    """The table of formats, as the documentation has it."""
    yield "| format | columns |"
    yield "|---|---|"
    yield from (f"| {entry.name} | {entry.columns} |" for entry in sorted(FORMATS, key=lambda entry: entry.name))
