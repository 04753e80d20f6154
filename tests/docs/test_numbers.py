"""The tables that are typed by hand say what the committed rows say. Those between marks are made of rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from docs_tools.rows import read as rows

ROOT = Path(__file__).resolve().parents[2]
Row = dict[str, Any]


def one(found: list[Row], **of: Any) -> Row:
    """The last of the rows that have these values: a way that was measured again replaces what it was."""
    return [row for row in found if all(row.get(key) == value for key, value in of.items())][-1]


def table(page: str, header: str) -> dict[str, list[str]]:
    """First cell -> the others, of the table whose header begins so."""
    lines = (ROOT / "docs" / page).read_text().splitlines()
    (start,) = [i for i, line in enumerate(lines) if line.startswith(header)]
    body = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        cells = [cell.strip().removeprefix("**").removesuffix("**") for cell in line.strip("|").split("|")]
        body.append([cell.replace("`", "") for cell in cells])
    return {cells[0]: cells[1:] for cells in body}


def near(said: str, true: float) -> bool:
    """Whether ``said`` is ``true`` to the digits that it has, either way where it lies between two."""
    number = said.split()[0]
    digits = len(number.partition(".")[2])
    return abs(float(number) - true) <= 0.5001 * 10**-digits


def check(said: list[str], true: list[float | None], where: str) -> None:
    assert len(said) == len(true), where
    for cell, value in zip(said, true, strict=True):
        if value is None:
            assert cell in ("-", ""), (where, cell)
        else:
            assert near(cell, value), (where, cell, value)


def mib(row: Row) -> float:
    return float(row["peak_extra_bytes"]) / 2**20


def test_the_loss_on_an_h100() -> None:
    said, found = table("performance.md", "| | CE, or CE + k2: time"), rows("loss_cuda")
    methods = {"fastdss": "fastdss", "torch.compile, full logits": "torch.compile", "eager, full logits": "eager",
               "Liger, chunks 16 times its own": "liger, large chunks", "Liger": "liger",
               "cut-cross-entropy": "cut-cross-entropy"}  # fmt: skip
    full = {"liger": "liger CE + JSD (unweighted)", "liger, large chunks": "liger CE + JSD, large chunks (unweighted)"}
    assert set(said) == set(methods)
    for name, method in methods.items():
        case = {"live": 1.0, "frozen": False, "n": 8192, "d": 4096}
        ce = one(found, method=method, loss="ce", **case)
        more: list[float | None] = [None, None]
        if name != "cut-cross-entropy":
            reverse = one(found, method=full.get(method, method), loss="reverse", **case)
            more = [reverse["ratio_to_floor"], mib(reverse)]
        check(said[name], [ce["ratio_to_floor"], mib(ce), ce["error"], *more], name)


def test_scores_on_a_cpu() -> None:
    said, found = table("performance.md", "| way | tokens computed | speed |"), rows("star_cpu")
    names = {"one forward per prefix": "one forward per prefix",
             "generate per prefix, as in the paper's code": "generate per prefix",
             "prefixes in batches sorted by length": "length-sorted batches",
             "one cache, cropped at each boundary": "cropped DynamicCache",
             "FlexAttention over the same tree": "FlexAttention", "fastdss": "fastdss",
             "fastdss with oneDNN's prepacked layers": "fastdss, oneDNN"}  # fmt: skip
    assert set(said) == set(names)
    for name, way in names.items():
        row = one(found, way=way, layers=6, words=200, boundaries=40, threads=1)
        check(said[name], [row["tokens"], row["speedupcpu"]], name)


@pytest.mark.parametrize("column", range(5))
def test_vllm_beside_whole_models(column: int) -> None:
    said, found = table("performance.md", "| seconds (wall), median |"), rows("star_cpu")
    of = [
        {"shape": "tiny-guard", "words": 22},
        {"shape": "smollm2-135m", "layers": "all", "words": 200, "boundaries": 40},
        {"shape": "smollm2-135m", "layers": "all", "words": 449, "boundaries": 16},
        {"shape": "smollm2-135m", "layers": "all", "words": 449, "boundaries": 128},
        {"shape": "granite-2b", "layers": 10, "words": 200, "boundaries": 40},
    ][column]
    names = {"one cache, cropped at each boundary": "cropped DynamicCache",
             "fastdss with oneDNN's prepacked layers": "fastdss, oneDNN"}  # fmt: skip
    for name, cells in said.items():
        check([cells[column]], [one(found, way=names.get(name, name), threads=2, **of)["median_s"]], f"{name} {of}")


def test_forward_kl_from_stored_vectors() -> None:
    said, found = table("loss.md", "| slopes stored in |"), {row["dtype"]: row for row in rows("forward_kl")}
    names = {"fp32": "float32", "fp16 (what the columns hold)": "float16", "bf16": "bfloat16", "live reference": "live"}
    assert set(said) == set(names)
    for name, stored in names.items():
        errors = [found[dtype]["gradient_error"][f"{part}, {stored}"]
                  for dtype in ("float32", "bfloat16") for part in ("loss", "kl")]  # fmt: skip
        assert [float(cell) for cell in said[name]] == errors


def test_three_seeds() -> None:
    """Runs by what varies, in the order of the table's numbers."""
    runs = {
        "plain SFT at 1 / 10 / 50 / 100 % poison": [f"plain SFT, {share} % poison" for share in (1, 10, 50, 100)],
        "static filter (RS), the same": [f"static filter, {share} % poison" for share in (1, 10, 50, 100)],
        "STAR-DSS k2, the same": [f"k2, {share} % poison, M = 5, KL scale 0.5" for share in (1, 10, 50, 100)],
        "k2, M = 1 / 5 / 10 / whole response":
            [f"k2, 50 % poison, M = {every}, KL scale 0.5" for every in (1, 5, 10, "whole")],
        "k2, KL scale 0.1 / 0.5 / 1 / 2": [f"k2, 50 % poison, M = 5, KL scale {scale}" for scale in (0.1, 0.5, 1, 2)],
        "k2 / k3 / reverse / forward KL":
            [f"{kl}, 50 % poison, M = 5, KL scale 0.5" for kl in ("k2", "k3", "reverse", "forward")],
    }  # fmt: skip
    said = table("safety.md", "| | leaks | useful, no leak | degenerate |")
    true = table("../benchmarks/results/safety.md", "| run | leak | useful, no leak | degenerate |")
    assert set(said) == set(runs)
    for name, cells in said.items():
        for column, cell in enumerate(cells):
            assert cell == " / ".join(true[run][column].split()[0] for run in runs[name]) + " %", (name, column)


