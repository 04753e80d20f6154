"""The mutation check itself: no fault is stale, three are planted here; ``python -m tests.mutation`` plants all."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from .anchor import places, replaced
from .fault import Fault
from .plant import FAULTS, ROOT, copy_tree, fresh, outcome, stale


def test_every_fault_still_has_its_place() -> None:
    assert stale(FAULTS) == [], "the code moved on: mend the fault, or delete it where its mistake cannot be made now"
    assert len(FAULTS) >= 233
    assert all(fault.old != fault.new for fault in FAULTS)
    missing = [t for fault in FAULTS for t in fault.tests.split()[:1] if not (ROOT / t).is_file()]
    assert missing == []


OBJECTIVE = "fastdss/loss/objective.py"


@pytest.mark.parametrize(
    ("file", "within", "old", "says"),
    [
        (OBJECTIVE, "", "nowhere(x)", "objective.py, anywhere: found 0 times: 'nowhere(x)'"),
        (OBJECTIVE, "gone", "d * d", "objective.py, gone: found 0 times: 'd * d'"),
        (OBJECTIVE, "", "torch", "objective.py, anywhere: found"),
        (OBJECTIVE, "", "x) + (", "objective.py, anywhere: no expression or statements"),
        ("fastdss/loss/none.py", "", "x", "none.py, anywhere: "),
    ],
)
def test_a_stale_fault_is_found(file: str, within: str, old: str, says: str) -> None:
    fault = Fault("none", file, old, "y", "tests/loss", within=within)
    (line,) = stale([fault])
    assert line.startswith(f"fastdss/loss/{says}")
    assert fresh([fault]) == []


CODE = """
class Sum:
    def add(self, a, b):
        return a + b

def add(a, b):
    c = a + b  # a + b
    return c
"""


@pytest.mark.parametrize(
    ("within", "old", "new", "where", "stands"),
    [
        ("Sum.add", "a+b", "a - b", "return a + b", "return a - b"),
        ("add", "(a   + b)", "a - b", "c = a + b", "c = a - b"),
        ("add", "c = a + b\nreturn c", "return b", "    c = a + b\n    return c", "    return b"),
        ("add", "c = a + b", "", "c = a + b", "pass"),
        ("", "class Sum:\n def add(self, a, b): return a + b", "Sum = None", None, "Sum = None"),
    ],
)
def test_formatting_and_comments_do_not_matter(within: str, old: str, new: str, where: str | None, stands: str) -> None:
    plain = ast.unparse(ast.parse(CODE)) + "\n"
    found = replaced(CODE, within, old, new)
    assert stands in found
    assert where is None or found == plain.replace(where, stands)


def test_an_expression_that_stands_twice_has_no_place() -> None:
    assert len(places(ast.parse(CODE), "", "a + b")) == 2
    with pytest.raises(ValueError, match="found 2 times"):
        replaced(CODE, "", "a + b", "a")


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tree")
    copy_tree(folder)
    return folder


WHERE, CUTS = "fastdss/chat/boundaries.py", "tests/chat/test_boundaries.py"
BOUNDARIES, FORMULA, HARMLESS = (
    Fault("boundaries", WHERE, "_unit_ends(response, unit, spans)[every - 1 :: every]",
          "_unit_ends(response, unit, spans)[::every]", CUTS),
    Fault("row formulas", "fastdss/loss/objective.py", "return d * d * 0.5, d", "return d * d * 0.5, 2 * d",
          "tests/loss/test_exact.py -k 'test_dss_loss and k2'"),
    Fault("none", WHERE, "import re", "import re as re", CUTS),
)  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize(("fault", "caught"), [(BOUNDARIES, True), (FORMULA, True), (HARMLESS, False)])
def test_planting(copy: Path, fault: Fault, caught: bool) -> None:
    """Two faults that tests catch, one change that none can; the copy is whole again afterwards."""
    found = outcome(copy, fault, fork=False)
    assert found.caught is caught
    assert found.by.startswith(fault.tests.split()[0] if caught else "")
    assert (copy / fault.file).read_text() == (ROOT / fault.file).read_text()
