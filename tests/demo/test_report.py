"""Pieces of the page: escaped, self-contained, and drawn where the numbers say."""

import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from fastdss.pages import pieces as report
from fastdss.pages.pieces import Series
from fastdss.pages.style import STYLE
from fastdss.score_report import page as score_page
from fastdss.train.run import report as train_report
from tests.support.scored import by_fields

HOSTILE = '<script>alert("x")</script>&<img src=http://evil.example/a>'
VOID = {"meta", "img", "br", "line", "rect", "circle"}


class Balanced(HTMLParser):
    """Fails on a tag that is closed without having been opened, or left open."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open
            assert self.open.pop() == tag


def assert_self_contained(html: str) -> None:
    Balanced(html)
    assert not re.search(r"<(script|link|iframe|img|object|embed)\b", html, re.IGNORECASE)
    assert not re.search(r"(src|href|srcset|action)\s*=", re.sub(r"<title>.*?</title>", "", html), re.IGNORECASE)
    assert not re.search(r"url\(|@import|@font-face", html, re.IGNORECASE)


def test_every_text_is_escaped():
    lines = [Series(HOSTILE, [0, 1], [0.5, 1.0])]
    body = [
        report.coloured_text(HOSTILE, [(0, 8, 0.5), (8, len(HOSTILE), 0.1)]),
        report.chip(HOSTILE),
        report.table([HOSTILE], [[report.marked_text(HOSTILE, [(3, 9, HOSTILE)])]], groups=[HOSTILE]),
        report.legend(lines),
        report.curves(lines, x_label=HOSTILE, y_label=HOSTILE),
        report.trajectory([4, 9], lines, 9, [(HOSTILE, 0, 4)], axis=HOSTILE),
    ]
    html = report.page(HOSTILE, body, lead=HOSTILE)
    assert "<script" not in html
    assert "<img" not in html
    Balanced(html)


def test_page_is_self_contained():
    assert_self_contained(report.page("Title", ["<p>text</p>"]))


def test_one_palette_for_all_pages():
    """A score has one colour on the pages of score, train and demo, and in notebooks."""
    html = report.coloured_text("low mid high", [(0, 3, 0.05), (3, 7, 0.4), (7, 12, 0.95)])
    assert re.findall(r'class="(heat\d)"', html) == ["heat0", "heat2", "heat5"]
    assert all(STYLE.count(f"\n.heat{step}{{") == 1 for step in range(6))
    assert ".heat0{" not in (Path(score_page.__file__).parent / "page.css").read_text()


def test_coloured_text_keeps_every_character_and_clamps_weights():
    text = "a<b c"
    html = report.coloured_text(text, [(0, 1, 1.7), (1, 3, 0.25), (2, 3, 0.9), (3, 5, -1.0)])
    assert re.sub(r"<[^>]+>", "", html).replace("&lt;", "<") == text
    assert re.findall(r"heat(\d)", html) == ["5", "1", "0"]  # the range inside another one is left out


def test_marked_text_keeps_the_first_of_overlapping_marks():
    assert report.marked_text("0123456789", [(4, 8, "b"), (2, 6, "a")]) == '01<mark title="a">2345</mark>6789'


def test_interval_shows_count_and_bounds():
    html = report.interval(3, 12, 0.09, 0.53, good=False)
    assert "<b>3</b>" in html
    assert "/12" in html
    assert "9–53" in html
    assert 'width="25.0"' in html
    assert 'x1="9.0" x2="53.0"' in html
    assert "<svg" not in report.interval(0, 0, 0, 1, good=True)


def test_trajectory_holds_each_score_up_to_its_end():
    svg = report.trajectory([5, 10], [Series("s", [], [1.0, 0.0])], 10)
    path = re.search(r'd="(M[^"]+)"', svg).group(1)
    points = [tuple(map(float, pair.split())) for pair in re.split("[ML]", path)[1:]]
    (x0, top), (x1, top2), (x1b, low), (x2, low2) = points
    assert top == top2 < low == low2
    assert x0 < x1 == x1b < x2
    assert x1 - x0 == pytest.approx(x2 - x1)


@pytest.mark.parametrize("top", [1e-3, 0.7, 1.0, 3.2, 10.81, 99.0])
def test_curves_stay_inside_their_frame(top):
    svg = report.curves([Series("s", [1, 2, 3], [0.0, top / 2, top])], x_label="x", y_label="y", height=200, width=400)
    path = re.search(r'd="(M[^"]+)"', svg).group(1)
    points = [tuple(map(float, pair.split())) for pair in re.split("[ML]", path)[1:]]
    assert all(0 <= x <= 400 and 0 <= y <= 200 for x, y in points)


def test_curves_without_points_still_draw_a_frame():
    Balanced(report.curves([Series("s", [], [])], x_label="x", y_label="y"))


def test_curves_have_a_gap_where_a_value_is_not_finite():
    svg = report.curves([Series("s", [1, 2, 3, 4], [1.0, math.nan, 0.5, math.inf])], x_label="x", y_label="y")
    Balanced(svg)
    (path,) = re.findall(r' d="(M[^"]+)"', svg)
    assert len(re.findall(r"M[0-9. ]+", path)) == 2
    assert not re.search("nan|inf", path)


def test_curves_go_below_zero():
    """The KL term of k1 is negative where the policy is less sure than its reference: it was drawn as 0."""
    log = [{"step": 1, "loss": 1.8, "ce": 2.2, "kl": -0.4}, {"step": 2, "loss": 2.3, "ce": 2.4, "kl": -0.1}]
    svg = train_report._training(log)[1]
    loss, _, kl = re.findall(r'<path[^>]* d="M[\d.]+ ([\d.]+)L[\d.]+ ([\d.]+)"', svg)
    grid = {
        float(text): float(y) - 4 for y, text in re.findall(r'y="([\d.]+)" text-anchor="end">([-\d.]+)</text>', svg)
    }
    unit = grid[0] - grid[1]
    assert [(grid[0] - float(y)) / unit for y in (*loss, *kl)] == pytest.approx([1.8, 2.3, -0.4, -0.1], abs=0.01)
    assert grid[min(grid)] >= float(kl[0]), "below the last line of the grid"


def test_a_trained_response_keeps_its_lines_and_says_what_is_left_out():
    """One paragraph each, coloured up to where the page cuts it; nothing of a long one vanishes without a word."""
    text = "One line.\nAnother <b>line</b>.\n" + "x" * 2500
    scored = by_fields([[0.9, 0.2]], [[9, len(text)]], [[]], [text])
    parts = train_report._responses(list(scored))
    assert parts[0].startswith('<p class="tokens"><span class="heat')
    assert "One line." in parts[0]
    assert "\nAnother &lt;b&gt;line" in parts[0]
    assert parts[0].count("<p") == 1
    assert parts[0].endswith("x</span></p>")
    assert parts[1:] == [f"<p class=quiet>and {len(text) - 2000} more characters</p>"]
    assert "white-space:pre-wrap" in STYLE.split(".tokens{")[1].split("}")[0]


def test_a_line_of_one_point_is_a_dot():
    drawn = report.curves([Series("loss", [1], [2.5], 0)], x_label="step", y_label="per label")
    assert re.search(r'd="M[\d.]+ [\d.]+h\.01"', drawn)
    assert "h.01" not in report.curves([Series("loss", [1, 2], [2.5, 2.0], 0)], x_label="step", y_label="per label")
