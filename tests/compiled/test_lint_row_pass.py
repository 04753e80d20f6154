"""Every kernel: masked loads say what masked-out lanes hold, program ids are 64 bit before they meet a stride, and
launches go to the device of the tensors (Triton's own choice is the current one)."""

from __future__ import annotations

import ast
from pathlib import Path

KERNELS = sorted((Path(__file__).parents[2] / "kernels").glob("*.py"))


def _calls(tree: ast.AST, name: str) -> list[ast.Call]:
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [call for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr == name]


def faults(source: str) -> list[str]:
    """Lines of kernel code that break a rule."""
    tree = ast.parse(source)
    found = []
    for call in _calls(tree, "load"):
        given = {keyword.arg for keyword in call.keywords}
        if "mask" in given and "other" not in given:
            found.append(f"line {call.lineno}: masked load without other=")
    widened = {
        id(call.func.value)
        for call in _calls(tree, "to")
        if isinstance(call.func, ast.Attribute) and ast.unparse(call.args[0]) == "tl.int64"
    }
    for call in _calls(tree, "program_id"):
        if id(call) not in widened:
            found.append(f"line {call.lineno}: program_id without .to(tl.int64)")
    placed = {
        id(inner)
        for block in ast.walk(tree)
        if isinstance(block, ast.With) and "on_device_of" in ast.unparse(block.items[0])
        for inner in ast.walk(block)
    }
    for node in ast.walk(tree):
        launch = isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript)
        if launch and ast.unparse(node.func.value).endswith("_kernel") and id(node) not in placed:
            found.append(f"line {node.lineno}: launch on whatever device is current")
    return found


def test_kernels_keep_the_rules() -> None:
    assert len(KERNELS) > 5
    assert [f"{path.name}, {fault}" for path in KERNELS for fault in faults(path.read_text())] == []


def test_the_lint_finds_what_it_is_for() -> None:
    assert faults("x = tl.load(p + i, mask=m)") == ["line 1: masked load without other="]
    assert faults("row = tl.program_id(0)") == ["line 1: program_id without .to(tl.int64)"]
    assert faults("row = tl.program_id(0).to(tl.int64)\nx = tl.load(p + row, mask=m, other=0.0)") == []
    assert faults("row_kernel[(1,)](x)") == ["line 1: launch on whatever device is current"]
    assert faults("with on_device_of(x):\n    row_kernel[(1,)](x)") == []
