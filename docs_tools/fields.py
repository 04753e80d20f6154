"""Fields of a class for the reference: the comment behind a field says what it is, so it is said once, in the code."""

from __future__ import annotations

import ast
from typing import Any

from griffe import Class, Extension, Inspector, ObjectNode, Visitor


class Fields(Extension):
    """Adds a section of attributes to the docstring of a class whose fields have comments on their lines."""

    def on_class_members(self, *, node: ast.AST | ObjectNode, cls: Class, agent: Visitor | Inspector, **_: Any) -> None:
        if not (isinstance(node, ast.ClassDef) and isinstance(agent, Visitor) and cls.docstring):
            return
        if "\nArgs:" in cls.docstring.value:
            return
        source = agent.code.splitlines()
        said = {_name(field): _comment(source[(field.end_lineno or 0) - 1]) for field in node.body}
        lines = [f"    {name}: {comment}" for name, comment in said.items() if name and comment]
        if lines:
            cls.docstring.value = "\n".join([cls.docstring.value.rstrip(), "", "Attributes:", *lines])


def _name(field: ast.stmt) -> str:
    """Of the field that a class's statement defines; empty where it defines none."""
    target = field.target if isinstance(field, ast.AnnAssign) else None
    if isinstance(field, ast.Assign) and len(field.targets) == 1:
        target = field.targets[0]
    return target.id if isinstance(target, ast.Name) and not target.id.startswith("_") else ""


def _comment(line: str) -> str:
    """What the line's last comment says; a comment for the type checker says nothing."""
    said = line.rpartition("  # ")[2] if "  # " in line else ""
    return "" if said.startswith("type: ") else said.strip()
