"""Installing runs no code but the build, and every package of the tested set is pinned by hash."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from itertools import chain
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PIN = re.compile(r"^([A-Za-z0-9._-]+)==(\S+)", re.MULTILINE)


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(name: str) -> dict[str, str]:
    return {normal(package): version for package, version in PIN.findall((ROOT / name).read_text(encoding="utf-8"))}


def test_setup_is_one_call_with_literals() -> None:
    """Nothing is computed, read or run when the package is built."""
    docstring, imported, call = ast.parse((ROOT / "setup.py").read_text(encoding="utf-8")).body
    assert isinstance(docstring, ast.Expr)
    assert ast.unparse(imported) == "from setuptools import setup"
    assert isinstance(call, ast.Expr)
    assert isinstance(call.value, ast.Call)
    assert ast.unparse(call.value.func) == "setup"
    assert {k.arg for k in call.value.keywords} == {"packages", "package_dir", "package_data"}
    for keyword in call.value.keywords:
        ast.literal_eval(keyword.value)


def grouped(project: dict[str, Any]) -> list[str]:
    """What the dependency groups need, besides other groups."""
    return [need for group in project["dependency-groups"].values() for need in group if isinstance(need, str)]


def test_the_build_needs_setuptools_only_and_nothing_comes_from_a_url() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["build-system"]["build-backend"] == "setuptools.build_meta"
    assert [re.split(r"\W", need)[0] for need in project["build-system"]["requires"]] == ["setuptools"]
    assert "backend-path" not in project["build-system"]
    needs = [
        *project["project"]["dependencies"],
        *chain.from_iterable(project["project"]["optional-dependencies"].values()),
        *grouped(project),
    ]
    assert not [need for need in needs if "@" in need or "://" in need]


def test_the_oldest_versions_that_are_tested_are_the_floors() -> None:
    """`make oldest` takes pyproject's floors, and says itself that it got two of them."""
    needs = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    floors = dict(re.findall(r"([\w-]+)>=([\d.]+)", " ".join(needs)))
    assert floors.keys() == {re.split(r"[^\w-]", need)[0] for need in needs}, "each dependency has a floor"
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert f"'{floors['torch']}.0' and v[1] == '{floors['transformers']}.0'" in makefile
    assert f"torch=={floors['torch']}.0" in makefile


def test_what_is_imported_is_declared() -> None:
    """A package that only comes along with another goes when that one drops it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needs = [*project["dependencies"], *chain.from_iterable(project["optional-dependencies"].values())]
    declared = {normal(re.split(r"[^A-Za-z0-9._-]", need)[0]) for need in needs}
    imported = set()
    for path in (ROOT / "fastdss").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                imported.add(node.module.partition(".")[0])
    theirs = imported - sys.stdlib_module_names - {"fastdss"}
    named = {{"yaml": "pyyaml"}.get(name, normal(name)) for name in theirs}
    # Packages whose objects are taken where somebody uses them, a plugin's own, and datasets' kind of processes.
    assert named - declared == {"axolotl", "pydantic", "deepspeed", "pandas", "multiprocess"}


def test_every_tested_version_is_locked_by_hash() -> None:
    tested, locked = pins("constraints.txt"), pins("requirements.lock")
    assert len(tested) >= 15
    assert {name: locked.get(name) for name in tested} == tested
    blocks = re.split(r"(?m)^(?=[A-Za-z0-9])", (ROOT / "requirements.lock").read_text(encoding="utf-8"))
    packages = [block for block in blocks if PIN.match(block)]
    assert len(packages) == len(locked)
    assert all(re.search(r"--hash=sha256:[0-9a-f]{64}", block) for block in packages)


def test_what_the_project_names_is_in_the_lock() -> None:
    """flash-attn is built from source by its users: it is in no lock and no test."""
    whole = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    project = whole["project"]
    needs = [
        *project["dependencies"],
        *chain.from_iterable(v for k, v in project["optional-dependencies"].items() if k != "flash"),
        *grouped(whole),
    ]
    named = {normal(re.split(r"[^A-Za-z0-9._-]", need)[0]) for need in needs}
    assert named - pins("requirements.lock").keys() == set()
