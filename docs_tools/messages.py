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
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _RAISED and node.args:
                said = _text(node.args[-1])
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


def _text(node: ast.expr) -> str:
    """The constant parts of a string expression, the others as gaps."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part) for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _text(node.left) + _text(node.right)
    return GAP
