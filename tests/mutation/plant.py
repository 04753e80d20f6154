"""Plant one fault at a time in a copy of the tree and see whether the tests that should notice do."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple, TextIO

import pytest

from . import (
    faults_approx,
    faults_chat,
    faults_demo,
    faults_engine,
    faults_fused,
    faults_guards,
    faults_loss,
    faults_star,
    faults_train,
)
from .anchor import replaced
from .fault import Fault

ROOT = Path(__file__).resolve().parents[2]
_AREAS = (
    faults_loss,
    faults_fused,
    faults_star,
    faults_engine,
    faults_approx,
    faults_guards,
    faults_chat,
    faults_train,
    faults_demo,
)
FAULTS: list[Fault] = [fault for area in _AREAS for fault in area.FAULTS]
_FOLDERS = ("fastdss", "kernels", "tests", "examples", "training", "benchmarks")
_COPIED = (*_FOLDERS, "pyproject.toml", "setup.py", "README.md")
_LONGEST = 300  # seconds of one fault's tests


class Done(NamedTuple):
    status: int | None  # None: it did not end
    output: str


class Outcome(NamedTuple):
    caught: bool
    by: str  # the first test that failed, or how the run ended


def stale(faults: Iterable[Fault]) -> list[str]:
    """Faults that have no place any more, or several, with the reason: the code moved on without them."""
    return [
        f"{fault.file}, {fault.within or 'anywhere'}: {why}: {fault.old!r}" for fault, why in _without_place(faults)
    ]


def fresh(faults: Iterable[Fault]) -> list[Fault]:
    """Those that have their place."""
    gone = {id(fault) for fault, _ in _without_place(faults)}
    return [fault for fault in faults if id(fault) not in gone]


def _without_place(faults: Iterable[Fault]) -> Iterator[tuple[Fault, str]]:
    for fault in faults:
        try:
            replaced(_source(fault.file), fault.within, fault.old, fault.new)
        except SyntaxError as error:
            yield fault, f"no expression or statements ({error.msg})"
        except (OSError, ValueError) as error:
            yield fault, str(error)


@cache
def _source(file: str) -> str:
    return (ROOT / file).read_text(encoding="utf-8")


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
    files = sorted({fault.tests.split()[0] for fault in faults})
    apart = {name for name in files if "interpreted" in name}
    for together in (sorted(apart), [name for name in files if name not in apart]):
        done = _run(folder, " ".join(together), _LONGEST * 10) if together else Done(0, "")
        if done.status:
            raise RuntimeError(f"{' '.join(together)}: fails without any fault\n{done.output[-2000:]}")


def outcome(folder: Path, fault: Fault, *, fork: bool = True) -> Outcome:
    """Plant ``fault`` in the copy, run its tests, take it out again."""
    with planted(folder / fault.file, fault):
        done = _run(folder, fault.tests, _LONGEST, fork=fork)
    if done.status is None:
        return Outcome(True, f"no end within {_LONGEST} s")
    if done.status == 0:
        return Outcome(False, "")
    if done.status == pytest.ExitCode.NO_TESTS_COLLECTED or done.status == pytest.ExitCode.USAGE_ERROR:
        raise RuntimeError(f"pytest {fault.tests}: nothing ran\n{done.output[-2000:]}")
    first = re.search(r"^(?:FAILED|ERROR) (\S+)", done.output, re.MULTILINE)
    return Outcome(True, first[1].split("[")[0] if first else "collection")


@contextmanager
def planted(path: Path, fault: Fault) -> Iterator[None]:
    whole = path.read_text(encoding="utf-8")
    path.write_text(replaced(whole, fault.within, fault.old, fault.new), encoding="utf-8")
    try:
        yield
    finally:
        path.write_text(whole, encoding="utf-8")


def warm_up() -> None:
    """Import what tests import anyway, and nothing of this project: forks of this process then begin at once."""
    for name in ("torch._dynamo", "hypothesis", "transformers.models.llama.modeling_llama", "datasets", "peft"):
        importlib.import_module(name)


def _run(folder: Path, tests: str, seconds: float, *, fork: bool = True) -> Done:
    """pytest on the copy, in a fork of this process; what spawns or interprets kernels starts from nothing."""
    fork = fork and "tests/interpreted" not in tests and "vocab_parallel" not in tests
    arguments = ["-q", "-x", "-p", "no:cacheprovider", "--tb=no", "--hypothesis-profile=plant", *shlex.split(tests)]
    with tempfile.TemporaryFile("w+") as output:
        if not fork:
            settings = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(folder)}
            settings |= {"TRITON_INTERPRET": "1"} if "tests/interpreted" in tests else {}
            command = [sys.executable, "-B", "-m", "pytest", *arguments]
            try:
                status: int | None = subprocess.run(
                    command, cwd=folder, env=settings, stdout=output, stderr=output, timeout=seconds, check=False
                ).returncode
            except subprocess.TimeoutExpired:
                status = None
        else:
            process = multiprocessing.get_context("fork").Process(target=_in_fork, args=(folder, arguments, output))
            process.start()
            process.join(seconds)
            status = process.exitcode
            if status is None:
                process.kill()
                process.join()
        output.seek(0)
        return Done(status, output.read())


def _in_fork(folder: Path, arguments: list[str], output: TextIO) -> None:
    os.dup2(output.fileno(), 1)
    os.dup2(output.fileno(), 2)
    sys.stdout = sys.stderr = os.fdopen(1, "w")
    os.chdir(folder)
    sys.dont_write_bytecode = True
    here = {str(ROOT), ""}
    sys.path[:] = [str(folder), *(path for path in sys.path if path not in here)]
    for name in [name for name in sys.modules if name.split(".")[0] in ("fastdss", "tests", "mutation")]:
        del sys.modules[name]
    status = pytest.main(arguments)
    sys.stdout.flush()
    os._exit(int(status))
