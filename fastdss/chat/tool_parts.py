"""Calls and results of tools that stand among a message's parts, in OpenAI's form.

Anthropic's parts have a ``type``; those of Bedrock and Gemini are brought into Anthropic's form first. An assistant's
calls become its ``tool_calls``. A user's results become turns of the role ``tool``, and the text around them stays the
user's, in the order in which it stands.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fastdss.errors import UserError

from .turns import KNOWN_ROLES, ROLE_KEYS

_OBJECTS = ("function", "parameters", "input_schema", "inputSchema")
_CALL, _RESULT = "tool_use", "tool_result"
_PART_KEYS = {"type", "text", "thinking", "reasoning", "refusal", "content", "tool_use_id", "id", "name", "input"}


def without_tool_parts(place: str, message: Any) -> list[Any]:
    """``[message]``, or messages that say the same without parts for calls and results."""
    content = message.get("content", message.get("parts")) if isinstance(message, Mapping) else None
    if isinstance(content, str) or not isinstance(content, Sequence):
        return [message]
    parts = [_in_known_form(part) for part in content]
    if any(part is not given for part, given in zip(parts, content, strict=True)):
        message = {**{key: value for key, value in message.items() if key != "parts"}, "content": parts}
    kinds = [part.get("type") if isinstance(part, Mapping) else "" for part in parts]
    role = next((message[key] for key in ROLE_KEYS if isinstance(message.get(key), str)), "")
    role = KNOWN_ROLES.get(role.strip().lower())
    if _CALL in kinds and role == "assistant":
        return [_with_calls(place, message, kinds)]
    if _RESULT in kinds and role in ("user", "tool"):
        return _by_turns(place, message, kinds)
    return [message]  # a call or a result in a turn of another role is refused by read_turn


def unused_in(message: Mapping[str, Any]) -> set[str]:
    """Keys of parts that say what a turn has no place for, such as ``is_error`` of a tool's result."""
    content = message.get("content")
    parts = content if isinstance(content, Sequence) and not isinstance(content, str) else ()
    known = [_in_known_form(part) for part in parts]
    parts = [part for part in known if isinstance(part, Mapping) and ("type" in part or "text" in part)]  # else data
    return {str(key) for part in parts for key in part if part[key]} - _PART_KEYS


def definitions(tool: Any) -> Iterator[Any]:
    """A tool's definition in the form that chat templates know, or the several that stand in it (Gemini's)."""
    if isinstance(tool, Mapping):
        tool = {name: _opened(value) if name in _OBJECTS else value for name, value in tool.items()}
    if not isinstance(tool, Mapping) or "function" in tool:
        function = tool["function"] if isinstance(tool, Mapping) else None
        if isinstance(function, Mapping) and "parameters" in function:
            tool = {**tool, "function": {**function, "parameters": _opened(function["parameters"])}}
        yield tool
        return
    declared = tool.get("functionDeclarations", tool.get("function_declarations"))
    if isinstance(declared, Sequence) and not isinstance(declared, str):
        for one in declared:
            yield from definitions(one)
        return
    spec = tool.get("toolSpec")  # Bedrock's
    if isinstance(spec, Mapping):
        schema = spec.get("inputSchema")
        tool = {**spec, "input_schema": schema.get("json", schema) if isinstance(schema, Mapping) else {}}
    if not isinstance(tool.get("name"), str) or tool.get("type", "function") not in ("function", "custom"):
        yield tool
        return
    schemas = (tool.get(name) for name in ("input_schema", "inputSchema", "parameters"))  # Anthropic's, MCP's
    parameters = next((schema for schema in schemas if isinstance(schema, Mapping)), tool.get("parameters"))
    dropped = ("type", "parameters", "input_schema", "inputSchema", "cache_control")
    kept = {key: value for key, value in tool.items() if key not in dropped and value is not None}
    yield {"type": "function", "function": {**kept, **({} if parameters is None else {"parameters": parameters})}}


def _opened(value: Any) -> Any:
    """``value``, or the object whose JSON it is: tables hold schemas so, since no two of them have the same fields."""
    if not isinstance(value, str):
        return value
    try:
        read = json.loads(value)
    except (ValueError, RecursionError):
        return value
    return read if isinstance(read, Mapping) else value


def _in_known_form(part: Any) -> Any:
    """A part of Bedrock's or Gemini's as Anthropic would have it; any other as it is."""
    if not isinstance(part, Mapping) or "type" in part:
        return part
    given = {key: value for key, value in part.items() if value is not None}
    called = given.get("toolUse", given.get("functionCall", given.get("function_call")))
    if isinstance(called, Mapping):
        arguments = called.get("input", called.get("args"))
        return {
            "type": _CALL,
            "id": called.get("toolUseId", called.get("id")),
            "name": called.get("name"),
            "input": arguments,
        }
    if isinstance(given.get("toolResult"), Mapping):
        result = given["toolResult"]
        return {"type": _RESULT, "tool_use_id": result.get("toolUseId"), "content": _texts(result.get("content"))}
    result = given.get("functionResponse", given.get("function_response"))
    if isinstance(result, Mapping):
        said = {"name": result.get("name"), "tool_use_id": result.get("id")}
        return {"type": _RESULT, **said, "content": json.dumps(result.get("response"), ensure_ascii=False)}
    if given.get("thought") is True and isinstance(given.get("text"), str):
        return {"type": "thinking", "thinking": given["text"]}
    return part


def _texts(parts: Any) -> Any:
    """The parts of Bedrock's result, with JSON in a part of its own as text."""
    if isinstance(parts, str) or not isinstance(parts, Sequence):
        return parts
    return [
        {"type": "text", "text": json.dumps(part["json"], ensure_ascii=False)}
        if isinstance(part, Mapping) and "json" in part
        else part
        for part in parts
    ]


def _with_calls(place: str, message: Mapping[str, Any], kinds: Sequence[Any]) -> dict[str, Any]:
    """The assistant's message with ``tool_calls``. A turn has its calls after its text: text after one is refused."""
    if message.get("tool_calls"):
        raise UserError(f"{place}: expected calls in tool_calls or in parts of content, got both")
    first, parts = kinds.index(_CALL), message["content"]
    for number in range(first, len(parts)):
        if kinds[number] != _CALL:
            raise UserError(
                f"{place}: part {number} stands after a call of a tool: expected text before the calls; split the "
                "message there, or leave the part out"
            )
    calls = [
        {"id": part.get("id"), "function": {"name": part.get("name"), "arguments": part.get("input") or {}}}
        for part in parts[first:]
    ]
    return {**message, "content": list(parts[:first]), "tool_calls": calls}


def _by_turns(place: str, message: Mapping[str, Any], kinds: Sequence[Any]) -> list[dict[str, Any]]:
    """A user's message as turns of the tools and of the user."""
    found: list[dict[str, Any]] = []
    for number, (kind, part) in enumerate(zip(kinds, message["content"], strict=True)):
        if kind == _RESULT:
            if not isinstance(part.get("tool_use_id"), str) and not isinstance(part.get("name"), str):
                raise UserError(f"{place}: part {number}: expected tool_use_id, the id of the call that it answers")
            named = {"tool_call_id": part.get("tool_use_id"), "name": part.get("name")}
            found.append({"role": "tool", **named, "content": part.get("content") or ""})
        elif found and found[-1]["role"] == "user":
            found[-1]["content"].append(part)
        else:
            found.append({**message, "role": "user", "content": [part]})
    return found
