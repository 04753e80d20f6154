"""One turn of a conversation as files have it: OpenAI's, ShareGPT's, axolotl's and LLaMA-Factory's keys."""

from __future__ import annotations

import ast
import io
import json
import math
import tokenize
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from fastdss.errors import UserError, UserTypeError

from .conversation import ROLES, THINK_TAGS, Call, Turn

MAX_CHARACTERS = 1_000_000  # of one message: a longer one could keep a tokenizer busy without end
KNOWN_ROLES = {
    **{role: "system" for role in ("system", "developer")},
    **{role: "user" for role in ("user", "human", "prompter")},
    **{role: "assistant" for role in ("assistant", "gpt", "model", "bot", "ai", "chatgpt", "chatbot")},
    **{role: "assistant" for role in ("function_call", "tool_call")},
    **{role: "tool" for role in ("tool", "function", "ipython", "observation", "tool_response", "function_response")},
}
ROLE_KEYS = ("role", "from", "speaker", "sender")
CONTENT_KEYS = ("content", "value", "text", "parts", "message")
CALL_ROLES = ("function_call", "tool_call")  # their content is calls as JSON
_REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")
_TRAIN_KEYS = ("weight", "train", "training", "loss")
_DETAIL_KEYS = ("training_detail", "train_detail")
_CALL_KEYS = ("tool_calls", "function_call")
_ARGUMENT_KEYS = ("arguments", "parameters", "args", "input")
_OTHER_KEYS = ("tool_call_id", "name", *_DETAIL_KEYS, "refusal")
_KEYS = frozenset((*ROLE_KEYS, *CONTENT_KEYS, *_REASONING_KEYS, *_TRAIN_KEYS, *_CALL_KEYS, *_OTHER_KEYS))
_KEYS_OF_CALLS = frozenset((*_ARGUMENT_KEYS, "name", "id", "type", "function", "index", "call_id"))
_MEDIA_KEYS = ("image", "images", "video", "videos", "audio", "audios")
# Of several keys with one meaning, the first that is not empty counts.
_NAMES_OF_ONE = (ROLE_KEYS, (*CONTENT_KEYS, "refusal"), _REASONING_KEYS, _CALL_KEYS, _DETAIL_KEYS)
NO_MEDIA = "images, audio and files cannot be judged or trained: leave such rows out"
_EXPECTED = "expected a mapping with 'role' and 'content', or 'from' and 'value'"
_CHANNELS = ("analysis", "commentary")  # of gpt-oss: what is no answer stands in messages of its own
_TEXT_PARTS = ("text", "input_text", "output_text", "refusal")
_MEDIA_PARTS = ("image", "image_url", "input_image", "audio", "input_audio", "video", "file", "input_file", "document")
_TOOL_PARTS = ("tool_use", "tool_result", "tool_call", "tool_response", "function_call", "function_response")
_PARTS = (*_TEXT_PARTS, *_MEDIA_PARTS, *_TOOL_PARTS, "thinking", "reasoning")


def read_turn(index: int, message: Any) -> Turn:
    """A turn; raises ``ValueError`` or ``TypeError`` that name its place and what was expected, never the text."""
    place = f"message {index}"
    if not isinstance(message, Mapping):
        raise UserTypeError(f"{place}: {_EXPECTED}, got {type(message).__name__}")
    given = {key: value for key, value in message.items() if not is_missing(value)}
    named = next((given[key] for key in ROLE_KEYS if key in given), None)
    if not isinstance(named, str):
        raise UserTypeError(f"{place}: {_EXPECTED}")
    role = KNOWN_ROLES.get(named.strip().lower())
    if role is None:
        raise UserError(f"{place}: unknown role, expected one of {', '.join(KNOWN_ROLES)}")
    if not any(key in message for key in (*CONTENT_KEYS, *_CALL_KEYS, *_REASONING_KEYS, "refusal")):
        raise UserTypeError(f"{place}: {_EXPECTED}")
    if any(given.get(key) for key in _MEDIA_KEYS):
        raise UserError(f"{place}: {NO_MEDIA}")
    if given.get("channel") in _CHANNELS:
        raise UserError(
            f"{place}: channel: expected the turn's final text alone, got its {given['channel']}: put reasoning into "
            "'thinking' and calls into 'tool_calls' of that turn"
        )
    content, thoughts = _content(place, given, role)
    calls = _calls(place, given)
    if named.strip().lower() in CALL_ROLES and not calls:
        calls, content = _written_calls(place, content), ""
    if calls and role != "assistant":
        raise UserError(f"{place}: only the assistant calls tools, got calls in a turn of the role {role!r}")
    reasoning = next((given[key] for key in _REASONING_KEYS if _says(given.get(key))), thoughts)
    if not isinstance(reasoning, str):
        raise UserTypeError(f"{place}: expected reasoning of text, got {type(reasoning).__name__}")
    if reasoning.strip() and role != "assistant":
        raise UserError(f"{place}: only the assistant reasons, got reasoning in a turn of the role {role!r}")
    train, untrained = _trained(place, given, content)
    if role == "assistant" and not reasoning.strip() and not untrained:
        reasoning, content = _opened_by_prompt(content)
    if role == "assistant" and reasoning.strip() == Turn(role, content).thinking[0]:
        reasoning = ""  # the content begins with the same in think tags
    turn = Turn(
        role,
        content,
        reasoning if reasoning.strip() else "",
        calls,
        _text_or_none(place, "tool_call_id", given),
        _text_or_none(place, "name", given),
        train,
        untrained,
    )
    check_text(place, turn.answer.text if role == "assistant" else content)
    return turn