@pytest.mark.parametrize(("header", "scored"), [("| words | rows | approximated", 60), ("| probe | promise |", 40)])
def test_approximate_scores(header: str, scored: int) -> None:
    """The last columns, from the share that was spared; fewer tokens, faster, rows off, the largest error."""
    found = [row for row in rows("probe_cpu") if row["rows"] == scored]
    text = (ROOT / "docs" / "approximate.md").read_text()
    lines = text.split(f"\n{header}", 1)[1].split("\n\n")[0].splitlines()[2:]
    assert len(lines) == len(found)
    for line, row in zip(lines, found, strict=True):
        spared, fewer, faster, off, largest = line.replace("*", "").strip("| ").split(" | ")[-5:]
        assert near(spared, 100 * row["approximated"])
        check([fewer, faster, largest], [row["fewer_tokens"], row["faster"], row["largest_error"]], line)
        assert int(off) == row["rows_off"]


SENTENCES: list[tuple[str, str, Callable[[], list[float]]]] = [
    ("performance.md", "A plain causal forward over the same 3150 tokens has speed {}.",
     lambda: [one(rows("star_cpu"), way="plain causal forward", layers=6, boundaries=40)["speedupcpu"]]),
    ("performance.md", "At 800 words and 160 boundaries they measured {} ({} with oneDNN) where one "
     "cropped cache measured {}, and at 10 boundaries {} ({}).",
     lambda: [one(rows("star_cpu"), way=way, layers=6, boundaries=count)["speedupcpu"]
              for way, count in (("fastdss", 160), ("fastdss, oneDNN", 160), ("cropped DynamicCache", 160),
                                 ("fastdss", 10), ("fastdss, oneDNN", 10))]),
    ("loss.md", "the loss takes {} times as long in fp32 and {} times in bf16",
     lambda: [rows("token_stats_cpu")[-1][f"loss, {dtype}"]["with"] for dtype in ("fp32", "bf16")]),
    ("loss.md", "On a CPU a call costs {} ms beside its products, k2 {} (",
     lambda: [rows("host_cpu")[-1]["median_ms"][name] - rows("host_cpu")[-1]["median_ms"]["products"]
              for name in ("cross-entropy", "k2")]),
    ("loss.md", "with a live reference takes {} times as long as from stored vectors in fp32, {} times in bf16",
     lambda: [row["ratio_to_stored"]["live"] for row in rows("forward_kl")]),
    ("performance.md", "For 4,000 rows `score_dataset` takes {} % longer than `star_scores` inside it "
     "({} % of processor time), {} rows/s on one thread; its memory peaks at {} MB, as for 400 rows",
     lambda: [(row := one(rows("corpus_cpu"), measure="memory", rows=4000))["overhead"] * 100,
              row["overhead_cpu"] * 100, row["rows_per_s"], row["peak_bytes"] / 1e6]),
]  # fmt: skip


@pytest.mark.parametrize("at", range(len(SENTENCES)))
def test_a_sentence(at: int) -> None:
    page, text, true = SENTENCES[at]
    said = " ".join((ROOT / "docs" / page).read_text().split())
    parts = text.split("{}")
    numbers = []
    rest = said.split(parts[0], 1)[1]
    for part in parts[1:]:
        number, _, rest = rest.partition(part)
        numbers.append(number)
    assert said.count(parts[0]) == 1
    check(numbers, list(true()), text)


def test_the_checker_tells() -> None:
    assert near("1.23", 1.2349)
    assert near("2004 MiB", 2004.07)
    assert not near("1.23", 1.2361)
    assert not near("0.0017", 0.0018)
