"""The layout is the architecture: imports go down only, and no two modules import each other in a circle."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "fastdss"
# Lowest first. A wing imports lower ones; the others of its own level are as closed to it as higher ones.
LEVELS = (
    ("version", "errors"),
    ("files", "optional", "upstream"),
    ("console",),
    ("chat", "models", "pages", "kernels"),
    ("loss", "prefix"),
    ("guards",),
    ("star",),
    ("corpus",),
    ("train", "score_report"),
    ("demo", "integrations"),
    ("cli",),
    ("__main__",),
)


def name_of(path: Path) -> str:
    parts = ("fastdss", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(source: str, module: str, is_package: bool) -> Iterator[str]:
    """Absolute names of all that ``module`` imports, inside functions and under TYPE_CHECKING too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            up = node.level - is_package
            base = module.split(".")[: -up or None] if node.level else []
            target = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{target}.{alias.name}" for alias in node.names)


def import_graph() -> dict[str, set[str]]:
    files = {name_of(path): path for path in PACKAGE.rglob("*.py")}
    files |= {f"fastdss.kernels.{path.stem}": path for path in (PACKAGE.parent / "kernels").glob("*.py")}
    graph = {}
    for module, path in files.items():
        found = set()
        for target in imported(path.read_text(), module, path.name == "__init__.py"):
            while target.startswith("fastdss") and target not in files:  # a name in a module
                target = target.rpartition(".")[0]
            if target in files:
                found.add(target)
        graph[module] = found - {module}
    return graph


GRAPH = import_graph()


def wing(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def level(name: str) -> int:
    return next(index for index, names in enumerate(LEVELS) if name in names)


def test_the_walk_sees_every_kind_of_import():
    source = (
        "from __future__ import annotations\nfrom typing import TYPE_CHECKING\nfrom . import ops\nfrom .call import A\n"
        "if TYPE_CHECKING:\n    from fastdss.star.scores import B\ndef f():\n    from ..train import enable\n"
    )
    found = set(imported(source, "fastdss.loss.functional", False))
    assert found >= {"fastdss.loss.ops", "fastdss.loss.call.A", "fastdss.star.scores.B", "fastdss.train.enable"}
    assert "fastdss.loss.call.A" in set(imported("from .call import A", "fastdss.loss", True))
    assert {"fastdss.loss.kept", "fastdss.loss.ops"} <= GRAPH["fastdss.loss.reduce"]
    assert "fastdss.corpus.run" in GRAPH["fastdss.corpus.commands"]  # a function imports it


def test_no_two_modules_import_each_other_in_a_circle():
    inner = {
        module: targets for module, targets in GRAPH.items() if module != "fastdss"
    }  # the facade, imported by none
    try:
        order = list(TopologicalSorter(inner).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))
    assert set(order) == inner.keys()


def test_nothing_inside_leans_on_the_public_names():
    assert [module for module, targets in GRAPH.items() if "fastdss" in targets] == []


def goes_down(module, target):
    return wing(target) == wing(module) or level(wing(target)) < level(wing(module))


def test_imports_go_down_only():
    inner = {module: targets for module, targets in GRAPH.items() if module != "fastdss"}
    up = [
        f"{module} imports {t}"
        for module, targets in sorted(inner.items())
        for t in targets
        if not goes_down(module, t)
    ]
    assert up == []
    assert goes_down("fastdss.star.scores", "fastdss.chat.policy")
    assert not goes_down("fastdss.chat.policy", "fastdss.star.scores")


def test_every_wing_has_a_level_and_says_what_it_is_for():
    wings = {path.parent.name for path in PACKAGE.glob("*/__init__.py")} | {path.stem for path in PACKAGE.glob("*.py")}
    assert wings - {"__init__"} == {name for names in LEVELS for name in names}
    for path in PACKAGE.glob("*/__init__.py"):
        doc = ast.get_docstring(ast.parse(path.read_text())) or ""
        assert "\nStart with " in doc or path.parent.name == "kernels", f"{path} does not say where to start"


def test_a_stranger_sees_wings_not_a_heap():
    assert len([path for path in PACKAGE.iterdir() if path.is_file()]) < 9


def test_what_is_refused_is_a_user_error():
    """A command prints a ``UserError`` as one line; a bare ValueError about an option would be a page of traceback."""
    bare = [
        f"{path.relative_to(PACKAGE)}:{node.lineno}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and isinstance(node.exc.func, ast.Name)
        if node.exc.func.id in ("ValueError", "TypeError")
    ]
    assert [place.partition(":")[0] for place in bare] == ["prefix/tree.py"]  # its callers are fastdss's own
