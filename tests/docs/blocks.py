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


def lines(page: Path) -> Iterator[tuple[str, str]]:
    """Each shell command of a page as its place and text: continued lines joined."""
    for block in blocks(page, "bash", "sh", "console"):
        for line in block.text.replace("\\\n", " ").split("\n"):
            if shlex.split(line, comments=True):
                yield block.place, line.removeprefix("$ ")


def words_of(line: str) -> list[str]:
    """Without the comment, and without the file that the output goes to."""
    words = shlex.split(line, comments=True)
    return words[: next((at for at, word in enumerate(words) if word.startswith(">")), None)]


def commands(page: Path) -> Iterator[tuple[str, list[str]]]:
    """The same as words."""
    for place, line in lines(page):
        yield place, words_of(line)
