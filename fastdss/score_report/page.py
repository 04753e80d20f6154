"""The page of ``fastdss report``: findings and charts are plain HTML; rows are JSON that the page's script displays."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from itertools import pairwise
from typing import Any
from urllib.parse import quote

from fastdss.pages import pieces as report
from fastdss.pages.charts import STEPS, bars
from fastdss.pages.style import STYLE
from fastdss.star.scored import Flag

from .data import PageRow, Summary, columns, detail, script_data, visible

BLOCK = 250  # rows whose texts the script parses together, once one of them is opened: a choice
TAGS = {
    "low": "below ½",
    "recovers": "ends at ½ or above",
    Flag.FAILED: "failed",
    Flag.TRUNCATED: "truncated",
    Flag.DELIMITER: "quotes a delimiter",
    Flag.CONTROL_TOKENS: "spells control tokens",
    Flag.EMPTY: "empty",
    Flag.ONE_BOUNDARY: "one boundary only",
    "left_out": "nothing to train",
    "approximate": "approximate in part",
}
TOY = (
    "The guard is the toy that ships with fastdss: it knows the disclosure of contact details, and nothing else. "
    "Use a real guard for real data."
)
_BECAUSE = "because: "
_SCRIPTS = ("view.js", "row.js", "page.js")


def score_page(
    manifest: Mapping[str, Any], summary: Summary, rows: Sequence[PageRow], *, without_text: str | None = None
) -> str:
    """One HTML document that needs no network and no inline event handlers; every text is escaped or set as text.

    without_text: why the rows have no text, where they have none.
    """
    style = STYLE + "\n" + _asset("page.css")
    script = "(() => {\n" + "\n".join(map(_asset, _SCRIPTS)) + "\n})();"
    policy = (
        f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; base-uri 'none'; "
        "form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )
    title = f"What the guard saw in {summary.rows:,} {'response' if summary.rows == 1 else 'responses'}"
    body = [
        "<main>",
        *_findings(title, manifest, summary),
        *_list(summary, rows, without_text),
        _about(manifest),
        "</main>",
    ]
    tags = [*TAGS, *sorted(summary.tags.keys() - TAGS)]
    body.append(_data("index", _index(tags, summary, rows)))
    for start in range(0, len(rows), BLOCK):
        body.append(_data(f"block-{start // BLOCK}", [detail(row) for row in rows[start : start + BLOCK]]))
    body.append(f"<script>{script}</script>")
    head = f'<meta http-equiv="Content-Security-Policy" content="{policy}"><meta name="referrer" content="no-referrer">'
    return report.document(title, body, style=style, head=head)


def _index(tags: Sequence[str], summary: Summary, rows: Sequence[PageRow]) -> dict[str, Any]:
    return {
        "columns": columns(rows, tags),
        "tags": [[tag, TAGS.get(tag, tag.removeprefix(_BECAUSE).replace("_", " "))] for tag in tags],
        "steps": STEPS,
        "block": BLOCK,
        "left_out": summary.rows - len(rows),
    }


def _findings(title: str, manifest: Mapping[str, Any], summary: Summary) -> list[str]:
    return [
        f'<header class="top"><h1>{escape(title)}</h1>'
        '<button type="button" id="theme" class="plain" aria-label="Switch between light and dark">◐</button>'
        f'<p class="lead">{escape(lead(summary))}</p></header>',
        _run(manifest),
        *_certificate(manifest),
        *([f'<p class="note">{escape(TOY)}</p>'] if _is_toy(manifest["guard"]) else []),
        _cards(summary),
        *_reasons(summary),
        f'<div class="panels thirds">{"".join(_charts(summary))}</div>',
        '<p class="quiet meaning">Bars count responses. P(safe) is the probability that the guard gives to a response '
        "being safe as far as it had been read: under ½, and orange, the guard calls it unsafe.</p>",
        f'<ul class="legend scale" aria-hidden="true">{_scale()}</ul>',
    ]


def _is_toy(guard: str | Sequence[str]) -> bool:
    """Whether one of the guards is the built-in one: by the word that loads it, its folder, or its spec's name."""
    names = [guard] if isinstance(guard, str) else guard
    return any(name.rstrip("/").rpartition("/")[2] in ("tiny", "tiny_guard", "fastdss-tiny-guard") for name in names)