def _opened_by_prompt(content: str) -> tuple[str, str]:
    """Reasoning and content of an answer whose ``<think>`` stood in the prompt, as R1's does: only its end is written,
    on a line of its own."""
    opening, closing = THINK_TAGS
    before, closed, after = content.partition(closing)
    rest = after.lstrip(" \t")
    alone = before.endswith("\n") and (not rest or rest.startswith(("\n", "\r\n")))
    if not closed or not alone or not before.strip() or opening in content or closing in after:
        return "", content
    return before.strip(), rest.lstrip()


def unused_keys(message: Mapping[str, Any]) -> set[str]:
    """Keys whose value ``read_turn`` does not use: unknown ones, and keys whose meaning another key gave before."""
    given = {key: value for key, value in message.items() if not is_missing(value)}
    unused = {str(key) for key, value in given.items() if key not in _KEYS and value not in ("", [], {})}
    calls = given.get("tool_calls")
    for call in calls if isinstance(calls, Sequence) and not isinstance(calls, str) else ():
        for part in (call, call.get("function")) if isinstance(call, Mapping) else ():
            unused |= {str(key) for key in part if key not in _KEYS_OF_CALLS} if isinstance(part, Mapping) else set()
    for names in _NAMES_OF_ONE:
        said = [key for key in names if _says(given.get(key))]
        unused |= {key for key in said[1:] if not (isinstance(given[key], str) and given[key] == given[said[0]])}
    return unused


