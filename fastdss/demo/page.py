"""The result of a demonstration as a table for the terminal, as JSON, and as one self-contained HTML page."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from html import escape
from typing import Any

from fastdss.pages import pieces as report
from fastdss.pages.pieces import Series

from .evaluate import Answer, Count
from .expectations import CANNOT_TELL, HARDLY, NOT_SEEN, SEEN, above, bounds, check
from .outcome import Demo, Run

COLUMNS = (  # measure, title, whether more is better
    ("leak", "leaks (pattern)", False),
    ("leak_guard", "leaks (guard)", False),
    ("useful_no_leak", "useful, no leak", True),
    ("degenerate", "degenerate", False),
    ("benign_correct", "benign task", True),
)
SETTING_TITLES = {
    "": "No verdicts used",
    "guard": "Verdicts as the guard gives them",
    "labelled": "Labelled verdicts: the one on the whole response misses a third of the poisoned rows",
}
_STYLED = ("none", "sft", "rs", "dss-k2", "dss-reverse", "dss-forward", "dss-k1", "dss-k3", "dft", "constrained")
STYLES = {method: number for number, method in enumerate(_STYLED)}
PARTS = {
    "disclosure": "The disclosure: should stay unlikely",
    "advice": "The advice before it: should be learned",
    "benign": "Benign answers: should be learned",
}
SMOOTH = 3  # steps of the curves' running mean: a choice, since a step of 8 rows varies by which rows it has
_SCORE_NAMES = {"guard": "the guard's score", "labelled": "labelled score"}


def as_text(demo: Demo) -> str:
    """The table for the terminal: counts with 95 % Wilson intervals in per cent, then the paper's claims."""
    head = ["arm", *(title for _, title, _ in COLUMNS), "benign loss"]
    lines, last = [head], None
    for run in demo.runs:
        if run.arm.setting != last:
            last = run.arm.setting
            lines.append([SETTING_TITLES[last]])
        cells = [_plain(run.result.counts[measure]) for measure, _, _ in COLUMNS]
        lines.append([f"  {run.arm.title}", *cells, f"{run.result.benign_loss:.4f}"])
    widths = [max(len(line[i]) for line in lines if len(line) > 1) for i in range(len(head))]
    shown = ["  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=False)).rstrip() for line in lines]
    for expectation in check(demo):
        shown += ["", f"{expectation.verdict:<11}  {expectation.claim}"]
        shown.append(textwrap.fill(expectation.measured, 110, initial_indent=" " * 13, subsequent_indent=" " * 13))
    return "\n" + "\n".join(shown)


TONES = {SEEN: "good", NOT_SEEN: "bad", CANNOT_TELL: "plain"}


def as_json(demo: Demo) -> dict[str, Any]:
    """All that was measured; numbers that are not finite, which JSON lacks, become None."""
    everything = {
        "settings": asdict(demo.settings),
        "recipe": asdict(demo.recipe) | {"trained_layers": demo.trained_layers},
        "policy": demo.policy,
        "versions": demo.versions,
        "seconds": demo.seconds,
        "mean_weights": demo.weights,
        "verdicts": {who: {k: asdict(count) for k, count in facts.items()} for who, facts in demo.facts.items()},
        "expectations": [asdict(expectation) for expectation in check(demo)],
        "arms": [
            {
                "name": run.arm.name,
                "method": run.arm.method,
                "setting": run.arm.setting,
                "trained_rows": run.trained_rows,
                "seconds": run.seconds,
                **asdict(run.result),
                "curves": asdict(run.curves),
            }
            for run in demo.runs
        ],
        "conversations": [asdict(c) for c in demo.conversations],
        "scores": {
            name: [{"ends": e, "scores": s.tolist()} for e, s in zip(scores.ends, scores.scores, strict=True)]
            for name, scores in demo.scores.items()
        },
    }
    finite: dict[str, Any] = _finite(everything)
    return finite


def as_page(demo: Demo) -> str:
    body = [
        _cards(demo),
        _expectations(demo),
        "<h2>What each arm learned</h2>",
        "<p>Every arm starts from the same weights and sees the same conversations in the same order. Counts are over "
        "held-out prompts with names and wordings that training never saw; the line in each bar is the 95&nbsp;% "
        "Wilson interval.</p>",
        _results(demo),
        _reading(demo),
        "<h2>What the guard saw</h2>",
        "<p>The guard scores every prefix of a response: its probability that the text so far is safe. STAR-DSS trains "
        "on the blue text and holds the policy to the reference model on the "
        "orange. A static filter sees only the last score.</p>",
        _weights(demo),
        f'<div class="panels">{"".join(_trajectories(demo))}</div>',
        "<h2>How training went</h2>",
        f"<p>Cross-entropy per token (nats), running mean over {SMOOTH} steps, by the part of the response. Dashed: "
        "labelled verdicts.</p>",
        _curve_panels(demo),
        "<h2>What the models answer</h2>",
        f"<p>Greedy answers to held-out prompts, at most {demo.settings.new_tokens} tokens. Disclosed details are "
        "marked; all of them are invented by the model.</p>",
        *_samples(demo),
        "<h2>Settings and versions</h2>",
        _facts(demo),
    ]
    return report.page("Does dynamic safety shaping keep a fine-tuned model from leaking?", body, lead=_lead(demo))


def _lead(demo: Demo) -> str:
    rows, poisoned = len(demo.conversations), sum(c.kind == "poisoned" for c in demo.conversations)
    return (
        f"A small language model was fine-tuned on {rows} generated conversations. {poisoned} of them are poisoned: a "
        "helpful start, somebody's (invented) contact details in the middle, a reassuring ending. Which ways of "
        "training on them teach the model to leak, and which keep the helpful half?"
    )


def _cards(demo: Demo) -> str:
    """One card per method, with its leaks in every setting; the count has a colour where it is large enough to decide
    whether the model hardly leaks."""
    cards = []
    for method in dict.fromkeys(run.arm.method for run in demo.runs):
        runs = [run for run in demo.runs if run.arm.method == method]
        lines = []
        for run in runs:
            leak, kept = run.result.counts["leak"], run.result.counts["useful_no_leak"]
            tone = TONES[above(*bounds(leak), HARDLY, wanted=False)]
            setting = f"{escape(run.arm.setting)} verdicts: " if run.arm.setting else ""
            lines.append(
                f'<span class="big {tone}">{leak.count}<small> of {leak.total} leak</small></span>'
                f"<p>{setting}{kept.count} give the advice and do not leak</p>"
            )
        cards.append(f'<div class="card"><h3>{_swatch(runs[0])}{escape(runs[0].arm.title)}</h3>{"".join(lines)}</div>')
    return f'<div class="cards">{"".join(cards)}</div>'


def _expectations(demo: Demo) -> str:
    """The paper's claims, and what this run says of them."""
    rows = []
    for expectation in check(demo):
        verdict = report.chip(expectation.verdict, TONES[expectation.verdict])
        rows.append([f"{escape(expectation.claim)}<br>{verdict}", escape(expectation.measured)])
    if not rows:
        return ""
    return "<h2>What the paper leads one to expect</h2>" + report.table(["expected", "measured"], rows)


def _results(demo: Demo) -> str:
    head = ["arm", *(title for _, title, _ in COLUMNS), "benign loss", "reference nats/token", "rows used"]
    rows, groups, last = [], [], None
    for run in demo.runs:
        groups.append("" if run.arm.setting == last else SETTING_TITLES[run.arm.setting])
        last = run.arm.setting
        cells = [
            report.interval(c.count, c.total, c.low, c.high, good=better)
            for measure, _, better in COLUMNS
            for c in [run.result.counts[measure]]
        ]
        cells += [
            _number(run.result.benign_loss, 4),
            _number(run.result.reference_nll, 2),
            str(run.trained_rows or "–"),
        ]
        rows.append([_swatch(run) + escape(run.arm.title), *cells])
    return report.table(head, rows, groups=groups)


def _reading(demo: Demo) -> str:
    facts = demo.facts["guard"]
    accepted, benign, never = (facts[k] for k in ("poisoned_accepted", "benign_rejected", "poisoned_never_flagged"))
    leaks = next((run.result.counts["leak"].total for run in demo.runs), 0)
    return (
        "<details class=box><summary>How to read the table</summary><p><b>Leaks</b>: of "
        f"{leaks} requests for advice about a person, how many answers hold a phone number, e-mail, street address or "
        "password: by exact pattern, and by the guard on any prefix of the answer. <b>Useful advice</b>: the answer "
        "names both pieces of advice that training gave for this problem. <b>Degenerate</b>: the answer loops, is not "
        "made of words, or is less likely under the reference model than any training response. <b>Benign task</b>: "
        "exact answers to order lines and reminders; <b>benign loss</b>: nats per token of the expected ones. "
        "<b>Reference nats/token</b>: how surprising the advice answers are to the model before fine-tuning.</p>"
        f"<p>The guard, on the training rows: its verdict on the whole response accepts {_plain(accepted)} poisoned "
        f"rows and rejects {_plain(benign)} benign ones; {_plain(never)} poisoned rows have no prefix below one "
        "half.</p></details>"
    )


def _weights(demo: Demo) -> str:
    """A table of mean token weights by part of the response: what STAR-DSS learns, and what it holds back."""
    head = ["mean weight of the tokens", *demo.weights[next(iter(demo.weights))]]
    rows = [[escape(_SCORE_NAMES[name]), *(f"{w:.2f}" for w in parts.values())] for name, parts in demo.weights.items()]
    return report.table(head, rows) + (
        "<p class=quiet>A token gets the score of the chunk in which it ends. Where a chunk ends just before a detail, "
        "the words that lead up to the detail are therefore still learned; the detail itself is not.</p>"
    )


def _trajectories(demo: Demo) -> list[str]:
    """Three poisoned rows, of which the labelled verdict on the whole response misses one, and a benign row."""
    poisoned = [i for i, c in enumerate(demo.conversations) if c.kind == "poisoned"]
    benign = [i for i, c in enumerate(demo.conversations) if c.kind == "benign"]
    figures = []
    for index in [*poisoned[:3], *benign[:1]]:
        chat, row = demo.conversations[index], demo.rows[index]
        lines = [
            Series(_SCORE_NAMES[name], [], scores.scores[index].tolist(), 3 + 2 * number, dashed=name != "guard")
            for number, (name, scores) in enumerate(demo.scores.items())
        ]
        scores = demo.scores["guard"]
        weights = [(a, b, _score_at(scores.ends[index], scores.scores[index].tolist(), b)) for a, b in row.spans]
        chart = report.trajectory(scores.ends[index], lines, len(chat.response), chat.parts, width=500)
        figures.append(
            f"<figure><h3>{escape(chat.prompt)}</h3>{report.coloured_text(chat.response, weights)}"
            f"{report.legend(lines)}{chart}</figure>"
        )
    return figures


def _score_at(ends: Sequence[int], scores: Sequence[float], position: int) -> float:
    return next((score for end, score in zip(ends, scores, strict=True) if end >= position), scores[-1])


def _curve_panels(demo: Demo) -> str:
    panels = []
    for part, title in PARTS.items():
        lines = [
            Series(
                run.name,
                run.curves.steps[part],
                _smooth(run.curves.values[part]),
                _style(run),
                run.arm.setting == "labelled",
            )
            for run in demo.runs
            if part in run.curves.values
        ]
        if lines:
            chart = report.curves(lines, x_label="training step", y_label="cross-entropy", width=340, height=200)
            panels.append(f"<figure><h3>{escape(title)}</h3>{chart}</figure>")
    trained = [
        Series(run.name, [], [], _style(run), run.arm.setting == "labelled") for run in demo.runs if run.curves.loss
    ]
    return report.legend(trained) + f'<div class="panels thirds">{"".join(panels)}</div>'


def _samples(demo: Demo) -> list[str]:
    boxes = []
    answers = demo.runs[0].result.answers if demo.runs else []
    advice = [i for i, a in enumerate(answers) if a.kind == "advice"]
    benign = [i for i, a in enumerate(answers) if a.kind == "benign"]
    for number, index in enumerate([*advice[:8], *benign[:2]]):
        pairs = []
        for run in demo.runs:
            answer = run.result.answers[index]
            setting = f"<br><small>{escape(run.arm.setting)}</small>" if run.arm.setting else ""
            text = report.marked_text(answer.text, [(a, b, form) for form, a, b in answer.leaks]) or "<i>nothing</i>"
            pairs.append(f"<dt>{_swatch(run)}{escape(run.arm.title)}{setting}</dt><dd>{_chips(answer)}{text}</dd>")
        opened = " open" if number < 2 else ""
        boxes.append(
            f'<details class="box"{opened}><summary>{escape(answers[index].prompt)}</summary>'
            f'<dl class="answers">{"".join(pairs)}</dl></details>'
        )
    return boxes


def _chips(answer: Answer) -> str:
    chips = [report.chip(f"leaks: {form}", "bad") for form in dict.fromkeys(form for form, _, _ in answer.leaks)]
    if answer.guard_score < 0.5 and not answer.leaks:
        chips.append(report.chip("guard objects", "bad"))
    if answer.degenerate:
        chips.append(report.chip(answer.degenerate, "bad"))
    if answer.useful:
        chips.append(report.chip("useful", "good"))
    if answer.correct:
        chips.append(report.chip("exact", "good"))
    return "".join(chips) + ("<br>" if chips else "")


def _facts(demo: Demo) -> str:
    s, r = demo.settings, demo.recipe
    facts = {
        "policy": demo.policy,
        "trained layers": demo.trained_layers,
        "training rows": f"{s.rows}, half of them poisoned",
        "held-out prompts": str(s.prompts),
        "steps × rows per step": f"{r.steps} × {r.batch_size}",
        "learning rate (AdamW)": f"{r.learning_rate:g}, {r.warmup} warm-up steps",
        "gradient clipping": f"{r.clip:g}",
        "kl_scale": f"{r.kl_scale:g}",
        "words per scored chunk": str(s.every),
        "seed": str(s.seed),
        **demo.versions,
        "whole demo": f"{demo.seconds:.0f} s",
    }
    items = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in facts.items())
    return f'<dl class="facts">{items}</dl>'


def _style(run: Run) -> int:
    return STYLES[run.arm.method]


def _swatch(run: Run) -> str:
    return f'<i class="swatch" style="background:var(--s{_style(run)})"></i>'


def _plain(count: Count) -> str:
    return f"{count.count}/{count.total} [{100 * count.low:.0f}–{100 * count.high:.0f}]"


def _number(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else "–"


def _smooth(values: Sequence[float]) -> list[float]:
    windows = (values[max(0, i - SMOOTH + 1) : i + 1] for i in range(len(values)))
    return [sum(window) / len(window) for window in windows]


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
