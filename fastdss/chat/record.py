"""A record of a file: its columns, by which names formats know them, and which of them were used."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .turns import is_missing

SCORES = ("star", "scores", "ends", "flags", "error")  # what fastdss itself writes beside a conversation
# Names of columns, as formats have them; of several with one meaning the first that is there counts.
MESSAGES = ("messages", "conversations", "conversation", "contents", "chat_messages")
PROMPTS = ("prompt", "instruction", "question", "query", "inputs", "input")
ANSWERS = ("response", "completion", "output", "answer", "targets")
CONTEXTS = ("context", "input")
SYSTEMS = ("system", "system_prompt", "systemInstruction", "system_instruction")
REASONING = ("reasoning_content", "thinking")
LABELS = ("label", "kto_tag")
MEDIA = ("image", "images", "video", "videos", "audio", "audios")
_ALONE = ("chosen", "preferred_output", "data", "star")  # each is enough to tell that a table holds conversations
_OTHERS = ("answers", "history", "tools", "functions")
_KNOWN = (*MESSAGES, *PROMPTS, *ANSWERS, *CONTEXTS, *SYSTEMS, *REASONING, *LABELS, *MEDIA, *_ALONE, *_OTHERS)


@dataclass(frozen=True)
class Columns:
    """Names of the columns where they are not those of a known format. ``id`` is optional."""

    prompt: str = "prompt"
    response: str = "response"
    messages: str = "messages"
    id: str = "id"

    @property
    def names(self) -> tuple[str, str, str, str]:
        return self.id, self.prompt, self.response, self.messages


COLUMNS = Columns()


class Record:
    """A record's columns, without missing values; remembers which were used.

    A column counts by its name in any letter case, without blanks around it: spreadsheets have "Prompt" and "Response".
    """

    def __init__(self, values: Mapping[str, Any], columns: Columns = COLUMNS) -> None:
        self.values = {name: value for name, value in values.items() if not is_missing(value)}
        self.missing = [str(name) for name in values if name not in self.values]
        self.scored = holds_scores(self.values)
        self.used = {columns.id, *(SCORES if self.scored else ())}
        self.keys: set[str] = set()  # the keys of messages that were not used
        self.tools: list[Any] = []  # definitions of tools that stand within messages
        written = {_folded(name): name for name in reversed(list(self.values))}
        self.renamed = {
            name: written[_folded(name)]
            for name in _KNOWN
            if name not in self.values and _folded(name) in written and written[_folded(name)] not in _KNOWN
        }
        renamed = {"prompt": columns.prompt, "response": columns.response, "messages": columns.messages}
        self.renamed |= {name: given for name, given in renamed.items() if given != name}

    def __contains__(self, name: str) -> bool:
        return self.renamed.get(name, name) in self.values

    def first(self, names: Sequence[str]) -> str | None:
        """The first of ``names`` that the record has and that was not used yet."""
        return next((n for n in names if n in self and self.renamed.get(n, n) not in self.used), None)

    def take(self, *names: str) -> Any:
        """The value of the first of ``names`` that is there, or None; it counts as used."""
        name = self.first(names)
        if name is None:
            return None
        name = self.renamed.get(name, name)
        self.used.add(name)
        return self.values[name]

    def peek(self, name: str) -> Any:
        return self.values.get(self.renamed.get(name, name))

    @property
    def unused(self) -> list[str]:
        return sorted(str(name) for name, value in self.values.items() if name not in self.used and value != "")


def holds_scores(values: Mapping[str, Any]) -> bool:
    """Whether a record holds scores of fastdss's: lists, or JSON. A number called ``star`` is somebody's rating."""
    return ("star" in values and not isinstance(values["star"], int | float)) or {"scores", "ends"} <= values.keys()


def is_known(name: str) -> bool:
    """Whether any format reads a column of this name."""
    return _folded(name) in {*COLUMNS.names, *_KNOWN}


def fits_columns(names: Sequence[str], columns: Columns = COLUMNS) -> bool:
    """Whether a table with these columns can hold conversations; it can be asked before a row is read."""
    given = {_folded(name) for name in names}
    known = {_folded(name) for name in (*columns.names[1:], *MESSAGES, *ANSWERS, *_ALONE)}
    return bool(known & given) or {"text", "role", "parent_id"} <= given or {"query", "answers"} <= given


def names_of(values: Mapping[str, Any]) -> str:
    """Up to twelve names of columns; the others are counted, as is what looks like no name and may be text."""
    names = [str(name) for name in values if re.fullmatch(r"[\w.\- ]{1,40}", str(name))][:12]
    rest = len(values) - len(names)
    return ", ".join(names) + (f" and {rest} more" if names and rest else "" if names else f"{rest} columns")


def _folded(name: Any) -> str:
    return str(name).strip().lower()
