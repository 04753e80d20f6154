"""Tables, charts and other parts of a self-contained HTML page: no script, no network, every text escaped.

Colours are classes of the style sheet, so that a page follows the reader's light or dark theme. The classes of charts'
lines are ``s0`` to ``s9``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from .charts import heat
from .style import STYLE

__all__ = [
    "Series",
    "chip",
    "coloured_text",
    "curves",
    "document",
    "interval",
    "legend",
    "marked_text",
    "page",
    "table",
    "trajectory",
]

WIDTH = 720


@dataclass(frozen=True)
class Series:
    """One line of a chart. ``style`` is the number of its colour; ``dashed`` tells it from another of that colour."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    style: int = 0
    dashed: bool = False


def page(title: str, body: Iterable[str], *, lead: str = "") -> str:
    """A whole HTML document; ``title`` and ``lead`` are text, ``body`` is HTML."""
    header = f"<header><h1>{escape(title)}</h1>{f'<p class=lead>{escape(lead)}</p>' if lead else ''}</header>"
    return document(title, [f"<main>{header}", *body, "</main>"])


def document(title: str, body: Iterable[str], *, style: str = STYLE, head: str = "") -> str:
    """The frame of every page; ``title`` is text, ``body`` and ``head`` are HTML, ``style`` is CSS."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">{head}'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(title)}</title><style>{style}</style></head>\n<body>" + "\n".join(body) + "\n</body></html>\n"
    )


def coloured_text(text: str, weights: Sequence[tuple[int, int, float]]) -> str:
    """``text`` as HTML with each character range (start, end, weight in [0, 1]) in the colour of that weight."""
    out, position = [], 0
    for start, end, weight in weights:
        if start < position or end <= start:
            continue  # two byte-level tokens can be parts of one character, which is coloured once
        out.append(escape(text[position:start]))
        out.append(f'<span class="heat{heat(weight)}" title="weight {weight:.2f}">{escape(text[start:end])}</span>')
        position = end
    return f'<p class="tokens">{"".join(out)}{escape(text[position:])}</p>'


def marked_text(text: str, marks: Iterable[tuple[int, int, str]]) -> str:
    """``text`` as HTML with character ranges (start, end, label) highlighted; of overlapping ranges, the first."""
    out, position = [], 0
    for start, end, label in sorted(marks):
        if start < position:
            continue
        out.append(f'{escape(text[position:start])}<mark title="{escape(label)}">{escape(text[start:end])}</mark>')
        position = end
    return "".join(out) + escape(text[position:])


def chip(text: str, tone: str = "plain") -> str:
    """A small label; tone is "plain", "good" or "bad"."""
    return f'<span class="chip {escape(tone)}">{escape(text)}</span>'


def interval(count: int, total: int, low: float, high: float, *, good: bool, numbers: bool = True) -> str:
    """A proportion as count, percentage, bar and interval whisker; ``good`` picks the bar's colour."""
    if not total:
        return '<span class="quiet">–</span>'
    share = count / total
    bar = (
        f'<svg class="interval {"good" if good else "bad"}" viewBox="0 0 100 10" preserveAspectRatio="none" role="img" '
        f'aria-label="{share:.0%}, 95 % interval {low:.0%} to {high:.0%}">'
        f'<rect class="rail" width="100" height="10"/><rect class="bar" width="{100 * share:.1f}" height="10"/>'
        f'<line x1="{100 * low:.1f}" x2="{100 * high:.1f}" y1="5" y2="5"/></svg>'
    )
    text = f'<b>{count}</b><span class="quiet">/{total}</span> <small>{100 * low:.0f}–{100 * high:.0f} %</small>'
    return f'<span class="measure">{text if numbers else ""}{bar}</span>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, groups: Sequence[str] = ()) -> str:
    """``head`` is text, cells are HTML. ``groups[i]``, where not empty, opens a titled group before row i."""
    lines = []
    for index, row in enumerate(rows):
        if index < len(groups) and groups[index]:
            lines.append(
                f'<tr class="group"><th colspan="{len(head)}" scope="rowgroup">{escape(groups[index])}</th></tr>'
            )
        first, *rest = row
        lines.append(f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in rest)}</tr>')
    titles = "".join(f'<th scope="col">{escape(title)}</th>' for title in head)
    return f'<div class="wide"><table><thead><tr>{titles}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def legend(series: Iterable[Series]) -> str:
    stroke = '<svg viewBox="0 0 26 8" aria-hidden="true"><path class="{}" d="M1 4H25"/></svg>'
    items = "".join(f"<li>{stroke.format(_line(s))}{escape(s.name)}</li>" for s in series)
    return f'<ul class="legend">{items}</ul>'


