"""Pictures and tables are those that the committed rows and the built-in guard make."""

import re

import pytest

from docs_tools.__main__ import PICTURES, WITH_TABLES
from docs_tools.rows import interval, one
from docs_tools.tables import TABLES, filled

from .blocks import ROOT

NUMBER = re.compile(r"-?\d+\.\d+|-?\d+")


@pytest.mark.parametrize("name", PICTURES)
def test_the_picture_is_current(name):
    """Scores may differ in the last digit from machine to machine, so places are compared, not bytes."""
    made, kept = PICTURES[name]().svg(), (ROOT / "docs" / "assets" / name).read_text()
    assert NUMBER.sub("#", made) == NUMBER.sub("#", kept), "run make pictures"
    pairs = zip(NUMBER.findall(made), NUMBER.findall(kept), strict=True)
    assert all(abs(float(one) - float(other)) <= 0.3 for one, other in pairs), "run make pictures"


def test_the_tables_are_current():
    texts = [page.read_text() for page in WITH_TABLES]
    assert [filled(text) for text in texts] == texts, "run make pictures"
    assert sum(text.count(": make pictures -->\n| ") for text in texts) == len(TABLES)
    stale = texts[0].replace("| plain SFT | ", "| plain SFT | 1")
    assert stale != texts[0]
    assert filled(stale) == texts[0]


@pytest.mark.parametrize("way", ["a", "b"], ids=["two", "none"])
def test_a_figure_has_exactly_one_row(way):
    rows = [{"way": "a", "n": 1}, {"way": "a", "n": 2}]
    assert one(rows, n=2)["n"] == 2
    with pytest.raises(LookupError):
        one(rows, way=way)


def test_intervals_are_wilsons():
    """The values of Newcombe 1998, table I, method 3."""
    assert interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert interval(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
