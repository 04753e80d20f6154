"""The mutation check itself: no fault is stale, three are planted here; ``python -m tests.mutation`` plants all."""

from __future__ import annotations

from pathlib import Path

import pytest

from .fault import Fault
from .plant import FAULTS, ROOT, copy_tree, outcome, stale


def test_every_fault_still_has_its_place() -> None:
    assert stale(FAULTS) == []
    assert len(FAULTS) >= 40
    assert all(fault.old != fault.new for fault in FAULTS)
    missing = [t for fault in FAULTS for t in fault.tests.split()[:1] if not (ROOT / t).is_file()]
    assert missing == []


def test_a_stale_fault_is_found() -> None:
    gone = Fault("none", "fastdss/loss/objective.py", "this stands nowhere", "x", "tests/loss")
    twice = Fault("none", "fastdss/loss/objective.py", "import", "x", "tests/loss")
    assert [line.partition(": ")[2][:13] for line in stale([gone])] == ["found 0 times"]
    assert len(stale([twice])) == 1


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tree")
    copy_tree(folder)
    return folder


WHERE, CUTS = "fastdss/chat/boundaries.py", "tests/chat/test_boundaries.py"
BOUNDARIES, FORMULA, HARMLESS = (
    Fault("boundaries", WHERE, "spans)[every - 1 :: every]", "spans)[::every]", CUTS),
    Fault("row formulas", "fastdss/loss/objective.py", "return d * d * 0.5, d", "return d * d * 0.5, 2 * d",
          "tests/loss/test_exact.py -k 'test_dss_loss and k2'"),
    Fault("none", WHERE, '"""Where a response is cut', '"""Where responses are cut', CUTS),
)  # fmt: skip


@pytest.mark.parametrize(("fault", "caught"), [(BOUNDARIES, True), (FORMULA, True), (HARMLESS, False)])
def test_planting(copy: Path, fault: Fault, caught: bool) -> None:
    """Two faults that tests catch, one change that none can; the copy is whole again afterwards."""
    found = outcome(copy, fault, fork=False)
    assert found.caught is caught
    assert found.by.startswith(fault.tests.split()[0] if caught else "")
    assert (copy / fault.file).read_text() == (ROOT / fault.file).read_text()
