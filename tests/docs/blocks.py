"""Fenced blocks of the README and of docs/, with the line at which each begins."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").rglob("*.md"))]
NOT_RUN = "<!-- not run: "  # before a block, with the reason


class Block(NamedTuple):
    page: Path
    line: int
    language: str
    text: str
    reason: str  # why it is not run, or nothing

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path, *languages: str) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for found in re.finditer(r"^( *)```(\w+)\n(.*?)^\1```$", text, re.DOTALL | re.MULTILINE):
        if found[2] in languages:
            before = text[: found.start()].rstrip().rpartition("\n")[2]
            reason = before.removeprefix(NOT_RUN).removesuffix("-->").strip() if before.startswith(NOT_RUN) else ""
            code = re.sub(rf"^{found[1]}", "", found[3], flags=re.MULTILINE)
            yield Block(page, text[: found.start()].count("\n") + 2, found[2], code, reason)


def commands(page: Path) -> Iterator[tuple[str, list[str]]]:
    """Each shell command of a page as its place and words: comments gone, continued lines joined."""
    for block in blocks(page, "bash", "sh", "console"):
        for line in block.text.replace("\\\n", " ").split("\n"):
            words = shlex.split(line.removeprefix("$ "), comments=True)
            if words:
                yield block.place, words
