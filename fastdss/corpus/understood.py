"""How a data set was read: formats, turns, and rows that cannot be used, for the user to see before hours of work."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from fastdss.chat import unspaced
from fastdss.star.scored import Flag

from .rows import FailedRow, Row

_PLACE = re.compile(r"^(?:[^:]*, )?(?:row|line) \d+: ")
_NUMBER = re.compile(r"\d+")
_MOSTLY = 0.3  # share of characters of scripts without blanks from which a conversation is counted as such: a choice


def kind_of_reason(reason: str) -> str:
    """A reason without its row's position and numbers, so that rows with the same reason are counted together."""
    return _NUMBER.sub("N", _PLACE.sub("", reason))


@dataclass
class Understood:
    """Counts over the rows that were read."""

    rows: int = 0
    conversations: int = 0
    left_out: int = 0
    failed: int = 0
    judged: int = 0
    trained: int = 0
    unspaced: int = 0
    longest: int = 0
    longest_id: str = ""
    whole: bool = True  # whether every row was read
    formats: Counter[str] = field(default_factory=Counter)
    roles: Counter[str] = field(default_factory=Counter)
    features: Counter[str] = field(default_factory=Counter)
    unused: Counter[str] = field(default_factory=Counter)
    unused_keys: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    left_out_reasons: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)  # kind of reason -> the first of it, with its place

    def add(self, row: Row | FailedRow) -> None:
        self.rows += 1
        if isinstance(row, FailedRow):
            kind = kind_of_reason(row.reason)
            self.examples.setdefault(kind, row.reason)
            if row.left_out:
                self.left_out += 1
                self.left_out_reasons[kind] += 1
            else:
                self.failed += 1
                self.reasons[kind] += 1
            return
        chat = row.conversation
        self.conversations += 1
        self.judged += len(row.judged)
        self.trained += len(chat.trained)
        self.roles.update(turn.role for turn in chat.turns)
        answers = [chat.turns[t] for t in chat.trained]
        text = "".join(turn.answer.text for turn in answers)
        self.unspaced += unspaced.share(text) > _MOSTLY
        self.features.update(
            {
                "tool calls": sum(len(turn.calls) for turn in chat.turns),
                "reasoning": sum(bool(turn.reasoning or turn.thinking[0]) for turn in chat.turns),
                "with tools": int(bool(chat.tools)),
                "answers marked as not to be trained": sum(
                    turn.role == "assistant" and not turn.train for turn in chat.turns
                ),
                "empty answers": sum(turn.role == "assistant" and turn.is_empty for turn in chat.turns),
            }
        )
        if chat.characters > self.longest:
            self.longest, self.longest_id = chat.characters, row.id
        if row.note is not None:
            self.notes[row.note] += 1
        if row.reading is not None:
            self.formats[row.reading.format] += 1
            self.unused.update(row.reading.unused)
            self.unused_keys.update(row.reading.unused_keys)

    def watching(self, rows: Iterable[Row | FailedRow]) -> Iterator[Row | FailedRow]:
        """Yields ``rows`` as they are, and counts them on the way."""
        for row in rows:
            self.add(row)
            yield row

    @property
    def main_reason(self) -> str | None:
        """The reason for which more than half of the rows fail, with the position of the first; else None."""
        kind, count = next(iter(self.reasons.most_common(1)), ("", 0))
        if count * 2 <= self.rows:
            return None
        return f"{count} of {self.rows} rows fail for one reason: {self.examples[kind]}"

    def lines(self) -> list[str]:
        """The summary that commands print."""
        found = [f"{self.rows} rows read{'' if self.whole else ' (the first of more)'}, {_counted(self.formats)}"]
        if self.main_reason:
            found.insert(0, self.main_reason)
        found.append(f"conversations: {self.conversations}; turns: {_counted(self.roles)}")
        found.append(f"judged: {self.judged} turns of the assistant; trained: {self.trained}")
        shown = Counter({name: count for name, count in self.features.items() if count})
        if shown:
            found.append(f"also: {_counted(shown)}")
        if self.unused:
            found.append(f"columns not used: {', '.join(sorted(self.unused))}")
        if self.unused_keys:
            found.append(f"keys of turns not used: {', '.join(sorted(self.unused_keys))}")
        found += [f"{count} rows {note}" for note, count in self.notes.items()]
        if self.left_out:
            found.append(f"left out, nothing to train: {self.left_out} ({_counted(self.left_out_reasons)})")
        if self.failed:
            found.append(f"not read: {self.failed}")
            found += [f"  {count} x {self.examples[kind]}" for kind, count in self.reasons.most_common(5)]
        if self.unspaced:
            found.append(
                f"scripts without blanks: {self.unspaced} conversations; their words are found by ICU's dictionaries"
            )
        if self.conversations:
            found.append(f"longest conversation: {self.longest} characters (id {self.longest_id})")
        return found


def _counted(counter: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counter.most_common()) or "none"


def summary(counts: dict[str, Any]) -> str:
    """One line about the scores of a finished manifest, whose ``counts`` are given."""
    parts = [f"{counts['scored']} conversations scored ({counts['turns']} turns)", f"{counts['failed']} failed"]
    for name, words in (("left_out", "left out, nothing to train"), ("turns_failed", "turns without scores")):
        if counts[name]:
            parts.append(f"{counts[name]} {words}")
    alone = counts["flags"].get(Flag.ONE_BOUNDARY, 0)
    if alone:
        parts.append(f"{alone} answers with one boundary only")
    return ", ".join(parts)


def why_mostly_failed(counts: dict[str, Any]) -> str | None:
    """A warning where, by the ``counts`` of a finished manifest, no row has scores, or more than half of the rows have
    none for one and the same reason; else None."""
    reasons = counts["reasons"]
    if not counts["scored"]:
        first = next(iter(reasons), "nothing is to be trained")
        return f"no row has scores ({counts['rows']} rows); the first reason: {first}"
    reason, count = next(iter(sorted(reasons.items(), key=lambda item: -item[1])), ("", 0))
    if count * 2 <= counts["rows"]:
        return None
    return f"{count} of {counts['rows']} rows have no scores for one reason: {reason}"
