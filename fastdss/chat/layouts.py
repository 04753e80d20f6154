"""The turns of a record, for each of the ways in which columns lay a conversation out."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from fastdss.errors import UserError, UserTypeError

from .conversation import Turn
from .record import ANSWERS, CONTEXTS, LABELS, MESSAGES, PROMPTS, REASONING, Record, names_of
from .shapes import as_messages, is_message
from .tool_parts import definitions, unused_in, without_tool_parts
from .turns import CALL_ROLES, KNOWN_ROLES, ROLE_KEYS, check_text, parsed, read_turn, text_of, unused_keys

JOIN = "\n"  # between an instruction and its input or context, as LLaMA-Factory has it
_LABELS = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}  # as cells of CSV have them
_ROUND = re.compile(r"(?:^|(?:\r?\n){2})(Human|Assistant):[ \t]?")


def messages(record: Record) -> list[Turn]:
    """The turns of a column that holds a list of messages."""
    name = record.first(MESSAGES)
    if name is None:
        raise UserError(_lacking(record, MESSAGES))
    return _listed(record, name, record.take(name))


def _lacking(record: Record, names: Sequence[str]) -> str:
    return f"expected one of the columns {', '.join(names)}; it has {names_of(record.values)}"


def raw_messages(record: Record) -> list[Any]:
    """The messages as they stand, to tell formats apart; empty where there are none."""
    name = record.first(MESSAGES)
    try:
        value = as_messages(_opened(record.peek(name) if name else None))
    except ValueError:
        return []
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str | bytes) else []


def _opened(value: Any) -> Any:
    """``value``, or what its text holds where that begins as JSON of a list or an object."""
    return parsed(value) if isinstance(value, str) and value.lstrip()[:1] in ("[", "{") else value


def _listed(record: Record, name: str, value: Any) -> list[Turn]:
    """A list of messages, or its JSON, as turns."""
    try:
        value = as_messages(_opened(value))
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
            used = _take_tools(record, message)
            record.keys |= (unused_keys(message) | unused_in(message)) - used
    turns: list[Turn] = []
    for index, message in enumerate(value):
        for part in without_tool_parts(f"message {index}", message):
            turn = read_turn(index, part)
            if turns and _goes_on(turns[-1], turn, part):
                turns[-1] = replace(turns[-1], calls=(*turns[-1].calls, *turn.calls))
            else:
                turns.append(turn)
    return turns


def _goes_on(before: Turn, turn: Turn, message: Mapping[str, Any]) -> bool:
    """Whether a message that is a call (ms-swift's ``tool_call``) belongs to the assistant's turn before it: a policy
    writes text and calls, and calls in parallel, without an end of turn between them."""
    role = next(str(message[key]).strip().lower() for key in ROLE_KEYS if message.get(key) is not None)
    says_more = turn.content or turn.reasoning
    return role in CALL_ROLES and not says_more and before.role == "assistant" and before.train == turn.train


def _take_tools(record: Record, message: Mapping[str, Any]) -> set[str]:
    """Take the definitions that stand in a system turn, as GLM's and Phi's data have them; returns the key's name."""
    roles = [str(message[key]).strip().lower() for key in ROLE_KEYS if key in message]
    if not message.get("tools") or not roles or KNOWN_ROLES.get(roles[0]) != "system":
        return set()
    record.tools += read_tools(message["tools"])
    return {"tools"}


def pair(record: Record) -> list[Turn]:
    """The turns of a prompt and a response, each text or messages; history and context belong to the prompt."""
    answer_name = record.first(ANSWERS)
    if answer_name is None:
        raise UserError(_lacking(record, ANSWERS))
    turns = _question(record, _lacking(record, PROMPTS))
    answer = _as_list(record.take(answer_name))
    if _is_list(answer):
        return [*turns, *_listed(record, answer_name, answer)]
    thoughts = record.take(*REASONING)
    message = {"role": "assistant", "content": _text(answer_name, answer), "reasoning_content": thoughts}
    return [*turns, read_turn(len(turns), message)]


def has_pair(record: Record) -> bool:
    return record.first(PROMPTS) is not None and any(name in record for name in ANSWERS)


def calls(record: Record) -> list[Turn]:
    """xLAM's: a question, and the calls that answer it."""
    turns = _question(record, _lacking(record, PROMPTS))
    return [*turns, read_turn(len(turns), {"role": "assistant", "tool_calls": record.take("answers")})]


def _question(record: Record, missing: str) -> list[Turn]:
    """The turns before an answer: a history, then a prompt of messages, of HH-RLHF's rounds, or of text and context."""
    name = record.first(PROMPTS)
    if name is None:
        raise UserError(missing)
    prompt, turns = _as_list(record.take(name)), _history(record)
    if _is_list(prompt):
        return [*turns, *_listed(record, name, prompt)]
    main = _text(name, prompt)
    if _ROUND.match(main) and "\nAssistant:" in main:
        return [*turns, *_rounds(main)]
    asked = [main]
    if name == "instruction" and (more := record.first(("question", "query"))) is not None:
        asked.append(_text(more, record.take(more)))
    elif "instruction" in record and name != "instruction":
        asked.insert(0, _text("instruction", record.take("instruction")))
    while (about := record.first(CONTEXTS)) is not None:
        asked.append(_text(about, record.take(about)))
    made = "" if name == "instruction" else main  # Alpaca's input stays beside an instruction that holds it
    text = JOIN.join(_without_repeated(made, asked)) or main
    return [*turns, Turn("user", _checked(f"message {len(turns)}", text))]


def _without_repeated(prompt: str, texts: Sequence[str]) -> list[str]:
    """``texts`` without empty ones and those that the prompt, one of them, says already: it often is made of columns.
    What only a context says as well stays, since it may be the question about it."""
    kept: list[str] = []
    for text in texts:
        words = text.strip()
        said = words != prompt.strip() and re.search(rf"(?<!\w){re.escape(words)}(?!\w)", prompt) is not None
        if words and not said and text not in kept:
            kept.append(text)
    return kept


def _history(record: Record) -> list[Turn]:
    history = record.take("history")
    if history is None or history == "":
        return []
    if isinstance(history, str):
        history = parsed(history)
    turns: list[Turn] = []
    for number, item in enumerate(history if isinstance(history, Sequence) else [None]):
        if isinstance(item, Mapping):
            turns += [read_turn(number, message) for message in as_messages([item])]
            continue
        if isinstance(item, str) or not isinstance(item, Sequence) or len(item) != 2:
            raise UserTypeError(f"history {number}: expected a pair of question and answer")
        turns += [
            read_turn(number, {"role": role, "content": text})
            for role, text in zip(("user", "assistant"), item, strict=True)
        ]
    return turns


def preference(record: Record) -> list[Turn]:
    """The turns with the chosen answer; the rejected one is not read, since nothing should imitate it."""
    chosen = _as_list(record.take("chosen"))  # one message in LLaMA-Factory's, after those of the conversation
    if not _is_list(chosen):
        text = _text("chosen", chosen)
        if _ROUND.match(text):
            return _beside_prompt(record, _rounds(text))
        chosen = [{"role": "assistant", "content": text}]
    turns = _listed(record, "chosen", chosen)
    if any(turn.role != "assistant" for turn in turns):
        return _beside_prompt(record, turns)
    if record.first(PROMPTS) is None and record.first(MESSAGES) is not None:
        return [*messages(record), *turns]
    missing = f"chosen is an answer alone: expected one of {', '.join(PROMPTS)} or of {', '.join(MESSAGES)} beside it"
    return [*_question(record, missing), *turns]


def preferred(record: Record) -> list[Turn]:
    """OpenAI's preference data: ``input`` holds messages and tools, ``preferred_output`` the better answer."""
    given = record.take("input")
    given = parsed(given) if isinstance(given, str) else given
    if not isinstance(given, Mapping):
        raise UserTypeError(f"input: expected an object with messages, got {type(given).__name__}")
    inner = Record(given)
    asked, tools = messages(inner), inner.take("tools")
    record.tools += read_tools(tools)
    record.keys |= {*inner.keys, *(f"input.{name}" for name in inner.unused)}
    return [*asked, *_listed(record, "preferred_output", record.take("preferred_output"))]


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


def kto(record: Record) -> list[Turn]:
    """The turns, all of them marked as not to be trained where people did not like the answer."""
    label = record.take(*LABELS)
    label = _LABELS.get(label.strip().lower()) if isinstance(label, str) else label
    if label not in (0, 1):
        raise UserError(f"label: expected true or false, got {'none' if label is None else type(label).__name__}")
    turns = messages(record) if record.first(MESSAGES) else pair(record)
    return turns if label else [replace(turn, train=False) for turn in turns]


def is_kto(record: Record) -> bool:
    """Whether a label says what people thought of the answer: true or false; 0 and 1, which might as well number a
    class, beside TRL's ``completion`` or under LLaMA-Factory's name alone."""
    label = record.peek("label")
    said = isinstance(label, bool) or (isinstance(label, str) and label.strip().lower() in ("true", "false"))
    numbered = "completion" in record and (label in (0, 1) if not isinstance(label, str) else label.strip() in _LABELS)
    lacking = "kto_tag" in record.missing or ("completion" in record and "label" in record.missing)
    answered = record.first(MESSAGES) is not None or has_pair(record)
    return answered and (said or numbered or lacking or "kto_tag" in record)


def ultrachat(record: Record) -> list[Turn]:
    """The turns of a list of texts, by turns the user's and the assistant's."""
    said = record.take("data")
    said = parsed(said) if isinstance(said, str) else said
    if isinstance(said, str) or not isinstance(said, Sequence):
        raise UserTypeError(f"data: expected a list of texts, got {type(said).__name__}")
    return [
        read_turn(index, {"role": ("user", "assistant")[index % 2], "content": text}) for index, text in enumerate(said)
    ]


def holds_texts(value: Any) -> bool:
    """Whether ``value`` may be a list of texts, or text that begins as the JSON of one."""
    if isinstance(value, str):
        return re.match(r"\s*\[\s*[\"']", value) is not None
    return isinstance(value, Sequence) and not isinstance(value, bytes)


def oasst(record: Record) -> list[Turn]:
    """A path through a tree of messages, as ``oasst.py`` makes it."""
    path = record.take("oasst_path")
    if path is None:
        raise UserError("oasst: expected rows of a tree, read from a file")
    for name in ("text", "role", "message_id", "parent_id", "message_tree_id", "user_id", "created_date"):
        record.used.add(name)
    return [read_turn(index, message) for index, message in enumerate(path)]


def tools(record: Record) -> tuple[Any, ...]:
    """The definitions of the record's tools, wherever they stand."""
    given = record.take("tools")
    legacy = record.take("functions") if given is None else None  # OpenAI's name before there were tools
    return tuple([*record.tools, *(read_tools(given) if legacy is None else read_tools(legacy, "functions"))])


def read_tools(given: Any, name: str = "tools") -> list[Any]:
    """Definitions of tools: a list, one mapping, or JSON of these, in the form that chat templates know."""
    if isinstance(given, str) and given:
        try:
            given = parsed(given)
        except ValueError as error:
            raise UserError(f"{name}: expected a list of definitions, got {error}") from None
    if given is None or given in ("", {}):
        return []
    given = [given] if isinstance(given, Mapping) else given
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise UserTypeError(f"{name}: expected a list of definitions, got {type(given).__name__}")
    read = [parsed(tool) if isinstance(tool, str) else tool for tool in given]
    return [definition for tool in read for definition in definitions(tool)]


def with_system(system: Any, turns: list[Turn]) -> list[Turn]:
    """``turns`` with ``system`` in their system turn, before its own text unless that holds ``system`` already."""
    text = _checked("system", text_of("system", system))
    if not text.strip():
        return turns
    if turns and turns[0].role == "system":
        own = turns[0].content
        return turns if text.strip() in own else [Turn("system", f"{text}\n\n{own}"), *turns[1:]]
    return [Turn("system", text), *turns]


def _as_list(value: Any) -> Any:
    """``value``, in a list where it is one message."""
    return [value] if is_message(value) else value


def _is_list(value: Any) -> bool:
    """Whether ``value`` holds messages: a list, or text that is the JSON of messages, each with a role and content.

    An answer may be JSON itself, so its beginning alone does not tell.
    """
    if not isinstance(value, str):
        return isinstance(value, Sequence) and not isinstance(value, bytes)
    if re.match(r"\s*\[\s*\{", value) is None:
        return False
    try:
        read = parsed(value)
    except ValueError:
        return False
    roles = [message[key] for message in read if is_message(message) for key in ROLE_KEYS if key in message]
    return len(roles) == len(read) and all(str(role).lower() in KNOWN_ROLES for role in roles)


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise UserTypeError(f"{name}: expected text, got {type(value).__name__}")
    return value


def _checked(place: str, text: str) -> str:
    check_text(place, text)
    return text
