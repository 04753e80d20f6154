"""Lists of messages in other shapes, as lists of messages that have a role and content.

Columns of a list (``{"role": […], "content": […]}``, as ``datasets.Sequence`` of a mapping has it), rounds of a
question and an answer (``{"input": …, "output": …}``, as XTuner, Capybara and Firefly have them), LangChain's ``type``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from .turns import CONTENT_KEYS, KNOWN_ROLES, ROLE_KEYS, is_missing, parsed

_ROUNDS = (
    ("input", "output"), ("human", "assistant"), ("user", "assistant"), ("prompt", "response"), ("question", "answer"),
    ("query", "response"), ("instruction", "output"),
)  # fmt: skip


def as_messages(value: Any) -> Any:
    """``value`` as a list of messages with roles; as it is where it has none of the shapes above."""
    if isinstance(value, Mapping):
        value = _rows(value)
    if not _is_list(value):
        return value
    return [message for given in value for message in _messages(given)]


def is_round(message: Any) -> bool:
    """Whether a mapping is a question and its answer."""
    return _names(message) is not None


def is_message(message: Any) -> bool:
    """Whether a mapping looks like one message of a conversation."""
    return isinstance(message, Mapping) and any(key in message for key in ROLE_KEYS) and not _lacks_content(message)


def _lacks_content(message: Mapping[str, Any]) -> bool:
    return not any(key in message for key in (*CONTENT_KEYS, "tool_calls", "function_call"))


def _rows(columns: Mapping[str, Any]) -> Any:
    lists = list(columns.values())
    if not lists or not all(map(_is_list, lists)) or len({len(values) for values in lists}) > 1:
        return columns
    return [dict(zip(columns, row, strict=True)) for row in zip(*lists, strict=True)]


def _messages(message: Any) -> Iterator[Any]:
    if isinstance(message, str) and message.lstrip().startswith("{"):  # each the JSON of one
        with suppress(ValueError):
            message = parsed(message)
    if not isinstance(message, Mapping):
        yield message
        return
    names = _names(message)
    if names is not None:
        yield from _of_round(message, *names)
        return
    kind = message.get("type")
    if isinstance(kind, str) and kind.lower() in KNOWN_ROLES and not any(key in message for key in ROLE_KEYS):
        rest = {key: value for key, value in message.items() if key != "type"}
        data = rest.pop("data", None)
        message = {"role": kind, **rest, **(data if isinstance(data, Mapping) else {})}
    yield message


def _names(message: Any) -> tuple[str, str] | None:
    """The names under which a round has its question and its answer."""
    if not isinstance(message, Mapping) or any(key in message for key in ROLE_KEYS):
        return None
    return next((names for names in _ROUNDS if all(name in message for name in names)), None)


def _of_round(found: Mapping[str, Any], asked: str, answered: str) -> Iterator[dict[str, Any]]:
    """The messages of a round: a system text, the question, the answer with what else stands in the round."""
    rest = {key: value for key, value in found.items() if key not in ("system", asked, answered)}
    if "output_with_loss" in rest:  # XTuner's name
        rest["loss"] = rest.pop("output_with_loss")
    for role, key in (("system", "system"), ("user", asked)):
        if not is_missing(found.get(key)) and found[key] != "":
            yield {"role": role, "content": found[key]}
    yield {**rest, "role": "assistant", "content": found[answered]}


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)
