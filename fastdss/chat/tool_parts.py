"""Calls and results of tools that stand among a message's parts, as Anthropic has them, in OpenAI's form.

An assistant's ``tool_use`` parts become its ``tool_calls``. A user's ``tool_result`` parts become turns of the role
``tool``, and the text around them stays the user's, in the order in which it stands.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastdss.errors import UserError

_CALL, _RESULT = "tool_use", "tool_result"


def without_tool_parts(place: str, message: Any) -> list[Any]:
    """``[message]``, or messages that say the same without parts for calls and results."""
    content = message.get("content") if isinstance(message, Mapping) else None
    if isinstance(content, str) or not isinstance(content, Sequence):
        return [message]
    kinds = [part.get("type") if isinstance(part, Mapping) else "" for part in content]
    if _CALL in kinds and message.get("role") == "assistant":
        return [_with_calls(place, message, kinds)]
    if _RESULT in kinds and message.get("role") == "user":
        return _by_turns(place, message, kinds)
    return [message]  # a call or a result in a turn of another role is refused by read_turn


def unused_in(message: Mapping[str, Any]) -> set[str]:
    """``is_error`` where a tool's result says that the tool failed: a turn has no place for it."""
    content = message.get("content")
    parts = content if isinstance(content, Sequence) and not isinstance(content, str) else ()
    return {"is_error" for part in parts if isinstance(part, Mapping) and part.get("is_error")}


def definition(tool: Any) -> Any:
    """A tool's definition in the form that chat templates know; one that is not in Anthropic's form stays as it is."""
    if not isinstance(tool, Mapping) or not isinstance(tool.get("input_schema"), Mapping) or "function" in tool:
        return tool
    kept = {key: tool[key] for key in ("name", "description") if tool.get(key) is not None}
    return {"type": "function", "function": {**kept, "parameters": tool["input_schema"]}}


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
            if not isinstance(part.get("tool_use_id"), str):
                raise UserError(f"{place}: part {number}: expected tool_use_id, the id of the call that it answers")
            found.append({"role": "tool", "tool_call_id": part["tool_use_id"], "content": part.get("content") or ""})
        elif found and found[-1]["role"] == "user":
            found[-1]["content"].append(part)
        else:
            found.append({**message, "content": [part]})
    return found
