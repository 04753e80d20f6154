"""The page that ``fastdss train`` writes: what the guard saw, how training went, and a few responses in colour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from fastdss.pages.pieces import Series, coloured_text, curves, legend, page, table
from fastdss.star.scored import ScoredResponse

_SHOWN = 6  # responses on the page, as many as are read at a glance: a choice
_LONGEST = 2000  # characters of a response that the page shows: a choice, about two screens
_WIDTH = 420  # of the chart, in its own units: its words stay legible on a telephone
_NAMES = {
    "loss": "loss",
    "ce": "CE part",
    "kl": "KL part",
    "token_weight": "mean weight",
    "share_below_half": "below ½",
}


def html(outcome: Mapping[str, Any], scored: Sequence[ScoredResponse]) -> str:
    """One self-contained HTML document; ``outcome`` is what ``run`` returns."""
    settings, rows = outcome["settings"], outcome["rows"]
    judge = f"judged by {settings['guard']}" if outcome["judged_here"] else "which came with its scores"
    lead = f"{settings['model']} on {settings['data']}, {judge}"
    body = [f"<p><strong>{escape(outcome['stopped'])}</strong></p>"] if outcome["stopped"] else []
    body += ["<h2>The data</h2>", _data(rows, outcome["scores"]), "<h2>Training</h2>", *_training(outcome["log"])]
    if outcome["after"]:
        body += ["<h2>Held-out rows</h2>", _evaluation(outcome["before"], outcome["after"])]
    body += ["<h2>Responses as the loss saw them</h2>", *_responses(scored)]
    body += ["<h2>Settings</h2>", table(["setting", "value"], [[k, escape(str(v))] for k, v in settings.items()])]
    return page("fastdss train", body, lead=lead)


def _data(rows: Mapping[str, Any], scores: Mapping[str, Any]) -> str:
    counts = {name: count for name, count in rows.items() if name != "reasons"}
    lines = [[f"rows {name.replace('_', ' ')}", str(count)] for name, count in counts.items()]
    lines += [[f"not trained: {escape(reason)}", str(count)] for reason, count in rows.get("reasons", {}).items()]
    for name, count in scores.items():
        shown = ", ".join(f"{escape(k)}: {v}" for k, v in count.items()) or "none" if name == "flags" else str(count)
        lines.append([name.replace("_", " "), shown])
    return table(["", "count"], lines)


def _training(log: Sequence[Mapping[str, float]]) -> list[str]:
    steps = [entry["step"] for entry in log]
    series = [
        Series(_NAMES[key], steps, [entry[key] for entry in log], style)
        for style, key in enumerate(("loss", "ce", "kl"))
        if all(key in entry for entry in log)
    ]
    chart = curves(series, x_label="step", y_label="per label", width=_WIDTH)
    return [legend(series), f'<figure class="alone">{chart}</figure>']


def _evaluation(before: Mapping[str, float], after: Mapping[str, float]) -> str:
    keys = [f"eval_{key}" for key in _NAMES if f"eval_{key}" in after]
    lines = [[_NAMES[k.removeprefix("eval_")], f"{before[k]:.4f}", f"{after[k]:.4f}"] for k in keys]
    return table(["", "before", "after"], lines)


def _responses(scored: Sequence[ScoredResponse]) -> list[str]:
    """The responses with the lowest scores in colour: what the loss held back, and where."""
    lowest = sorted(scored, key=lambda response: response.scores.min().item())[:_SHOWN]
    shown = []
    for response in lowest:
        starts = [0, *response.ends[:-1]]
        pieces = list(zip(starts, response.ends, response.scores.tolist(), strict=True))
        text, more = response.response[:_LONGEST], len(response.response) - _LONGEST
        shown.append(coloured_text(text, [(begin, min(end, len(text)), score) for begin, end, score in pieces]))
        if more > 0:
            shown.append(f"<p class=quiet>and {more:,} more characters</p>")
    return shown
