"""Pictures of measured rows: time and memory of the loss, and what training leaks."""

from __future__ import annotations

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


def loss() -> Drawing:
    found = rows.read("loss_cuda")
    shape = rows.one(found, method="fastdss", loss="k2")
    drawing = Drawing(944, 470, "Time and memory of the loss on an H100, the engine before the present one")
    sizes = f"{shape['n']} tokens, {shape['d']} hidden, {shape['v']} words"
    drawing.text(26, 34, f"The loss on one {shape['device'].split()[1]}, bf16: {sizes}", "ink strong")
    drawing.text(
        26, 56, "The engine before the present one, which was not measured on a GPU yet. Shorter is better.", "quiet"
    )
    y = 92.0
    for kl, words in (("k2", "cross-entropy and k2"), ("reverse", "cross-entropy and reverse KL")):
        first = y
        drawing.text(26, y, words, "ink strong")
        drawing.text(296, y, "time, over that of the matrix products", "quiet small")
        drawing.text(652, y, "memory beyond inputs and gradients, GiB", "quiet small")
        for way, name in _WAYS.items():
            row = next((row for row in found if row["method"] == way and row["loss"] == kl), None)
            if row is None:
                continue
            y += 25
            ours = way == "fastdss"
            drawing.text(280, y + 4, name, "ink strong" if ours else "ink", "end")
            gib = row["peak_extra_bytes"] / 2**30
            for x, value, scale, said in (
                (296, row["ratio_to_floor"], 48, f"{row['ratio_to_floor']:.2f}"),
                (652, gib, 12.5, f"{gib:.1f}" if gib >= 0.05 else "0.0"),
            ):
                drawing.rect(x, y - 9, max(1.5, value * scale), 17, "safe" if ours else "grey", round_by=2)
                drawing.text(x + value * scale + 7, y + 4, said, "ink strong small" if ours else "quiet small")
        drawing.line(344, first + 12, 344, y + 12, "axis", dashed=True)
        y += 44
    drawing.text(
        26,
        450,
        "The dashed line is the time of the products alone. Liger's CE + JSD takes no token weights.",
        "quiet small",
    )
    return drawing


def safety() -> Drawing:
    runs = rows.read("safety")
    drawing = Drawing(944, 350, "Leaks and useful answers by the share of poisoned training rows")
    panels = (("leak", "Answers that leak"), ("useful_no_leak", "Useful answers without a leak"))
    total = rows.counted(runs, "leak", method="sft", share=0.5)[1]
    for number, (what, title) in enumerate(panels):
        left, right, top, bottom = 62 + 466 * number, 356 + 466 * number, 66, 262
        drawing.text(left - 36, 34, title, "ink strong")
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
                low, high = rows.interval(count, of)
                y = bottom - count / of * (bottom - top)
                drawing.line(
                    x + shift, bottom - low * (bottom - top), x + shift, bottom - high * (bottom - top), f"l{kind}"
                )
                drawing.dot(x + shift, y, kind)
                points.append((x + shift, y))
            drawing.path(points, f"l{kind}")
            ends.append((points[-1][1], name, kind))
        _labels(drawing, right - 2, bottom, ends)
    made = "SmolLM2-135M on generated conversations, a toy guard's own verdicts."
    drawing.text(26, 332, f"{total} answers a point, three seeds, 95 % intervals; {made}", "quiet small")
    return drawing


def _variant(arm: str, share: float) -> dict[str, object]:
    return {"method": arm, "share": share} | ({"every": 5, "kl_scale": 0.5} if arm.startswith("dss") else {})


def _labels(drawing: Drawing, x: float, floor: float, ends: list[tuple[float, str, str]]) -> None:
    """Names beside the lines' ends, moved up where they would touch."""
    last = floor + 13.0
    for y, name, kind in sorted(ends, reverse=True):
        last = min(y, last - 16)
        drawing.text(x, last + 4, name, f"{kind} small strong")
