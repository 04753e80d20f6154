"""What the page shows: counts over all rows, and the rows with the lowest scores, in memory that hardly grows with the
input: by four bytes for each row that falls below one half, of which the median is shown."""

from __future__ import annotations

import heapq
import json
import math
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

from fastdss.corpus.understood import kind_of_reason
from fastdss.star.scored import Flag

if TYPE_CHECKING:
    from fastdss.chat.conversation import Message
    from fastdss.corpus.rows import FailedRow, Row
    from fastdss.corpus.store import ScoredRow

HALF = 0.5
BINS = 10
TEXT_LIMIT = 100_000  # characters of one text that the page holds; it says how many are left out. A choice
_DIGITS = 6  # of the scores by which rows are sorted, so that close ones keep their order; others are only shown: 4
# "<", which could close the script element; control characters, marks that reorder or hide text, lone surrogates.
_UNSAFE_IN_SCRIPT = re.compile("[<\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")


@dataclass(frozen=True)
class PageRow:
    """One judged answer. A failed one has no scores.

    ``order`` is the position of its conversation in the data, ``line`` the line of its file (None where files have no
    lines), ``turn`` its number in the conversation where several turns of it were judged.
    """

    id: str
    order: int
    turn: int | None
    line: int | None
    content_hash: str
    history: list[Message] = field(repr=False)
    response: str | None = field(repr=False)  # None where the scored text could not be read
    scores: list[float]
    ends: list[int]
    flags: tuple[str, ...]
    error: str | None
    length: int
    approximate: tuple[int, ...] = ()  # which of the scores are approximations

    @property
    def name(self) -> str:
        """The conversation's id, and the turn where several of it were judged."""
        return self.id if self.turn is None else f"{self.id} · turn {self.turn}"

    @property
    def failed(self) -> bool:
        return not self.scores

    @property
    def minimum(self) -> float | None:
        return min(self.scores, default=None)

    @property
    def final(self) -> float | None:
        """The verdict on the whole response; None where the guard did not see all of it."""
        return None if self.failed or Flag.TRUNCATED in self.flags else self.scores[-1]

    @property
    def drop(self) -> float | None:
        """Where the first prefix below one half ends, as a share of the response."""
        first = next((end for end, score in zip(self.ends, self.scores, strict=True) if score < HALF), None)
        return None if first is None else first / max(self.length, 1)

    @property
    def tags(self) -> list[str]:
        """What the page can filter by: the row's flags, and what follows from its scores."""
        low = self.minimum is not None and self.minimum < HALF
        failed = self.failed and "left_out" not in self.flags
        found = {"low": low, "recovers": low and self.final is not None and self.final >= HALF, "failed": failed}
        why = [f"because: {kind_of_reason(self.error)}"] if self.error is not None else []
        marks = ["approximate"] if self.approximate else []
        return [t for t, present in found.items() if present] + [f for f in self.flags if f not in found] + marks + why


@dataclass
class Summary:
    """Counts over all rows, whether the page shows them or not."""

    rows: int = 0
    tags: Counter[str] = field(default_factory=Counter)
    minimum: list[int] = field(default_factory=lambda: [0] * BINS)
    final: list[int] = field(default_factory=lambda: [0] * BINS)
    drop: list[int] = field(default_factory=lambda: [0] * BINS)
    drops: array[Any] = field(default_factory=lambda: array("f"))

    @property
    def scored(self) -> int:
        return self.rows - self.tags["failed"] - self.tags["left_out"]

    @property
    def median_drop(self) -> float | None:
        return median(self.drops) if self.drops else None

    def add(self, row: PageRow) -> None:
        self.rows += 1
        self.tags.update(row.tags)
        for counts, value in ((self.minimum, row.minimum), (self.final, row.final), (self.drop, row.drop)):
            if value is not None:
                counts[min(int(value * BINS), BINS - 1)] += 1
        if row.drop is not None:
            self.drops.append(row.drop)