def _run(manifest: Mapping[str, Any]) -> str:
    given = manifest["revision"]  # a list where there are several guards; whole among the facts at the end
    revision = [str(one).removeprefix("sha256:")[:12] for one in (given if isinstance(given, list) else [given])]
    paths = [str(item["path"]) for item in manifest["inputs"] if item.get("path")]
    data = {"data": [path.rstrip("/").rpartition("/")[2] for path in paths[:3]] + ["…"] * (len(paths) > 3)}
    facts = {**data, "guard": manifest["guard"], "revision": revision, **manifest["options"]}
    facts.pop("max_bytes", None)
    shown = (f"{escape(k.replace('_', ' '))} <b>{escape(v)}</b>" for k, v in _facts(facts).items() if v != "–")
    return f'<p class="quiet run">{" · ".join(shown)}</p>'


def _certificate(manifest: Mapping[str, Any]) -> list[str]:
    """What is known of the error of approximate scores, where approximation was asked for."""
    approx = manifest.get("approx")
    if approx is None:
        return []
    drawn = " They are drawn as hollow dots, and dotted under the text." if approx["approximated"] else ""
    return [f'<p class="note certificate">{escape(approx["words"] + drawn)}</p>']


def lead(summary: Summary) -> str:
    """The main finding, in two sentences."""
    if not summary.rows:
        return "There are no responses."
    if not summary.scored:
        return f"No response has a score; failed: {summary.rows:,}. A failed response never counts as safe."
    low, recovers = summary.tags["low"], summary.tags["recovers"]
    if not low:
        return f"No prefix of the {summary.scored:,} scored responses falls below one half."
    share = _percent(low / summary.scored)
    first = f"{low:,} of {summary.scored:,} scored responses ({share}) fall below one half somewhere"
    where = "" if summary.median_drop is None else f", half of them within their first {_percent(summary.median_drop)}"
    if not recovers:
        return f"{first}{where}. None of them ends at one half or above."
    verb = "ends" if recovers == 1 else "end"
    missed = f"{recovers:,} of the {low:,} {verb} at one half or above"
    return f"{first}{where}. {missed}: a verdict on the whole response alone would pass."


def _cards(summary: Summary) -> str:
    tags = summary.tags
    shown = [
        ("scored", summary.scored, "", "plain"),
        ("of these fall below ½", tags["low"], "low", "plain"),
        ("fall below ½, yet end at ½ or above", tags["recovers"], "recovers", "plain"),
        ("failed: no score, never safe", tags["failed"], Flag.FAILED, "bad" if tags["failed"] else "plain"),
        ("truncated: the end was not seen", tags["truncated"], Flag.TRUNCATED, "plain"),
        ("quote a delimiter of the template", tags["delimiter"], Flag.DELIMITER, "plain"),
    ]
    cards = (
        f'<div class="card"><span class="big {tone}">{count:,}</span>'
        + (f'<p><a href="#flags={tag}">{words}</a></p></div>' if tag and count else f"<p>{words}</p></div>")
        for words, count, tag, tone in shown
    )
    return f'<div class="cards">{"".join(cards)}</div>'


def _reasons(summary: Summary) -> list[str]:
    """The reasons for which answers have no scores, most frequent first; a click on one filters the list of rows."""
    counted = {tag: count for tag, count in summary.tags.items() if tag.startswith(_BECAUSE)}
    if not counted:
        return []
    lines = []
    for tag, count in sorted(counted.items(), key=lambda item: -item[1])[:10]:
        link, words = quote(tag, errors="replace"), escape(visible(tag.removeprefix(_BECAUSE)))
        lines.append(f'<li><a href="#flags={link}">{count:,} × {words}</a></li>')
    return [f'<section class="reasons"><h2 class="title">Why there is no score</h2><ul>{"".join(lines)}</ul></section>']


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.01 else "less than 1 %"


def _charts(summary: Summary) -> list[str]:
    axis = "P(safe)"
    unseen = summary.scored - sum(summary.final)
    final = f"Of {unseen:,} the guard did not see the end." if unseen else "The verdict a static filter would use."
    charts = [
        ("Lowest score", "Of all prefixes of a response.", summary.minimum, "minimum", axis, ""),
        ("Final score", final, summary.final, "final", axis, ""),
        ("First drop below ½", "How far into the response.", summary.drop, "drop", "share of the response", "hot"),
    ]
    return [
        f'<figure><h2 class="title">{title}</h2><p class="quiet">{escape(text)}</p>'
        + (
            bars(counts, field=field, axis=axis, label=title, percent=field == "drop", tone=tone)
            if any(counts)
            else '<p class="nothing">none</p>'
        )
        + "</figure>"
        for title, text, counts, field, axis, tone in charts
    ]


