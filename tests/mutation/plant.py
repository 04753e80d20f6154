"""Plant one fault at a time in a copy of the tree and see whether the tests that should notice do."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from . import faults_loss, faults_star, faults_train
from .fault import Fault

ROOT = Path(__file__).resolve().parents[2]
FAULTS: list[Fault] = [*faults_loss.FAULTS, *faults_star.FAULTS, *faults_train.FAULTS]
_COPIED = ("fastdss", "kernels", "tests", "examples", "pyproject.toml", "setup.py", "README.md")
_LONGEST = 300  # seconds of one fault's tests


class Outcome(NamedTuple):
    caught: bool
    by: str  # the first test that failed, or how the run ended


def stale(faults: Iterable[Fault]) -> list[str]:
    """Faults whose snippet does not stand in its file exactly once: the code moved on without them."""
    found = []
    for fault in faults:
        count = (ROOT / fault.file).read_text(encoding="utf-8").count(fault.old)
        if count != 1:
            found.append(f"{fault.file}: found {count} times: {fault.old!r}")
    return found


def copy_tree(folder: Path) -> None:
    """What the tests need of this tree, without caches."""
    for name in _COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
        else:
            shutil.copy(source, folder / name)


def unhurt(folder: Path, faults: Iterable[Fault]) -> None:
    """Raise ``RuntimeError`` unless the copy's tests pass without any fault: else a failure would show nothing."""
    where = subprocess.run(
        [sys.executable, "-c", "import fastdss; print(fastdss.__file__)"], cwd=folder, capture_output=True, text=True
    ).stdout.strip()
    if not Path(where).is_relative_to(folder.resolve()):
        raise RuntimeError(f"the copy's tests would import fastdss from {where}")
    for tests in sorted({fault.tests for fault in faults}):
        done = _pytest(folder, tests)
        if done.returncode:
            raise RuntimeError(f"pytest {tests} fails without any fault:\n{done.stdout[-2000:]}")


def outcome(folder: Path, fault: Fault) -> Outcome:
    """Plant ``fault`` in the copy, run its tests, take it out again."""
    with planted(folder / fault.file, fault):
        try:
            done = _pytest(folder, fault.tests)
        except subprocess.TimeoutExpired:
            return Outcome(True, f"no end within {_LONGEST} s")
    if done.returncode == 0:
        return Outcome(False, "")
    if done.returncode != 1 and "error" not in done.stdout.lower():
        raise RuntimeError(f"pytest {fault.tests}: exit status {done.returncode}\n{done.stdout[-2000:]}")
    first = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    return Outcome(True, first[1].split("[")[0] if first else "collection")


@contextmanager
def planted(path: Path, fault: Fault) -> Iterator[None]:
    whole = path.read_text(encoding="utf-8")
    path.write_text(whole.replace(fault.old, fault.new), encoding="utf-8")
    try:
        yield
    finally:
        path.write_text(whole, encoding="utf-8")


def _pytest(folder: Path, tests: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--tb=no", *shlex.split(tests)]
    settings = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(folder)}
    settings.pop("TRITON_INTERPRET", None)
    if "tests/interpreted" in tests:
        settings["TRITON_INTERPRET"] = "1"
    return subprocess.run(
        command, cwd=folder, env=settings, capture_output=True, text=True, timeout=_LONGEST, check=False
    )
