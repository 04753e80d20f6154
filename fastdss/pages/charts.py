"""Bar charts of scores and shares, and the colour scale that pages, their script and notebooks share."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from html import escape

STEPS = (0.1, 0.3, 0.5, 0.7, 0.9)  # where one colour of the scale ends and the next begins
_WIDTH, _HEIGHT = 340, 176
_LEFT, _RIGHT, _TOP, _BOTTOM = 4, 4, 22, 40


def heat(score: float) -> int:
    """The colour step of a score, from 0 (lowest) to 5 (highest); steps 0 to 2 are scores below one half."""
    return bisect_right(STEPS, score)


def bars(counts: Sequence[int], *, field: str, axis: str, label: str, percent: bool = False, tone: str = "") -> str:
    """A bar chart of ``counts`` over equal parts of [0, 1], with its count above each bar.

    field: the column by which the page's script filters rows when a bar is clicked.
    tone: the colour of all bars; without it a bar has the colour of the scores it counts.

    A count above 0 always gets a bar that can be seen.
    """
    top, bins = max([*counts, 1]), len(counts)
    plot_w, plot_h = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
    floor, step = _TOP + plot_h, plot_w / bins
    shapes = []
    for i, count in enumerate(counts):
        x, high = _LEFT + i * step, max(plot_h * count / top, 2.0) if count else 0.0
        colour = tone or ("hot" if (i + 1) / bins <= 0.5 else "cold")
        span = f"{_tick(i / bins, percent)} to {_tick((i + 1) / bins, percent)}"
        shapes.append(
            f'<g class="bin" data-field="{escape(field)}" data-low="{i / bins:g}" data-high="{(i + 1) / bins:g}">'
            f"<title>{span}: {count:,} responses</title>"
            f'<rect class="reach" x="{x:.1f}" y="{_TOP - 16}" width="{step:.1f}" height="{plot_h + 16}"/>'
            f'<rect class="bar {escape(colour)}" x="{x + 1:.1f}" y="{floor - high:.1f}" width="{step - 2:.1f}" '
            f'height="{high:.1f}" rx="1.5"/>'
            + (f'<text class="count" x="{x + step / 2:.1f}" y="{floor - high - 5:.1f}">{_short(count)}</text></g>')
        )
    shapes.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{floor}" y2="{floor}"/>')
    for share, anchor in ((0.0, "start"), (0.5, "middle"), (1.0, "end")):
        x = _LEFT + plot_w * share
        shapes.append(f'<text x="{x:.1f}" y="{floor + 16}" text-anchor="{anchor}">{_tick(share, percent)}</text>')
    shapes.append(f'<text x="{_WIDTH / 2}" y="{_HEIGHT - 6}" text-anchor="middle">{escape(axis)}</text>')
    return (
        f'<svg class="chart bars" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(label)}: '
        f'{escape(", ".join(map(str, counts)))}">{"".join(shapes)}</svg>'
    )


def _tick(share: float, percent: bool) -> str:
    return f"{100 * share:.0f} %" if percent else f"{share:g}"


def _short(count: int) -> str:
    if not count:
        return ""
    if count < 10_000:
        return str(count)
    return f"{count / 1000:.0f}k" if count < 1_000_000 else f"{count / 1_000_000:.1f}M"
