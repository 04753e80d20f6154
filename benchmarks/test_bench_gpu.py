"""The one command for a GPU, as far as a machine without one can show it."""

from __future__ import annotations

import json
import re
from pathlib import Path

from bench_gpu import ROOT, STEPS, Step, measure
from bench_loss import case_of, kept_rows
from loss_methods import GPU_GRID, Case

FACTS = {"device": "a GPU", "commit": "abc", "versions": {}}


def test_targets_and_tests_fit_into_ten_minutes_and_all_steps_name_what_exists() -> None:
    assert sum(step.seconds for step in STEPS[:-2]) < 600
    for step in STEPS:
        place = [word for word in step.command if "/" in word]
        assert place
        for path in place:
            assert (ROOT / path).exists()
        if place[0].endswith(".py"):
            source = (ROOT / place[0]).read_text()
            for option in (word for word in step.command if word.startswith("--")):
                assert f'"{option}"' in source, (step.name, option)
    cases = [int(word) for word in STEPS[0].command if re.fullmatch(r"\d+", word)][1:]
    assert {GPU_GRID[i].loss for i in cases} == {"ce", "k2", "reverse"}
    assert {GPU_GRID[i].n for i in cases} == {512, 8192}


def test_steps_run_in_order_end_in_time_and_are_not_repeated(tmp_path: Path) -> None:
    log = tmp_path / "log"
    note = f"open({str(log)!r}, 'a').write('x')"
    steps = (
        Step("good", 20, ("-c", note)),
        Step("bad", 20, ("-c", "import sys; sys.exit(3)")),
        Step("slow", 1, ("-c", "import time; time.sleep(60)")),
    )
    first = measure(steps, 1, tmp_path, FACTS)
    assert first == {"good": "well", "bad": "exit 3", "slow": "overdue"}
    assert measure(steps[:2], 1, tmp_path, FACTS) == {"good": "finished before", "bad": "exit 3"}
    assert log.read_text() == "x"
    measure(steps[:1], 1, tmp_path, FACTS | {"commit": "def"})  # another commit: measured again
    assert log.read_text() == "xx"
    assert measure(steps[1:2], 0, tmp_path, FACTS) == {"bad": "no time left"}


def test_the_grid_goes_on_where_it_was_interrupted(tmp_path: Path) -> None:
    path = tmp_path / "loss_cuda.jsonl"
    rows = [vars(Case(8, 4, 16)) | FACTS, vars(Case(9, 4, 16)) | FACTS | {"commit": "old"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [case_of(row) for row in kept_rows(path, FACTS)] == [Case(8, 4, 16)]
    assert kept_rows(tmp_path / "none.jsonl", FACTS) == []
