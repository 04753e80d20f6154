"""``StarScores`` in notebooks and figures."""

import re
import sys
from html import unescape

import numpy as np
import pytest

from fastdss.star.view import SHOWN, TEXT
from tests.score_report.entries import HOSTILE
from tests.score_report.test_page import Page
from tests.support.scored import by_fields


def star(*rows):
    """Scores of (response, ends, scores, flags)."""
    responses, ends, scores, flags = zip(*rows, strict=True)
    histories = [[{"role": "user", "content": response}] for response in responses]
    return by_fields(scores, ends, histories, responses, flags)


DIP = ("0123456789", [4, 10], [0.9, 0.2], [])
FAILED = ("text", [4], [float("nan")], ["failed"])
EMPTY = ("", [0], [0.7], ["empty"])


def text_of(html):
    return unescape(re.sub(r"<[^>]+>", "", html))


def test_html_shows_text_scores_and_flags():
    html = star(DIP, FAILED, EMPTY)._repr_html_()
    spans = re.findall(r'<span style="([^"]*)" title="P\(safe\) ([\d.]+)">(.*?)</span>', html)
    assert [(title, piece) for _, title, piece in spans] == [("0.900", "0123"), ("0.200", "456789")]
    assert "border-bottom" in spans[1][0]  # seen without colour
    assert "border-bottom" not in spans[0][0]
    words = text_of(html)
    assert "lowest 0.200, final 0.200" in words
    assert "failed, no score" in words
    assert "nan" not in words
    assert "empty" in words


def test_html_shows_the_lowest_first_and_the_failed_last():
    high = ("fine", [4], [0.95], [])
    html = text_of(star(FAILED, high, DIP, *[("so", [2], [0.5 + i / 100], []) for i in range(9)])._repr_html_())
    assert html.startswith("StarScores of 12 responses; the 5 with the lowest scores2: lowest 0.200")
    assert "failed" not in html
    both = text_of(star(FAILED, high)._repr_html_())
    assert both.index("1: lowest 0.950") < both.index("0: failed, no score")


def test_html_of_a_truncated_row_has_no_final_score():
    words = text_of(star(("0123456789", [4], [0.9], ["truncated"]))._repr_html_())
    assert "final" not in words
    assert "truncated" in words
    assert "0123456789" in words


def test_html_is_inert_and_spells_out_what_does_not_show():
    html = star((HOSTILE, [len(HOSTILE)], [0.1], []))._repr_html_()
    assert Page(html).tags == {"div", "p", "b", "span"}
    assert "[U+202E]gnp.exe[U+202C]" in html
    assert not set(html) & set("\u2028\u2029\u202e\x00\x1b\ufeff\ud800")
    assert not re.search(r"<[^>]*\bon\w+=", html)


def test_html_is_limited_in_rows_and_in_text():
    long = ("<" * 100_000, [*range(5, 100_000, 5), 100_000], [0.1] * 20_000, [])
    html = star(*[long] * 100)._repr_html_()
    assert f"of 100 responses; the {SHOWN} with the lowest scores" in text_of(html)
    assert text_of(html).count("<") == SHOWN * 2 * TEXT  # prompt and response
    assert len(html) < 200_000


def test_plot_draws_each_score_up_to_its_end():
    pytest.importorskip("matplotlib").use("Agg")
    from matplotlib import pyplot

    ax = star(DIP, FAILED, EMPTY).plot()
    line, under = ax.patches
    np.testing.assert_allclose(line.get_data().values, [0.9, 0.2], rtol=1e-6)
    assert list(line.get_data().edges) == [0, 4, 10]
    np.testing.assert_allclose(under.get_data().values, [0.5, 0.2], rtol=1e-6)
    assert ax.get_xlim() == (0, 10)
    pyplot.close(ax.figure)


def test_plot_takes_axes_and_says_failed_and_empty():
    pytest.importorskip("matplotlib").use("Agg")
    from matplotlib import pyplot

    scores = star(DIP, FAILED, EMPTY)
    figure, axes = pyplot.subplots(2)
    assert scores.plot(1, ax=axes[0]) is axes[0]
    assert "failed" in axes[0].texts[0].get_text()
    assert not axes[0].patches
    assert "empty" in scores.plot(row=-1, ax=axes[1]).get_title("left")
    figure.canvas.draw()
    with pytest.raises(IndexError, match="one of 3 rows, got 3"):
        scores.plot(3)
    assert len(pyplot.get_fignums()) == 1  # no figure left behind by the error
    pyplot.close(figure)


def test_plot_without_matplotlib_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"fastdss\[viz\]"):
        star(DIP).plot()
