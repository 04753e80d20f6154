"""A scorer that costs nothing, and rows for it."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from dataclasses import dataclass, field
from pathlib import Path

from fastdss.corpus.store import ScoredRow, ScoredTurn

CANARY = "canary7f3a91"


@dataclass
class FakeScorer:
    """Scores that depend on the text alone. ``seen`` holds the ids it was asked for."""

    name: str = "fake"
    broken: bool = False  # no row may reach it
    suicide_note: str | None = None  # a file: the first process that does not find it makes it and dies
    seen: list[str] = field(default_factory=list)

    def identity(self):
        return {"guard": self.name, "revision": self.name, "template_hash": "none", "options": {}, "scoring_version": 1}

    def settle(self, earlier):
        return {}

    def score_rows(self, rows, report):
        assert not self.broken, "the guard was about to load"
        if self.suicide_note is not None and not Path(self.suicide_note).exists():
            Path(self.suicide_note).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        self.seen += [row.id for row in rows]
        report(len(rows))
        return [fake_score(row) for row in rows]


def fake_score(row):
    turns = []
    for t in row.judged:
        words = row.conversation.turns[t].answer.text.split()
        digests = [hashlib.sha256(" ".join(words[: k + 1]).encode()).digest()[0] / 256 for k in range(len(words))]
        turns.append(ScoredTurn(t, digests, list(range(1, len(words) + 1)), []))
    return ScoredRow(row.id, row.content_hash, turns)


def conversations(count, first=0):
    return [
        {"id": f"row-{i}", "prompt": f"Question {i}?", "response": f"Answer {i} in some words, {CANARY}."}
        for i in range(first, first + count)
    ]


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def content_of(folder):
    """What a run left for readers: every file but locks and what was set aside."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file() and not path.name.startswith(".lock") and path.suffix != ".damaged"
    }
