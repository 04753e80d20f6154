"""Docstrings are written for ``help()``; here their literal blocks and roles become Markdown for the reference."""

from __future__ import annotations

import re
import textwrap
from typing import Any

import griffe

_ROLE = re.compile(r":(?:func|class|meth|mod):`~?([A-Za-z_.]+)`")


class Readable(griffe.Extension):
    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = readable(obj.docstring.value)


def readable(text: str) -> str:
    """``name::`` and the indented block after it as a fenced block; ``:func:`name``` as the name in code."""
    lines, out = _ROLE.sub(r"`\1`", text).split("\n"), []
    at = 0
    while at < len(lines):
        line = lines[at]
        at += 1
        if not line.rstrip().endswith("::"):
            out.append(line)
            continue
        own = len(line) - len(line.lstrip())
        block: list[str] = []
        while at < len(lines) and (not lines[at].strip() or len(lines[at]) - len(lines[at].lstrip()) > own):
            block.append(lines[at])
            at += 1
        indent = " " * own
        code = textwrap.dedent("\n".join(block)).strip("\n").split("\n")
        out += [line.rstrip()[:-1], "", f"{indent}```python", *(indent + row for row in code), f"{indent}```", ""]
    return "\n".join(out)
