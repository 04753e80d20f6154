"""Pictures of measured rows: time and memory of the loss, and what training leaks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from . import rows
from .drawing import Drawing

_WAYS = {  # the benchmark's name -> the picture's
    "fastdss": "fastdss",
    "torch.compile": "torch.compile, full logits",
    "eager": "eager, full logits",
    "liger, large chunks": "Liger, 16 times its chunks",
    "liger": "Liger",
    "cut-cross-entropy": "cut-cross-entropy",
    "liger CE + JSD, large chunks (unweighted)": "Liger CE + JSD, 16 times its chunks",
    "liger CE + JSD (unweighted)": "Liger CE + JSD",
}
_SHARES = (0.01, 0.1, 0.5, 1.0)
_ARMS = {"sft": ("plain SFT", "unsafe"), "rs": ("static filter", "grey"), "dss-k2": ("STAR-DSS, k2", "safe")}


def loss(narrow: bool = False) -> Drawing:
    """``narrow`` puts a way's name above its two bars, for screens of a hand's width."""
    found = rows.read("loss_cuda")
    shape = rows.one(found, method="fastdss", loss="k2")
    title = "Time and memory of the loss on an H100, by the previous engine"
    drawing = Drawing(480, 860, title) if narrow else Drawing(944, 470, title)
    chip, sizes = shape["device"].split()[1], f"{shape['n']} tokens, {shape['d']} hidden, {shape['v']} words"
    first = [f"The loss on one {chip}, bf16"] if narrow else [f"The loss on one {chip}, bf16: {sizes}"]
    more = ["By the previous engine: the present one was not", "measured on a GPU yet. Shorter is better."]
    more = [sizes, *more] if narrow else [" ".join(more)]
    y = drawing.lines(26, 34, first, "ink strong")
    y = drawing.lines(26, y, more, "quiet") + 14
    time, memory = (26, 262) if narrow else (296, 652)
    per_time, per_gib = (27, 8) if narrow else (48, 12.5)
    for kl, words in (("k2", "cross-entropy and k2"), ("reverse", "cross-entropy and reverse KL")):
        drawing.text(26, y, words, "ink strong")
        y += 24 if narrow else 0
        drawing.text(
            time, y, "time, over the products'" if narrow else "time, over that of the matrix products", "quiet small"
        )
        drawing.text(memory, y, "memory, GiB" if narrow else "memory beyond inputs and gradients, GiB", "quiet small")
        for way, name in _WAYS.items():
            row = next((row for row in found if row["method"] == way and row["loss"] == kl), None)
            if row is None:
                continue
            ours = way == "fastdss"
            y += 30 if narrow else 25
            if narrow:
                drawing.text(26, y, name, "ink strong" if ours else "ink")
                y += 19
            else:
                drawing.text(280, y + 4, name, "ink strong" if ours else "ink", "end")
            gib = row["peak_extra_bytes"] / 2**30
            for x, length, said in (
                (time, row["ratio_to_floor"] * per_time, f"{row['ratio_to_floor']:.2f}"),
                (memory, gib * per_gib, f"{gib:.1f}" if gib >= 0.05 else "0.0"),
            ):
                drawing.rect(x, y - 9, max(1.5, length), 17, "safe" if ours else "grey", round_by=2)
                drawing.text(x + length + 7, y + 4, said, "ink strong small" if ours else "quiet small")
            drawing.line(time + per_time, y - 13, time + per_time, y + 12, "axis", dashed=True)
        y += 44
    last = ["The dashed line is the time of the products alone.", "Liger's CE + JSD takes no token weights."]
    drawing.lines(26, drawing.height - (38 if narrow else 20), last if narrow else [" ".join(last)], "quiet small")
    return drawing


def safety(narrow: bool = False) -> Drawing:
    """``narrow`` puts the two panels one above the other."""
    runs = rows.read("safety")
    title = "Leaks and useful answers by the share of poisoned training rows"
    drawing = Drawing(480, 692, title) if narrow else Drawing(944, 350, title)
    panels = (("leak", "Answers that leak"), ("useful_no_leak", "Useful answers without a leak"))
    for number, (what, heading) in enumerate(panels):
        across, down = (0, 306 * number) if narrow else (466 * number, 0)
        _panel(drawing, runs, what, heading, (62 + across, 356 + across, 66 + down, 262 + down))
    total = rows.counted(runs, "leak", method="sft", share=0.5)[1]
    last = [f"{total} answers a point, three seeds, 95 % intervals;"]
    last += ["SmolLM2-135M on generated conversations, a toy guard's own verdicts."]
    drawing.lines(26, drawing.height - (38 if narrow else 18), last if narrow else [" ".join(last)], "quiet small")
    return drawing


def _panel(
    drawing: Drawing, runs: Sequence[Mapping[str, Any]], what: str, heading: str, box: tuple[int, int, int, int]
) -> None:
    left, right, top, bottom = box
    drawing.text(left - 36, top - 32, heading, "ink strong")
    for share in (0.0, 0.5, 1.0):
        y = bottom - share * (bottom - top)
        drawing.line(left, y, right, y, "axis" if share == 0 else "rule")
        drawing.text(left - 8, y + 4, f"{share:.0%}".replace("%", " %"), "quiet small", "end")
    place = [left + 24 + (right - left - 48) * step / (len(_SHARES) - 1) for step in range(len(_SHARES))]
    for x, share in zip(place, _SHARES, strict=True):
        drawing.text(x, bottom + 20, f"{share:.0%}".replace("%", " %"), "quiet small", "middle")
    drawing.text((left + right) / 2, bottom + 40, "share of poisoned training rows", "quiet small", "middle")
    ends = []
    for shift, (arm, (name, kind)) in zip((-5, 0, 5), _ARMS.items(), strict=True):
        points = []
        for x, share in zip(place, _SHARES, strict=True):
            count, of = rows.counted(runs, what, **_variant(arm, share))
            low, high = (bottom - edge * (bottom - top) for edge in rows.interval(count, of))
            drawing.line(x + shift, low, x + shift, high, f"l{kind}")
            points.append((x + shift, bottom - count / of * (bottom - top)))
            drawing.dot(*points[-1], kind)
        drawing.path(points, f"l{kind}")
        ends.append((points[-1][1], name, kind))
    _labels(drawing, right - 2, bottom, ends)


def _variant(arm: str, share: float) -> dict[str, object]:
    return {"method": arm, "share": share} | ({"every": 5, "kl_scale": 0.5} if arm.startswith("dss") else {})


def _labels(drawing: Drawing, x: float, floor: float, ends: list[tuple[float, str, str]]) -> None:
    """Names beside the lines' ends, moved up where they would touch."""
    last = floor + 13.0
    for y, name, kind in sorted(ends, reverse=True):
        last = min(y, last - 16)
        drawing.text(x, last + 4, name, f"{kind} small strong")
