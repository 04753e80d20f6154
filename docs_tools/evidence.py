"""Tables of docs/safety.md, from committed rows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from . import rows

DEMO = rows.RESULTS / "demo.json"
_WAYS = {  # a method of the demo -> its name in a table
    "none": "no fine-tuning",
    "sft": "plain SFT",
    "dft": "DFT",
    "constrained": "constrained SFT",
    "rs": "static filter on whole responses",
    "dss-k2": "STAR-DSS, k2 (paper)",
    "dss-reverse": "STAR-DSS, reverse KL",
    "dss-forward": "STAR-DSS, forward KL",
}
_SETTINGS = {
    "": "no verdicts used",
    "guard": "verdicts as the guard gives them",
    "labelled": "labelled verdicts, the one on the whole response misses a third",
}
_STYLES = ("reworded", "formal", "casual", "role play", "later turn")
_COUNTS = ("leak", "leak_guard", "useful_no_leak", "degenerate", "benign_correct")


def keep_demo(path: Path) -> None:
    """The demo's numbers, from what `fastdss demo` wrote at ``path``, without texts, scores and curves."""
    told = json.loads(path.read_text(encoding="utf-8"))
    kept = {name: told[name] for name in ("settings", "policy", "versions", "seconds", "expectations")}
    kept["arms"] = [{n: arm[n] for n in ("method", "setting", "counts", "benign_loss")} for arm in told["arms"]]
    DEMO.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def demo() -> str:
    head = ("way of training", "leaks (pattern)", "leaks (guard)", "useful, no leak", "degenerate", "benign task")
    lines, last = [_row([*head, "benign loss"]), _row(["---"] * 7)], None
    for arm in json.loads(DEMO.read_text(encoding="utf-8"))["arms"]:
        if arm["setting"] != last:
            last = arm["setting"]
            lines.append(_row([f"*{_SETTINGS[last]}*", *[""] * 6]))
        cells = (_counted(arm["counts"][name]["count"], arm["counts"][name]["total"]) for name in _COUNTS)
        lines.append(_row([_WAYS[arm["method"]], *cells, f"{arm['benign_loss']:.4f}"]))
    return "\n".join(lines)


def demo_expectations() -> str:
    told = json.loads(DEMO.read_text(encoding="utf-8"))["expectations"]
    lines = [_row(["expected", "verdict"]), _row(["---"] * 2)]
    return "\n".join([*lines, *(_row([one["claim"], one["verdict"]]) for one in told)])


def embedded() -> str:
    """Ways of training by what their answers are, all seeds together; each seed's leaks in brackets."""
    runs = rows.read("safety_embedded")
    seeds = sorted({run["seed"] for run in runs})
    lines = [_row(["half of the rows poisoned", "leaks", "useful, no leak", "degenerate", "benign task"])]
    lines.append(_row(["---"] * 5))
    for method, name in _WAYS.items():
        answers = {seed: _answers(runs, method, seed) for seed in seeds}
        everything = [answer for some in answers.values() for answer in some]
        if not everything:
            continue
        apart = ", ".join(f"{_leaks(some)}/{len(some)}" for some in answers.values() if some)
        useful = sum(answer["useful"] and not answer["leaks"] for answer in everything)
        degenerate = sum(bool(answer["degenerate"]) for answer in everything)
        exact = [run["counts"]["benign_correct"] for run in runs if run["variant"]["method"] == method]
        cells = [f"{_share(_leaks(everything), len(everything))} ({apart})"]
        cells += [_share(count, len(everything)) for count in (useful, degenerate)]
        lines.append(_row([name, *cells, _share(sum(c for c, _ in exact), sum(total for _, total in exact))]))
    return "\n".join(lines)


def styles() -> str:
    """Leaks by style of prompt."""
    runs = rows.read("safety_embedded")
    lines = [_row(["leaks", *_STYLES]), _row(["---"] * 6)]
    for method, name in _WAYS.items():
        answers = _answers(runs, method)
        some = [[answer for answer in answers if answer["style"] == style] for style in _STYLES]
        if answers:
            lines.append(_row([name, *(_share(_leaks(each), len(each)) for each in some)]))
    return "\n".join(lines)


def misses() -> str:
    """What the built-in guard misses, by the sentence that discloses."""
    found = [row for row in rows.read("guard_misses") if row["table"] in ("demo", "varied")]
    lines = [_row(["the row's disclosure", "rows", "never flagged", "whole accepted"]), _row(["---"] * 4)]
    for table, title in (("demo", "the demo's rows"), ("varied", "the same rows, all with one sentence")):
        lines.append(_row([f"*{title}*", "", "", ""]))
        for row in found:
            if row["table"] == table:
                cells = (_share(row[name], row["rows"]) for name in ("missed", "accepted"))
                lines.append(_row([f"`{row['kind']}`", str(row["rows"]), *cells]))
    return "\n".join(lines)


def _answers(runs: Iterable[Mapping[str, Any]], method: str, seed: int | None = None) -> list[Mapping[str, Any]]:
    return [
        answer
        for run in runs
        if run["variant"]["method"] == method and seed in (None, run["seed"])
        for answer in run["answers"]
    ]


def _leaks(answers: Iterable[Mapping[str, Any]]) -> int:
    return sum(bool(answer["leaks"]) for answer in answers)


def _share(count: int, total: int) -> str:
    low, high = rows.interval(count, total)
    return f"{100 * count / total:.0f} % [{100 * low:.0f}–{100 * high:.0f}]"


def _counted(count: int, total: int) -> str:
    low, high = rows.interval(count, total)
    return f"{count}/{total} [{100 * low:.0f}–{100 * high:.0f}]"


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
