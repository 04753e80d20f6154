"""``fastdss check``: how a data set is read, and its first conversation as the guard and the policy will see it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from fastdss.chat.conversation import Conversation

from .plan import UNIQUE
from .rows import DATA, NAMING, DataOptions, Row, read_rows
from .sources import Source
from .understood import Understood

SECONDS = 10.0  # after which reading ends: a choice, since the user waits for the answer
_SHOWN = 2_000  # characters of one text, about a screen
_NO_LIMIT = 1 << 30  # a tokenizer without a known context has a larger model_max_length (transformers: 1e30)


@dataclass(frozen=True)
class Checked:
    """What was found. ``usable``: whether the data can be scored, and guard and model take its first conversation."""

    understood: Understood
    lines: list[str]
    usable: bool


def check(
    source: Sequence[Source],
    data: DataOptions = DATA,
    *,
    guard: str | None = None,
    spec: str | None = None,
    guard_options: Mapping[str, Any] | None = None,
    model: str | None = None,
    limit: int = 10_000,
) -> Checked:
    """Read at most ``limit`` rows, for at most ``SECONDS``, and say what was found.

    guard, model: names or folders. Of each only the configuration and the tokenizer are read, not the weights. The
    longest conversation is compared with its context, and the first is shown as it will see it.
    """
    understood, repeated = Understood(whole=False), _Repeated()
    first = longest = None
    end = time.monotonic() + SECONDS
    rows = read_rows(source, data)
    for row in islice(rows, limit):
        understood.add(row)
        if isinstance(row, Row):
            repeated.add(row)
            first = first or row
            if longest is None or row.conversation.characters > longest.conversation.characters:
                longest = row
        if time.monotonic() > end:
            break
    understood.whole = next(rows, None) is None
    lines = [*understood.lines(), *repeated.lines()]
    usable = understood.conversations > 0 and understood.main_reason is None and not repeated.ids
    if not understood.conversations:
        lines.append(f"nothing can be scored; {NAMING}" if understood.rows else "there are no rows in it")
    if first is not None and longest is not None:
        views: list[_GuardView | _PolicyView] = []
        views += [_GuardView(guard, spec, guard_options or {})] if guard is not None else []
        views += [_PolicyView(model)] if model is not None else []
        for view in views:
            lines += ["", *view.report(first.conversation, first.judged, longest)]
            usable = usable and view.accepted
    return Checked(understood, lines, usable)


class _Repeated:
    """Rows that say again what another one says, and ids that name several rows, which ``score`` refuses."""

    def __init__(self) -> None:
        self.known_ids: set[str] = set()
        self.known_chats: dict[str, str] = {}  # by hash, the id of the first
        self.ids: list[str] = []
        self.chats: list[tuple[str, str]] = []

    def add(self, row: Row) -> None:
        if not (row.reading and row.reading.scored):  # what is scored is asked for by its position
            if row.id in self.known_ids:
                self.ids.append(row.id)
            self.known_ids.add(row.id)
        if row.content_hash in self.known_chats:
            self.chats.append((self.known_chats[row.content_hash], row.id))
        self.known_chats.setdefault(row.content_hash, row.id)

    def lines(self) -> Iterator[str]:
        if self.ids:
            count = f"rows whose id a row before has: {len(self.ids)}"
            yield f"{count}, the first {self.ids[0]!r}; ids must be unique: {UNIQUE}"
        if self.chats:
            first, again = self.chats[0]
            count = f"conversations that a row before has word for word: {len(self.chats)}"
            yield f"{count}, the first {again!r} as {first!r}; each is scored and trained again"


class _GuardView:
    """Shows conversations as a guard reads them, without loading its weights."""

    def __init__(self, name: str, spec: str | None, options: Mapping[str, Any]) -> None:
        from .guards import GuardSource

        self.name, self.accepted = name, True
        _, _, (self.encoder, *_), self.spec = GuardSource(name, spec, options=options).described()
        self.context = self.encoder.tokenizer.model_max_length

    def text(self, conversation: Conversation, turn: int) -> str:
        answer = {"role": "assistant", "content": conversation.turns[turn].answer.text}
        return self.encoder.render([[*conversation.before(turn), answer]], generation_prompt=self.spec.head == "words")[
            0
        ]

    def report(self, conversation: Conversation, judged: Sequence[int], longest: Row) -> list[str]:
        lines = []
        try:
            texts = [self.text(longest.conversation, turn) for turn in longest.judged]
            size = max(map(len, self.encoder.tokenize(texts)))
            over = " (too long: --max-tokens scores what fits)" if size > self.context else ""
            room = f" of {self.context}" if self.context < _NO_LIMIT else ""
            lines.append(f"longest conversation for the guard {self.name}: {size} tokens{room}{over}")
            lines += ["the first conversation as the guard sees its last judged turn:"]
            lines.append(_cut(self.text(conversation, judged[-1])))
        except (TypeError, ValueError) as error:
            self.accepted = False
            lines.append(f"the guard {self.name} does not take it: {error}")
        return lines


class _PolicyView:
    """Shows conversations as a policy is trained on them, without loading its weights."""

    def __init__(self, name: str) -> None:
        from fastdss.chat.policy import PolicyChat
        from fastdss.models.sources import find_source, read_config, read_tokenizer

        source = find_source("model", name)
        self.name, self.accepted = name, True
        self.tokenizer = read_tokenizer(source)
        self.policy = PolicyChat(self.tokenizer)
        config = read_config(source).get_text_config()
        self.context = getattr(config, "max_position_embeddings", None)

    def report(self, conversation: Conversation, judged: Sequence[int], longest: Row) -> list[str]:
        lines = []
        try:
            size = len(self.policy.render(longest.conversation, longest.judged).encoding.ids)
            over = " (it will be cut: --max-length)" if self.context and size > self.context else ""
            lines.append(f"longest conversation for the model {self.name}: {size} tokens of {self.context}{over}")
            if conversation.tools and not self.policy.shows_tools:
                lines.append("the model's chat template has no place for tools: it will not see their definitions")
            if any(t.reasoning or t.thinking[0] for t in conversation.turns) and self.policy.reasoning_key is None:
                lines.append("the model's chat template knows no reasoning: it stays text")
            lines.append("the first conversation as the model is trained on it; what it learns to write is marked:")
            lines.append(self._marked(conversation, judged))
        except (TypeError, ValueError) as error:
            self.accepted = False
            lines.append(f"the model {self.name} does not take it: {error}")
        return lines

    def _marked(self, conversation: Conversation, judged: Sequence[int]) -> str:
        rendered = self.policy.render(conversation, judged)
        ids, shown, position = rendered.encoding.ids, "", 0
        for written in sorted(rendered.written.values(), key=lambda written: written.first):
            shown += _cut(self.tokenizer.decode(ids[position : written.first]))
            shown += f"[[{_cut(self.tokenizer.decode(ids[written.first : written.last + 1]))}]]"
            position = written.last + 1
        return shown + _cut(self.tokenizer.decode(ids[position:]))


def _cut(text: str | list[str]) -> str:
    """The text with unprintable characters as their numbers, its middle left out where it is longer than a screen."""
    text = text if isinstance(text, str) else "".join(text)
    text = "".join(c if c.isprintable() or c == "\n" else f"\\x{ord(c):02x}" for c in text)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN // 2]} … {text[-_SHOWN // 2 :]}"
