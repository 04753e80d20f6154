"""Every error message of fastdss as it stands in the code, for the page that lists them and the test of the pages."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
GAP = "…"  # what a message fills in
_RAISED = (
    "UserError",
    "UserTypeError",
    "RowError",
    "ForeignManifestError",
    "MissingExtraError",
    "ValueError",
    "TypeError",
)
_AREAS = {  # folder of the package -> heading
    "corpus": "Data sets",
    "chat": "Conversations",
    "guards": "Guards",
    "star": "Scores",
    "prefix": "Scores",
    "loss": "Losses",
    "models": "Training",
    "train": "Training",
    "integrations": "Training",
    "score_report": "Reports",
    "demo": "Demo",
}


def messages() -> dict[str, list[str]]:
    """By area, the messages of what fastdss refuses, ``…`` standing for what they fill in."""
    found: dict[str, set[str]] = {}
    for path in sorted((ROOT / "fastdss").rglob("*.py")):
        inside = path.relative_to(ROOT / "fastdss").parts
        area = _AREAS.get(inside[0], "Elsewhere")
        tree = ast.parse(path.read_text(encoding="utf-8"))
        named = {
            target.id: node.value
            for node in tree.body
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _RAISED and node.args:
                said = _text(node.args[-1], named)
                if len(said.replace(GAP, "")) > 12:
                    found.setdefault(area, set()).add(said)
    return {area: sorted(found[area]) for area in sorted(found)}


def page() -> str:
    parts = [
        "# Every error message\n",
        "As they stand in the code; `…` is filled in with a name, a number or a row, never with text of the data. What "
        "to do is part of most; [Questions and troubleshooting](questions.md) says more of those that people meet.\n",
    ]
    for area, said in messages().items():
        parts += [f"## {area}\n", *(f"- `{text.replace('`', chr(39))}`" for text in said), ""]
    return "\n".join(parts)


def _text(node: ast.expr, named: dict[str, ast.expr]) -> str:
    """The constant parts of a string expression, the others as gaps. named: the module's constants."""
    if isinstance(node, ast.FormattedValue):
        return _text(node.value, named)
    if isinstance(node, ast.Name) and node.id in named:
        return _text(named[node.id], {})
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part, named) for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _text(node.left, named) + _text(node.right, named)
    return GAP
