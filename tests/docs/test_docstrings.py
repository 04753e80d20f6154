"""Docstrings of public names in Google style: every argument has its line, and so has what comes back."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

import pytest

import fastdss
from fastdss.guards.view import View

SECTIONS = ("Args", "Attributes", "Returns", "Raises")
ALIKE = {fastdss.weighted_ce_stats: fastdss.weighted_ce}  # takes the same, and says so
# Public methods: those that the reference shows (docs/api).
METHODS = [
    fastdss.Guard.from_pretrained,
    fastdss.Guard.stream,
    fastdss.Guard.streams,
    fastdss.Guard.tiny,
    fastdss.StarScores.plot,
    fastdss.StarScores.to_training_rows,
    fastdss.StarScores.token_weights,
    fastdss.StarStream.append,
    fastdss.StarStream.close,
    fastdss.StarStream.fork,
    fastdss.StarStreams.open,
    fastdss.StarStreams.append,
    fastdss.TrunkProbe.fit,
]
CLASSES = [
    *(fastdss.AnswerField, fastdss.DSSCollator, fastdss.DSSConfig, fastdss.DSSSFTTrainer, fastdss.DSSTrainer),
    *(fastdss.Guard, fastdss.GuardSpec, fastdss.Promise, fastdss.RowError, fastdss.ScoredResponse),
    *(fastdss.ScoringOptions, fastdss.StarScorer, fastdss.StarStream, fastdss.StarStreams, fastdss.TrunkProbe, View),
]


def public_functions() -> list[Callable[..., Any]]:
    named = (getattr(fastdss, name) for name in fastdss.__all__)
    return [x for x in named if inspect.isfunction(x)]


def sections(item: Any) -> dict[str, dict[str, str]]:
    """Section -> name -> what is said of it."""
    text = inspect.getdoc(item) or ""
    found: dict[str, dict[str, str]] = {}
    for part in re.finditer(r"^(\w+):\n((?:    .*\n?|\n)+)", text + "\n", re.M):
        entries = re.findall(r"^    ([*\w.]+): (.+)", part[2], re.M)
        found[part[1]] = dict(entries)
    return found


@pytest.mark.parametrize("item", [*public_functions(), *METHODS, *CLASSES], ids=lambda item: item.__qualname__)
def test_a_docstring_says_what_goes_in_and_what_comes_out(item: Any) -> None:
    said = sections(item)
    assert set(said) <= set(SECTIONS), "another heading, or a line of text that looks like one"
    opening = inspect.getdoc(item).split("\n\n")[0]
    assert opening.endswith("."), "the first paragraph is a sentence"
    signature = inspect.signature(item)
    marks = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    takes = [marks.get(p.kind, "") + p.name for p in signature.parameters.values() if p.name not in ("self", "cls")]
    if item in ALIKE:
        assert signature.parameters == inspect.signature(ALIKE[item]).parameters
        assert f"Takes and raises what ``{ALIKE[item].__name__}`` does" in inspect.getdoc(item)
    else:
        assert list(said.get("Args", said.get("Attributes", {}))) == takes
    if inspect.isclass(item):
        assert "Returns" not in said
    else:
        nothing = signature.return_annotation in (None, "None")
        assert bool(said.get("Returns")) is not nothing


def test_nobody_writes_literal_blocks_and_roles() -> None:
    for item in [*public_functions(), *METHODS, *CLASSES]:
        text = inspect.getdoc(item)
        assert not re.search(r"::$|:(func|class|meth):", text, re.M), item
