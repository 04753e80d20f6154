"""The plugin that says what was skipped, in a session of its own."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from .skips import GPU, way

ROOT = Path(__file__).resolve().parents[1]
SKIPPED = """
import pytest

def test_runs():
    assert True

@pytest.mark.skip(reason={reason!r})
def test_skipped():
    assert True

@pytest.mark.long
def test_of_a_minute():
    assert True
"""


@pytest.fixture
def session(tmp_path):
    def run(reason, *options):
        (tmp_path / "conftest.py").write_text(
            "from tests.skips import pytest_addoption, pytest_collection_modifyitems, pytest_sessionfinish\n"
            "from tests.skips import pytest_terminal_summary\n"
        )
        (tmp_path / "test_some.py").write_text(SKIPPED.format(reason=reason))
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path)]
        return subprocess.run(
            [*command, *options, str(tmp_path)], capture_output=True, text=True, cwd=ROOT, timeout=120, check=False
        )

    return run


@pytest.mark.long
@pytest.mark.parametrize("workers", [(), ("-n", "1")], ids=["one process", "xdist"])
def test_a_skip_that_needs_no_gpu_fails_ci_and_says_how_to_run_it(session, workers):
    done = session("needs DeepSpeed", *workers, "--only-gpu-skips")
    assert done.returncode == 1, done.stdout
    assert "FAILED: skipped without needing a GPU: needs DeepSpeed" in done.stdout
    plain = session("needs DeepSpeed", *workers)
    assert plain.returncode == 0, plain.stdout
    assert "1 needs DeepSpeed: make test-ci" in plain.stdout


def test_a_gpu_test_may_be_skipped(session):
    done = session("needs a CUDA or ROCm device; there is none here", "--only-gpu-skips")
    assert done.returncode == 0, done.stdout
    assert "on a machine with a GPU" in done.stdout
    assert "2 passed, 1 skipped" in done.stdout


def test_long_ones_are_left_to_ci(session):
    done = session("needs a CUDA or ROCm device; there is none here", "--short")
    assert done.returncode == 0, done.stdout
    assert "1 long, left out by --short: make test-ci" in done.stdout
    assert "1 passed, 2 skipped" in done.stdout


def test_every_reason_in_the_tests_has_a_way():
    reasons = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        if path != Path(__file__):
            reasons |= set(re.findall(r'reason="([^"]+)"|pytest\.skip\("([^"]+)"', path.read_text()))
    said = {one or other for one, other in reasons}
    assert len(said) > 8
    assert {reason for reason in said if not way(reason)} == set()
    assert not GPU.search("needs DeepSpeed")
