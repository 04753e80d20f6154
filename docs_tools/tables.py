"""Tables of README and docs/, from committed rows; they stand between marks, so that text around them is free."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from . import evidence, loss_tables, rows


def speed() -> str:
    star, cuda, train, cpu = (rows.read(name) for name in ("star_cpu", "loss_cuda", "train", "loss_cpu"))
    lines = ["| | the plain way | the best other | fastdss | measured on |", "|---|---|---|---|---|"]

    def scored(commit: str, layers: object, way: str) -> float:
        return rows.one(star, words=200, boundaries=40, commit=commit, layers=layers, way=way)["speedupcpu"]

    whole = ("d9697ba", "all")
    plain, cached, ours = (
        scored(*whole, way) for way in ("one forward per prefix", "vLLM, prefix caching", "fastdss, oneDNN")
    )
    lines.append(
        f"| scores of 200 words, 40 boundaries: speed by processor time | {plain:.1f} (one forward per prefix) | "
        f"{cached:.1f} (vLLM, prefix caching) | **{ours:.1f}** | 2 CPU threads, SmolLM2-135M |"
    )
    released, trl, fast = (_step(train, name) for name in ("released", "trl", "fastdss"))
    lines.append(
        f"| a training step, k2: time over that of fused SFT; memory | "
        f"{released} (as released) | {trl} (TRL's fused head) | "
        f"**{fast}** | 2 CPU threads |"
    )
    for dtype, name in (
        ("float32", "the loss, k2, fp32, on prose: time over that of its matrix products (error of the gradient)"),
        ("bfloat16", "the same, bf16"),
    ):
        eager, best, fast, dropping = (
            loss_tables.timed(loss_tables.prose(cpu, method, dtype, "k2"))
            for method in ("eager", "cut-cross-entropy", "fastdss", "fastdss, grad_tol=2**-10")
        )
        lines.append(
            f"| {name} | {eager} (eager) | {best} (cut-cross-entropy) | "
            f"**{fast}**; {dropping} with `grad_tol=2**-10` | 1 CPU thread |"
        )
    for kl, name in (
        ("k2", "the loss, k2, bf16: time over that of its matrix products; memory"),
        ("reverse", "the same, reverse KL"),
    ):
        eager, compiled, fast = (rows.one(cuda, loss=kl, method=way) for way in ("eager", "torch.compile", "fastdss"))
        lines.append(
            f"| {name} | {_gpu(eager)} (eager) | {_gpu(compiled)} (`torch.compile`) | {_gpu(fast)} | H100, previous "
            "engine |"
        )
    return "\n".join(lines)


def training() -> str:
    found = rows.read("train")
    ways = {
        "sft": "fused SFT, no weights",
        "released": "STAR-DSS as released: full logits of both models",
        "trl": "TRL's fused head for both models",
        "fastdss": "fastdss, k2 with `reference_logprobs`",
        "fastdss-filter": "the same with `grad_tol=2**-10`",
        "fastdss-live": "fastdss, reverse KL with a live reference",
    }
    lines = ["| | time over fused SFT's | memory of a step |", "|---|---|---|"]
    lines += [f"| {words} | {' | '.join(_step(found, name).split(', '))} |" for name, words in ways.items()]
    return "\n".join(lines)


def safety() -> str:
    runs = rows.read("safety")
    ways = {
        "plain SFT": {"method": "sft"},
        "static filter on whole responses": {"method": "rs"},
        "STAR-DSS, k2 (paper)": {"method": "dss-k2", "every": 5, "kl_scale": 0.5},
        "STAR-DSS, reverse KL": {"method": "dss-reverse", "every": 5, "kl_scale": 0.5},
    }
    lines = ["| half of the rows poisoned | leaks | useful, no leak | degenerate |", "|---|---|---|---|"]
    for name, variant in ways.items():
        cells = (
            _share(*rows.counted(runs, what, share=0.5, **variant)) for what in ("leak", "useful_no_leak", "degenerate")
        )
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


TABLES: dict[str, Callable[[], str]] = {
    "speed": speed,
    "training": training,
    "loss on prose": loss_tables.on_prose,
    "loss, half counting": loss_tables.half_counting,
    "safety": safety,
    "demo": evidence.demo,
    "demo expectations": evidence.demo_expectations,
    "embedded": evidence.embedded,
    "styles": evidence.styles,
    "misses": evidence.misses,
}


def filled(text: str) -> str:
    """``text`` with every marked table made anew."""
    for name, make in TABLES.items():
        marked = re.compile(rf"(?<=<!-- table {name}: make pictures -->\n)(?:\|.*\n)*(?=<!-- end of table -->)")
        found = marked.search(text)
        if found is not None:
            text = text[: found.start()] + make() + "\n" + text[found.end() :]
    return text


def _step(found: list[dict[str, Any]], variant: str) -> str:
    """A variant's time over fused SFT's, and its memory; the two were measured in processes of their own."""
    same = [row for row in found if row["commit"] == "61b0812" and row["bench"] == "train-step"]
    base, timed = (rows.one([row for row in same if "median_s" in row], variant=name) for name in ("sft", variant))
    memory = rows.one([row for row in same if "step_bytes" in row], variant=variant)
    return f"{timed['median_s'] / base['median_s']:.2f}, {memory['step_bytes'] / 2**20:.0f} MiB"


def _gpu(row: Mapping[str, Any]) -> str:
    return f"{row['ratio_to_floor']:.2f}, {row['peak_extra_bytes'] / 2**20:.0f} MiB"


def _share(count: int, total: int) -> str:
    low, high = rows.interval(count, total)
    return f"{100 * count / total:.0f} % [{100 * low:.0f}–{100 * high:.0f}]"