def check_text(place: str, text: str) -> None:
    """``ValueError`` for text that no tokenizer can be given."""
    if len(text) > MAX_CHARACTERS:
        raise UserError(f"{place}: {len(text)} characters exceed the limit of {MAX_CHARACTERS}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(f"{place}: lone surrogate at character {error.start}; not valid text") from None


def is_missing(value: Any) -> bool:
    """Whether a table's cell is empty: None, or NaN as in pandas."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def _says(value: Any) -> bool:
    """Whether ``value`` is neither missing nor an empty text."""
    return not (is_missing(value) or (isinstance(value, str) and not value))


def parsed(text: str) -> Any:
    """The value of a cell that holds JSON or, as pandas writes it, Python's notation; ``ValueError`` for neither.

    Of an array numpy's notation has no commas: Python would join its texts to one, so that is refused.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise UserError("nested too deeply") from None
    except ValueError:
        pass
    try:
        value = ast.literal_eval(text)
        plain = not _joins_texts(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError, tokenize.TokenError):
        plain = False
    if not plain:
        raise UserError("text that is neither JSON nor Python's notation of a list: save it as JSON or Parquet")
    return value


def _joins_texts(text: str) -> bool:
    """Whether two texts of Python's notation stand side by side without a comma."""
    kinds = [token.type for token in tokenize.generate_tokens(io.StringIO(text).readline) if token.type != tokenize.NL]
    return any(kind == following == tokenize.STRING for kind, following in pairwise(kinds))


def text_of(place: str, value: Any) -> str:
    """The text of a cell that holds text, or a message's content in parts."""
    parts = value.get("parts", value.get("content", value)) if isinstance(value, Mapping) else value
    return _content(place, {"content": parts}, "system")[0]


def _content(place: str, given: Mapping[str, Any], role: str) -> tuple[str, str]:
    """A message's text, and its reasoning where that stands in parts of its own. A tool's result that is data and not
    text is its JSON."""
    content = next((given[key] for key in (*CONTENT_KEYS, "refusal") if _says(given.get(key))), "")
    if isinstance(content, str):
        return content, ""
    if role == "tool" and _is_data(content):
        return json.dumps(content, ensure_ascii=False), ""
    if isinstance(content, Mapping):
        content = [content]
    if not isinstance(content, Sequence):
        raise UserTypeError(f"{place}: expected text, got {type(content).__name__}")
    texts: list[str] = []
    thoughts: list[str] = []
    for number, part in enumerate(content):
        kind = part.get("type", "text") if isinstance(part, Mapping) else "text" if isinstance(part, str) else None
        text = part if isinstance(part, str) else _part_text(part) if isinstance(part, Mapping) else None
        if not isinstance(text, str) or kind not in (*_TEXT_PARTS, "thinking", "reasoning"):
            if kind in _TOOL_PARTS:
                raise UserError(
                    f"{place}: part {number} is a call of a tool or its result: expected calls in tool_calls, and "
                    "each result in a turn of the role 'tool'"
                )
            raise UserError(
                f"{place}: part {number} is no text; images, audio and files cannot be judged or trained: leave such "
                "rows out"
            )
        (texts if kind in _TEXT_PARTS else thoughts).append(text)
    return "".join(texts), "".join(thoughts)


def _is_data(content: Any) -> bool:
    """Whether a tool's result is a value of JSON, not parts of a message."""
    parts = content if isinstance(content, Sequence) else [content]
    return not all(
        isinstance(part, Mapping) and (part.keys() == {"text"} or part.get("type") in _PARTS) for part in parts
    )


def _part_text(part: Mapping[str, Any]) -> Any:
    return next(
        (part[key] for key in ("text", "thinking", "reasoning", "refusal", "content") if not is_missing(part.get(key))),
        None,
    )


def _calls(place: str, given: Mapping[str, Any]) -> tuple[Call, ...]:
    calls = given.get("tool_calls")
    if calls is None:
        calls = [given["function_call"]] if "function_call" in given else []
    if isinstance(calls, str):
        calls = (parsed(calls) if calls.strip() else None) or []
    if isinstance(calls, Mapping):
        calls = [calls]
    if not isinstance(calls, Sequence):
        raise UserTypeError(f"{place}: expected a list of tool_calls, got {type(calls).__name__}")
    return tuple(_call(place, call) for call in calls)


def _call(place: str, call: Any) -> Call:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str) or not function["name"]:
        raise UserError(f"{place}: a tool call without the name of a function")
    named = [key for key in _ARGUMENT_KEYS if not is_missing(function.get(key))]
    if not named and not function.keys() <= _KEYS_OF_CALLS:
        raise UserError(
            f"{place}: a tool call without arguments: expected them under one of {', '.join(_ARGUMENT_KEYS)}"
        )
    arguments: Any = function[named[0]] if named else {}
    if isinstance(arguments, str):
        try:
            read = json.loads(arguments) if arguments.strip() else {}
            read = json.loads(read) if isinstance(read, str) else read  # written as JSON twice
        except (ValueError, RecursionError):
            read = None
        arguments = read if isinstance(read, dict) else arguments
    elif isinstance(arguments, Mapping):
        arguments = dict(arguments)
    else:
        raise UserTypeError(f"{place}: expected the arguments of a call as an object, got {type(arguments).__name__}")
    given = call.get("id")
    return Call(function["name"], arguments, given if isinstance(given, str) and given else None)


def _written_calls(place: str, text: str) -> tuple[Call, ...]:
    """ShareGPT's ``function_call`` turns: the calls as JSON text."""
    try:
        calls = json.loads(text)
    except (ValueError, RecursionError):
        raise UserError(f"{place}: a function_call that is no JSON") from None
    return tuple(_call(place, call) for call in (calls if isinstance(calls, list) else [calls]))


def _trained(place: str, given: Mapping[str, Any], content: str) -> tuple[bool, tuple[tuple[int, int], ...]]:
    """Whether the turn is to be learnt, and the character spans of ``content`` that are not."""
    train = True
    for key in _TRAIN_KEYS:
        if key in given:
            if given[key] not in (0, 1):
                raise UserError(f"{place}: {key}: expected 0, 1, false or true, got {type(given[key]).__name__}")
            train = train and bool(given[key])
    details = next((given[key] for key in _DETAIL_KEYS if given.get(key)), ())
    spans = []
    for detail in details:
        try:
            begin, end, kept = int(detail["begin_offset"]), int(detail["end_offset"]) + 1, bool(detail["train"])
        except (KeyError, TypeError, ValueError):
            raise UserError(f"{place}: training_detail: expected begin_offset, end_offset and train") from None
        if not 0 <= begin < end <= len(content):
            raise UserError(f"{place}: training_detail: {begin} to {end - 1} lies outside of {len(content)} characters")
        if not kept:
            spans.append((begin, end))
    merged: list[tuple[int, int]] = []
    for begin, end in sorted(spans):
        if merged and begin <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((begin, end))
    return train, tuple(merged)


def _text_or_none(place: str, key: str, given: Mapping[str, Any]) -> str | None:
    value = given.get(key)
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise UserTypeError(f"{place}: {key}: expected text, got {type(value).__name__}")
    check_text(place, value)
    return value


assert set(KNOWN_ROLES.values()) == set(ROLES)
