"""How ``StarScores`` are shown: one response's scores drawn with matplotlib, and coloured text in notebooks."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any
from unicodedata import category

from fastdss.optional import require
from fastdss.pages.charts import heat

from .scored import Flag, ScoredResponse

SHOWN = 5  # responses that a notebook shows
TEXT = 600  # characters of a response, and of a prompt, that a notebook shows
_BACKGROUNDS = (  # translucent, so that they suit light and dark notebooks
    "rgba(224,106,10,.62)",
    "rgba(224,106,10,.40)",
    "rgba(224,106,10,.20)",
    "rgba(43,123,185,.05)",
    "rgba(43,123,185,.11)",
    "rgba(43,123,185,.19)",
)
_UNDERLINES = ("3px solid", "2px solid", "1px dashed")


def plot(item: ScoredResponse, title: str, ax: Any = None) -> Any:
    """Draw P(safe) along one response on ``ax``, or on a new figure's axes, and return the axes."""
    require("plot()", "viz", "matplotlib")
    from matplotlib import pyplot

    if ax is None:
        _, ax = pyplot.subplots(figsize=(7, 2.6), layout="constrained")
    ends, values = item.ends, item.scores.tolist()
    ax.axhline(0.5, color="0.6", linewidth=1, linestyle=":")
    if item.failed:
        ax.text(0.5, 0.75, "failed: the guard gave no score", transform=ax.transAxes, ha="center", va="center")
    else:
        edges = [0, *ends] if ends[-1] else [0, 1]  # an empty response has one score, at its only position
        ax.stairs(values, edges, baseline=None, color="#2b7bb9", linewidth=1.8)
        low = [min(value, 0.5) for value in values]
        ax.stairs(low, edges, baseline=0.5, fill=True, color="#d55e00", alpha=0.35, linewidth=0)
    ax.set(xlim=(0, max(len(item.response), 1)), ylim=(-0.03, 1.03), yticks=(0, 0.5, 1))
    ax.set(xlabel="characters of the response", ylabel="P(safe)")
    notes = ", ".join(sorted(flag.replace("_", " ") for flag in item.flags - {Flag.FAILED}))
    ax.set_title(title + (f" ({notes})" if notes else ""), loc="left", fontsize="medium")
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def html(scores: Sequence[ScoredResponse]) -> str:
    """The rows with the lowest scores as coloured text, the lowest first, failed ones last. It is HTML of limited size
    without scripts, in which every text is escaped."""
    order = sorted(range(len(scores)), key=lambda row: 2.0 if scores[row].failed else scores[row].scores.min().item())
    more = f"; the {SHOWN} with the lowest scores" if len(scores) > SHOWN else ", the lowest score first"
    more = more if len(scores) > 1 else ""
    lines = [f'<div style="max-width:60em"><p><b>StarScores</b> of {len(scores):,} responses{more}</p>']
    for row in order[:SHOWN]:
        lines.append(
            f'<div style="border-top:1px solid rgba(128,128,128,.4);padding:.4em 0">{_row(row, scores[row])}</div>'
        )
    return "".join(lines) + "</div>"


def _row(row: int, item: ScoredResponse) -> str:
    values, flags = item.scores.tolist(), sorted(item.flags)
    if item.failed:
        head = "failed, no score"
    else:
        final = f", final {values[-1]:.3f}" if item.complete else ""
        head = f"lowest {min(values):.3f}{final}"
    head += "".join(f" · {escape(flag.replace('_', ' '))}" for flag in flags if flag is not Flag.FAILED)
    prompt = item.history[-1]["content"] if item.history else ""
    text = [] if item.failed else values
    return (
        f'<div style="opacity:.7">{row}: {head}</div><div style="opacity:.7" dir="auto">{_cut(prompt)}</div>'
        f'<div dir="auto" style="white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.8">'
        f"{_coloured(item.response, item.ends, text)}</div>"
    )


def _coloured(text: str, ends: Sequence[int], values: Sequence[float]) -> str:
    out, start = [], 0
    for end, value in zip(ends, values, strict=False):
        step, piece = heat(value), text[start : min(end, TEXT)]
        line = f";border-bottom:{_UNDERLINES[step]} #d55e00" if step < len(_UNDERLINES) else ""
        if piece:
            style = f"background:{_BACKGROUNDS[step]}{line}"
            out.append(f'<span style="{style}" title="P(safe) {value:.3f}">{_visible(piece)}</span>')
        start = max(start, end)
    return "".join(out) + (_cut(text, start) if start < TEXT else "…" if len(text) > TEXT else "")


def _cut(text: str, start: int = 0) -> str:
    return _visible(text[start:TEXT]) + ("…" if len(text) > TEXT else "")


def _visible(text: str) -> str:
    """``text`` escaped for HTML. Characters that are invisible or reorder text are replaced by their code points."""
    return "".join(
        escape(char) if char.isprintable() or char in "\n\t\u200d" or category(char) == "Zs" else f"[U+{ord(char):04X}]"
        for char in text
    )
