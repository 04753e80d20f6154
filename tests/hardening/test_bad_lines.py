"""Rows and runs that could be taken for one another: ids, names of columns, cache entries."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from fastdss.corpus.plan import make_plan
from fastdss.corpus.rows import FailedRow, Row, read_rows
from fastdss.corpus.run import _entry
from fastdss.corpus.scorer import StarScorer
from fastdss.guards.known import TINY_FOLDER


def test_ids_that_occur_twice() -> None:
    rows: list[dict[str, Any]] = [{"id": i % 3, "prompt": "a", "response": str(i)} for i in range(4)]
    with pytest.raises(ValueError, match="rows 0 and 3 have the same id '0'; ids must be unique"):
        make_plan(read_rows([rows]), 2)
    make_plan(read_rows([rows[:3]]), 2)
    with pytest.raises(ValueError, match="rows 0 and 1 have the same id '1'"):  # a position that another row claims
        make_plan(read_rows([[{"prompt": "a", "response": "b", "id": "1"}, {"prompt": "a", "response": "b"}]]), 2)


def test_an_object_that_names_a_column_twice_is_no_row(tmp_path: Path) -> None:
    """Readers disagree on which one counts: a harmless text could be scored and the other one trained on."""
    path = tmp_path / "rows.jsonl"
    good = json.dumps({"prompt": "a", "response": "b"})
    twice = '{"prompt": "a", "response": "harmless", "response": "other"}'
    nested = '{"messages": [{"role": "user", "content": "a", "content": "b"}, {"role": "assistant", "content": "c"}]}'
    path.write_text("\n".join([good, twice, nested, good]))
    found = list(read_rows([path]))
    assert [type(row) for row in found] == [Row, FailedRow, FailedRow, Row]
    for row in found[1:3]:
        assert "not a line of JSON: a name occurs twice in an object" in row.reason


IDENTITY = {
    "guard": "someone/guard", "revision": "abc", "template_hash": "sha256:1", "scoring_version": 1,
    "options": {"every": 5, "unit": "word", "max_tokens": None, "sharpen": 1.0, "dtype": "auto", "max_bytes": 8},
}  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [{"revision": "abd"}, {"template_hash": "sha256:2"}, {"scoring_version": 2}]
    + [{"options": IDENTITY["options"] | {name: 7}} for name in IDENTITY["options"]],
    ids=str,
)
def test_a_cache_entry_follows_everything_that_scores_depend_on(change: dict[str, Any]) -> None:
    assert _entry(IDENTITY | change) != _entry(IDENTITY)


def test_a_cache_entry_does_not_follow_the_guards_name() -> None:
    """The same bytes in another folder are the same guard; other bytes under the same name are not."""
    assert _entry(IDENTITY | {"guard": "/tmp/copy"}) == _entry(IDENTITY)


def test_a_guard_that_computes_otherwise_from_the_same_weights_is_another_guard(tmp_path: Path) -> None:
    """Its configuration and its tokenizer count, what is written about it does not."""
    guard = tmp_path / "guard"
    shutil.copytree(TINY_FOLDER, guard)
    (guard / "README.md").write_text("other words")
    revisions = [StarScorer("tiny").identity()["revision"], StarScorer(guard).identity()["revision"]]
    assert revisions[0] == revisions[1]
    for name, old, new in (("config.json", '"rms_norm_eps": ', '"rms_norm_eps": 1'), ("tokenizer.json", "{", " {")):
        content = (guard / name).read_text()
        assert old in content
        (guard / name).write_text(content.replace(old, new, 1))
        revisions.append(StarScorer(guard).identity()["revision"])
    assert len(set(revisions)) == 3