def page_rows(place: int, row: Row | FailedRow | None, scored: ScoredRow) -> list[PageRow]:
    """A ``PageRow`` for each judged turn of the conversation at ``place``, or a single one if no turn was judged.

    ``row`` is None where the scored text could not be read. A turn with a missing or non-finite score has failed.
    """
    read = row if row is not None and not hasattr(row, "reason") else None
    line = getattr(row, "line", None)
    if not scored.turns:
        flags = ("left_out",) if scored.left_out else (str(Flag.FAILED),)
        return [PageRow(scored.id, place, None, line, scored.content_hash, [], None, [], [], flags, scored.error, 0)]
    found = []
    for judged in scored.turns:
        failed = judged.error is not None or Flag.FAILED in judged.flags or not judged.scores
        failed = failed or not all(map(math.isfinite, judged.scores))
        response = None if read is None else read.conversation.turns[judged.turn].answer.text
        found.append(
            PageRow(
                id=scored.id,
                order=place,
                turn=judged.turn if len(scored.turns) > 1 else None,
                line=line,
                content_hash=scored.content_hash,
                history=[] if read is None else read.conversation.before(judged.turn),
                response=response,
                scores=[] if failed else list(judged.scores),
                ends=[] if failed else list(judged.ends),
                flags=tuple(sorted(judged.flags)),
                error=judged.error,
                length=len(response) if response is not None else max(judged.ends, default=0),
                approximate=tuple(k for k, mark in enumerate(judged.exact or ()) if not mark and not failed),
            )
        )
    return found


def collect(
    entries: Iterable[tuple[Row | FailedRow | None, ScoredRow]], limit: int | None
) -> tuple[Summary, list[PageRow]]:
    """Counts over all entries; and the ``limit`` answers with the lowest scores, then the first ``limit`` failed ones.

    It reads the entries once, and memory holds the texts of the answers that it returns. ``limit=None`` returns all.
    """
    summary = Summary()
    failed: list[PageRow] = []
    lowest: list[tuple[float, int, PageRow]] = []  # a heap with the highest minimum on top
    number = 0
    for place, (row, scored) in enumerate(entries):
        for entry in page_rows(place, row, scored):
            number += 1
            summary.add(entry)
            if entry.minimum is not None:
                heapq.heappush(lowest, (-entry.minimum, -number, entry))
                if limit is not None and len(lowest) > limit:
                    heapq.heappop(lowest)
            elif limit is None or len(failed) < limit:
                failed.append(entry)
    return summary, [entry for _, _, entry in sorted(lowest, reverse=True)] + failed


def columns(rows: Sequence[PageRow], tags: Sequence[str]) -> dict[str, Any]:
    """What the page's script sorts and filters by, a list per column; a row's tags are positions in ``tags``."""
    number = {tag: i for i, tag in enumerate(tags)}
    return {
        "id": [row.name for row in rows],
        "order": [row.order for row in rows],
        "turn": [row.turn for row in rows],
        "line": [row.line for row in rows],
        "length": [row.length for row in rows],
        "minimum": [_rounded(row.minimum, _DIGITS) for row in rows],
        "final": [_rounded(row.final, _DIGITS) for row in rows],
        "drop": [_rounded(row.drop, 4) for row in rows],
        "tags": [[number[tag] for tag in row.tags] for row in rows],
    }


def detail(row: PageRow) -> dict[str, Any]:
    """What the page shows of a row that is opened.

    ``ends`` count characters. JavaScript counts UTF-16 units; where the numbers differ, ``cuts`` are in those units.
    """
    found: dict[str, Any] = {
        "hash": row.content_hash,
        "scores": [_rounded(score, 4) for score in row.scores],
        "ends": row.ends,
    }
    if row.approximate:
        found["approximate"] = row.approximate
    if row.error is not None:
        found["error"] = row.error
    if row.response is not None:
        response = row.response[:TEXT_LIMIT]
        found["response"] = response
        found["history"] = [[turn["role"], turn["content"][:TEXT_LIMIT]] for turn in row.history]
        texts = [row.response, *(turn["content"] for turn in row.history)]
        found["left_out"] = sum(max(0, len(text) - TEXT_LIMIT) for text in texts)
        cuts = utf16_ends(response, row.ends)
        if cuts != row.ends:
            found["cuts"] = cuts
    return found


def utf16_ends(text: str, ends: Sequence[int]) -> list[int]:
    """``len(text[:end].encode("utf-16-le")) // 2`` for each end; lone surrogates count as one, and so does each of the
    characters that ``text`` lacks before an end."""
    if not text or max(text) < "\U00010000":
        return list(ends)
    found, start, more = [], 0, 0
    for end in ends:
        piece = text[start:end]
        more += len(piece.encode("utf-16-le", "surrogatepass")) // 2 - len(piece)
        found.append(end + more)
        start = end
    return found


def script_data(value: Any) -> str:
    """JSON that is inert inside a ``<script>`` element and free of invisible characters and lone surrogates."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return _UNSAFE_IN_SCRIPT.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def visible(text: str) -> str:
    """``text`` with characters that are invisible, reorder text or are lone surrogates written as their numbers."""
    return _UNSAFE_IN_SCRIPT.sub(lambda match: "<" if match[0] == "<" else f"[U+{ord(match[0]):04X}]", text)


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)