def trajectory(
    ends: Sequence[int],
    lines: Sequence[Series],
    length: int,
    bands: Sequence[tuple[str, int, int]] = (),
    *,
    axis: str = "characters of the response",
    width: int = WIDTH,
) -> str:
    """A chart of scores along a response: each line's ``y[k]`` is drawn from ``ends[k - 1]`` to ``ends[k]``.

    bands: named character ranges, drawn behind the lines.
    """
    height, left, right, top, bottom = 190, 44, 12, 26, 34
    plot_w, plot_h = width - left - right, height - top - bottom

    def at(x: float, y: float) -> tuple[float, float]:
        return left + plot_w * x / max(length, 1), top + plot_h * (1 - y)

    shapes = []
    for name, start, end in bands:
        (x0, y1), (x1, y0) = at(start, 1), at(end, 0)
        shapes.append(
            f'<rect class="band {escape(name)}" x="{x0:.1f}" y="{y1:.1f}" width="{x1 - x0:.1f}" '
            f'height="{y0 - y1:.1f}"/>'
            f'<text class="bandname" x="{(x0 + x1) / 2:.1f}" y="{top - 9}" text-anchor="middle">{escape(name)}</text>'
        )
    for level in (0.0, 0.5, 1.0):
        _, y = at(0, level)
        shapes.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        shapes.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{level:g}</text>')
    for line in lines:
        path, start = "", 0
        for end, score in zip(ends, line.y, strict=True):
            (x0, y), (x1, _) = at(start, score), at(end, score)
            path += f"{'L' if path else 'M'}{x0:.1f} {y:.1f}L{x1:.1f} {y:.1f}"
            shapes.append(
                f'<circle class="dot s{line.style}" cx="{x1:.1f}" cy="{y:.1f}" r="3"><title>{escape(line.name)}: '
                f"{score:.3f} after {end} characters</title></circle>"
            )
            start = end
        shapes.append(f'<path class="{_line(line)}" d="{path}"/>')
    shapes.append(
        f'<text x="{left + plot_w / 2:.0f}" y="{height - 6}" text-anchor="middle">{escape(axis)}</text>'
        f'<text x="{left}" y="{height - 6}">0</text>'
        f'<text x="{width - right}" y="{height - 6}" text-anchor="end">{length}</text>'
    )
    return _svg(height, "P(safe) of each prefix", shapes, width)


def curves(series: Sequence[Series], *, x_label: str, y_label: str, height: int = 240, width: int = WIDTH) -> str:
    """A line chart whose y axis includes 0 and has round ticks; a line has a gap where its value is not finite."""
    left, right, top, bottom = 44, 12, 24, 36
    x_max = max((max(s.x) for s in series if len(s.x)), default=1) or 1
    finite = [y for s in series for y in s.y if math.isfinite(y)]
    y_min, y_max = min((0, *finite)), max(finite, default=1) or 1
    ticks = _ticks(max(y_max, -y_min))
    below = math.ceil(-y_min / ticks[1] - 1e-9)
    ticks = [-tick for tick in ticks[below:0:-1]] + [
        tick for tick in ticks if tick < max(y_max, 0) + ticks[1] * (1 - 1e-9)
    ]
    y_min, y_max = ticks[0], ticks[-1]
    y_span = y_max - y_min
    plot_w, plot_h = width - left - right, height - top - bottom
    shapes = []
    for tick in ticks:
        y = top + plot_h * (y_max - tick) / y_span
        shapes.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        shapes.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in (t for t in _ticks(x_max) if t <= x_max):
        x = left + plot_w * tick / x_max
        shapes.append(f'<text x="{x:.1f}" y="{height - bottom + 16}" text-anchor="middle">{tick:g}</text>')
    for s in series:
        path, pen = "", "M"
        for x, y in zip(s.x, s.y, strict=True):
            if math.isfinite(y):
                path += f"{pen}{left + plot_w * x / x_max:.1f} {top + plot_h * (y_max - y) / y_span:.1f}"
            pen = "L" if math.isfinite(y) else "M"
        if not path:
            continue
        title = f"<title>{escape(s.name)}: ends at {s.y[-1]:.3f}</title>"
        path += "h.01" * (
            path.count("M") + path.count("L") == 1
        )  # a line of one point shows as a dot by its round ends
        shapes.append(f'<path class="{_line(s)}" d="{path}">{title}</path>')
    shapes.append(
        f'<text class="bandname" x="{left - 36}" y="14">{escape(y_label)}</text>'
        f'<text x="{left + plot_w / 2:.0f}" y="{height - 4}" text-anchor="middle">{escape(x_label)}</text>'
    )
    return _svg(height, f"{y_label} against {x_label}", shapes, width)


def _svg(height: int, label: str, shapes: Iterable[str], width: int = WIDTH) -> str:
    body = "".join(shapes)
    return f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}">{body}</svg>'


def _line(series: Series) -> str:
    return f"line s{series.style}{' dashed' * series.dashed}"


def _ticks(top: float, about: int = 4) -> list[float]:
    """Round numbers from 0 to the first at or above ``top``."""
    raw = top / about
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(m * unit for m in (1, 2, 2.5, 5, 10) if m * unit >= raw)
    return [round(step * i, 10) for i in range(math.ceil(top / step - 1e-9) + 1)]
