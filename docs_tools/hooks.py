"""Hooks of mkdocs: pages that stand elsewhere in the repository, links out of ``docs/``, and formulas as MathML."""

from __future__ import annotations

import contextlib
import io
import os
import posixpath
import re
from html import unescape
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File

from docs_tools import messages

ROOT = Path(__file__).resolve().parents[1]
PAGES = {  # a file of the repository -> the page that shows it
    "SECURITY.md": "security.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changes.md",
    "fastdss/guards/tiny_guard/README.md": "tiny_guard.md",
    "benchmarks/results/safety.md": "safety_rows.md",
    "benchmarks/results/safety_embedded.md": "safety_embedded.md",
    "benchmarks/results/guard_misses.md": "guard_misses.md",
}
TITLES = {  # of those that have none
    "safety_rows.md": "Every line of the safety table",
    "safety_embedded.md": "Harm anywhere in an answer: all tables",
    "guard_misses.md": "What the built-in guard misses",
}
COMMANDS = ("check", "score", "report", "merge", "guards", "train", "demo")
_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?!https?:|#|mailto:)([^)#\s]+)(#[^)\s]*)?\)")
# What no line may end within: an interval, which breaks behind its dash, and the hyphens that an option begins with.
_WHOLE = re.compile(r"(?:\d+/\d+ |\d+ ?% )?\[[\d.]+–[\d.]+\]|\(\d+–\d+\)|(?<=<code>)--?[a-z][a-z-]*")
_CLASS = re.compile(r"(?<=<td><code>)\w+?(?=For[A-Z]\w+</code>)")  # long names of a table's first column
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


def on_files(files: Any, config: Any) -> Any:
    for source, page in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        text = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)  # the front matter of a model card
        text = f"# {TITLES[page]}\n\n{text}" if page in TITLES else text
        files.append(File.generated(config, page, content=moved(text, source, page)))
    files.append(File.generated(config, "commands.md", content=commands()))
    files.append(File.generated(config, "messages.md", content=messages.page()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    source = page.file.src_uri
    return markdown if source in PAGES.values() else moved(markdown, f"docs/{source}", source)


def on_page_content(html: str, page: Any, config: Any, files: Any) -> str:
    html = _CLASS.sub(r"\g<0><wbr>", html)
    return _WHOLE.sub(r'<span class="whole">\g<0></span>', _FORMULA.sub(_mathml, html))


def moved(text: str, source: str, page: str) -> str:
    """``text`` of the repository's file ``source`` with its relative links as those of the site's page ``page``.

    A link to a file that has no page becomes its path, or a link into the repository where PROJECT_URL is set.
    """

    def link(found: re.Match[str]) -> str:
        words, target, anchor = found[1], found[2], found[3] or ""
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        if path.startswith("docs/"):
            place = path.removeprefix("docs/")
        elif path in PAGES:
            place = PAGES[path]
        else:
            if not (ROOT / path).exists():
                raise FileNotFoundError(f"{source} links to {path}, which does not exist")
            url = os.environ.get("PROJECT_URL", "")
            return f"[{words}]({url}/blob/main/{path})" if url else f"{words} (`{path}`)"
        return f"[{words}]({posixpath.relpath(place, posixpath.dirname(page) or '.')}{anchor})"

    return _LINK.sub(link, text)


def commands() -> str:
    """The page of the command line, as each command prints it."""
    parts = ["# Commands\n", "What `fastdss COMMAND --help` prints. `fastdss --version` says which fastdss this is.\n"]
    parts += [f"## fastdss {name}\n\n```text\n{_help(name)}```\n" for name in COMMANDS]
    return "\n".join(parts)


def _help(command: str) -> str:
    from fastdss.cli import main

    columns, said = os.environ.get("COLUMNS"), io.StringIO()
    os.environ["COLUMNS"] = "96"
    try:
        with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
            main([command, "--help"])
    finally:
        if columns is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = columns
    return said.getvalue()


def _mathml(found: re.Match[str]) -> str:
    display = "block" if found[2] == "[" else "inline"
    return f'<{found[1]} class="formula">{convert(unescape(found[3]).strip(), display=display)}</{found[1]}>'
