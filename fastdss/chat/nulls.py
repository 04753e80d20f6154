"""Nulls: values of their own in Python and in JSON; in a row of Arrow also what fills the fields that others have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .shapes import is_message
from .turns import CONTENT_KEYS, ROLE_KEYS

_TOOLS = ("tools", "functions")


def without_nulls(value: Any) -> Any:
    """The value without the null fields of its mappings: a struct of Arrow has every field that any row has. Only a
    message keeps its content that is null, since that says that it is empty."""
    if isinstance(value, Mapping):
        return {name: without_nulls(inner) for name, inner in value.items() if inner is not None or keeps(value, name)}
    if isinstance(value, list):
        return [without_nulls(inner) for inner in value]
    return value


def keeps(mapping: Mapping[str, Any], name: str) -> bool:
    """Whether a null of this name says something in a mapping of Arrow's."""
    return name in CONTENT_KEYS[:2] and any(key in mapping for key in ROLE_KEYS)


def as_meant(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """A record of Python's, of which nobody knows where it comes from, without nulls that Arrow put in.

    ``dataset[:8]`` and ``list(dataset)`` are plain dictionaries with Arrow's nulls. They show it: all messages of a
    list have the same fields, and some field that is not the content is null, as nobody writes messages by hand. In the
    definition of a tool a null means nothing but as the default of a parameter.
    """
    chats = [messages for value in record.values() if (messages := _messages(value))]
    alike = all(message.keys() == chat[0].keys() for chat in chats for message in chat)
    filled = any(message[name] is None and not keeps(message, name) for m in chats for message in m for name in message)
    cleaned = record.keys() if alike and filled else [name for name in _TOOLS if _has_null(record.get(name))]
    return {name: without_nulls(value) if name in cleaned else value for name, value in record.items()}


def _messages(value: Any) -> list[Mapping[str, Any]]:
    found = value if isinstance(value, list) else []
    return found if all(map(is_message, found)) else []


def _has_null(tools: Any) -> bool:
    """Whether a field that is no parameter's default is null somewhere in definitions of tools."""
    if isinstance(tools, Mapping):
        return any((inner is None and name != "default") or _has_null(inner) for name, inner in tools.items())
    return isinstance(tools, list) and any(map(_has_null, tools))