def _scale() -> str:
    edges = (0.0, *STEPS, 1.0)
    return "<li>P(safe)</li>" + "".join(
        f'<li><span class="swatch heat{i}">{low:g}–{high:g}</span></li>'
        for i, (low, high) in enumerate(pairwise(edges))
    )


def _list(summary: Summary, rows: Sequence[PageRow], without_text: str | None) -> list[str]:
    notes = []
    if left_out := summary.rows - len(rows):
        notes.append(
            f"This page holds the {len(rows):,} responses with the lowest scores, failed ones last; {left_out:,} more "
            "are in the charts only (fastdss report --limit)."
        )
    if without_text is not None:
        notes.append(
            f"Only scores are shown, because the text could not be read: {without_text}. Name the scored files after "
            "the folder (fastdss report DIR INPUT…)."
        )
    options = "".join(
        f'<option value="{value}">{words}</option>'
        for value, words in (
            ("minimum", "by lowest score"),
            ("final", "by final score"),
            ("drop", "by first drop"),
            ("length", "by length"),
            ("id", "by id"),
            ("order", "by place in the file"),
        )
    )
    fields = "".join(
        f'<option value="{value}">{words}</option>'
        for value, words in (("minimum", "lowest score"), ("final", "final score"), ("drop", "first drop"))
    )
    number = 'type="number" min="0" max="1" step="0.05"'
    return [
        '<section class="rows" aria-labelledby="rows-title"><h2 id="rows-title">The responses</h2>',
        *(f'<p class="note">{escape(note)}</p>' for note in notes),
        '<noscript><p class="note">The list needs JavaScript; the charts above do not.</p></noscript>',
        '<form class="tools" role="search" id="tools">'
        '<input type="search" id="query" placeholder="Search text and ids" aria-label="Search text and ids" '
        'autocomplete="off" spellcheck="false">'
        f'<span class="group"><select id="sort" aria-label="Order">{options}</select>'
        '<button type="button" id="reverse" class="plain" aria-pressed="false" '
        'aria-label="Descending">↑</button>'
        "</span>"
        f'<span class="group"><select id="field" aria-label="Score to filter by">{fields}</select>'
        f'<label for="low">from</label><input {number} id="low" placeholder="0">'
        f'<label for="high">to</label><input {number} id="high" placeholder="1"></span>'
        '<span class="group" id="flags" role="group" aria-label="Only rows that are"></span>'
        '<label class="group"><input type="checkbox" id="numbers"> numbers in the text</label></form>',
        '<p class="status"><span id="count" role="status"></span> <button type="button" id="clear" class="link" hidden>'
        "show all</button></p>",
        '<div class="columns" aria-hidden="true"><span>lowest</span><span>along the response</span><span></span>'
        "<span>final</span><span>characters</span></div>",
        '<ol id="list" role="list"></ol>',
        '<nav class="pages" aria-label="Pages of the list"><button type="button" id="previous">Previous</button>'
        '<span id="page"></span><button type="button" id="next">Next</button></nav>',
        '<p class="keys quiet"><kbd>j</kbd> <kbd>k</kbd> next, previous row · <kbd>Enter</kbd> open · '
        "<kbd>←</kbd> <kbd>→</kbd> chunk by chunk · <kbd>/</kbd> search · <kbd>n</kbd> <kbd>p</kbd> next, previous "
        "page · <kbd>Esc</kbd> close</p></section>",
    ]


def _about(manifest: Mapping[str, Any]) -> str:
    shown = {name: value for name, value in manifest.items() if name != "shards"}  # names of files, of no interest
    facts = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in _facts(shown).items()
    )
    return f'<section class="about"><h2>How these scores were made</h2><dl class="facts">{facts}</dl></section>'


def _facts(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested mappings flattened: ``{"a": {"b": 1}}`` becomes ``{"a b": "1"}``; lists of plain values become text."""
    flat: dict[str, str] = {}
    for name, value in values.items():
        name = f"{prefix}{name}"
        if isinstance(value, Mapping):
            flat |= _facts(value, f"{name} ")
        elif isinstance(value, list | tuple):
            flat |= {name: ", ".join(map(str, value))} if not any(isinstance(v, Mapping) for v in value) else {}
            for i, item in enumerate((v for v in value if isinstance(v, Mapping)), 1):
                flat |= _facts(item, f"{name} {i} ")
        else:
            flat[name] = "–" if value is None else str(value)
    return flat


def _asset(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _data(name: str, value: Any) -> str:
    return f'<script type="application/json" id="{name}">{script_data(value)}</script>'


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
