"""Where a fault stands: an expression, or statements, of one function, whatever their formatting and comments."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Any, NamedTuple

Statements = list[ast.stmt]


class Place(NamedTuple):
    """One occurrence: the node's holder, the field it stands in, and which items of that field (None: all of it)."""

    holder: ast.AST
    field: str
    items: slice | None


def scope(tree: ast.Module, within: str) -> ast.AST | None:
    """The function or class of that dotted name, the module for an empty one; None where there is none, or two."""
    found: list[ast.AST] = [tree]
    for name in within.split(".") if within else ():
        inner = [child for holder in found for child in _own(holder)]
        found = [child for child in inner if getattr(child, "name", None) == name]
    return found[0] if len(found) == 1 else None


def _own(holder: ast.AST) -> Iterator[ast.AST]:
    """Functions and classes of a scope, those in its branches among them."""
    for child in ast.iter_child_nodes(holder):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield child
        else:
            yield from _own(child)


def parsed(code: str) -> ast.expr | Statements:
    """``code`` as the expression, or the statements, that it is. Raises ``SyntaxError`` for a fragment of one."""
    if not code.strip():
        return []
    block = ast.parse(code).body
    only = block[0] if len(block) == 1 else None
    return only.value if isinstance(only, ast.Expr) else block


def places(tree: ast.Module, within: str, code: str) -> list[Place]:
    """All occurrences of ``code`` in the scope called ``within``."""
    top = scope(tree, within)
    if top is None:
        return []
    wanted = parsed(code)
    many = wanted if isinstance(wanted, list) else [wanted]
    size = len(many)
    found = []
    for holder in ast.walk(top):
        for field, value in ast.iter_fields(holder):
            if isinstance(value, list):
                parts = [slice(i, i + size) for i in range(len(value) - size + 1) if size]
                found += [Place(holder, field, part) for part in parts if all(map(_says_same, value[part], many))]
            elif size == 1 and not isinstance(holder, ast.Expr) and _says_same(value, many[0]):
                found.append(Place(holder, field, None))
    return found


def replaced(source: str, within: str, old: str, new: str) -> str:
    """The file with the one occurrence of ``old`` changed; raises ``ValueError`` where there is none, or several."""
    tree = ast.parse(source)
    found = places(tree, within, old)
    if len(found) != 1:
        raise ValueError(f"found {len(found)} times")
    (place,), stand_in = found, parsed(new)
    content: Any = getattr(place.holder, place.field)
    if place.items is None:
        if isinstance(stand_in, list):
            raise ValueError(f"expected an expression in place of one, got {new!r}")
        setattr(place.holder, place.field, stand_in)
    elif isinstance(content[place.items.start], ast.stmt):
        block = stand_in if isinstance(stand_in, list) else [ast.Expr(stand_in)]
        content[place.items] = block or [ast.Pass()]
    else:
        content[place.items] = [stand_in]
    return ast.unparse(ast.fix_missing_locations(tree)) + "\n"


def _says_same(node: Any, other: ast.AST) -> bool:
    """Whether two nodes say the same, wherever they stand; a name that is read is one that is written to."""
    node, other = _bare(node), _bare(other)
    return type(node) is type(other) and _form(node) == _form(other)


def _bare(node: Any) -> Any:
    return node.value if isinstance(node, ast.Expr) else node


def _form(node: ast.AST) -> str:
    return ast.dump(node).replace("ctx=Store()", "ctx=Load()")
