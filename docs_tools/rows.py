"""Measured rows, as benchmarks wrote them under ``benchmarks/results``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parents[1] / "benchmarks" / "results"


def read(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (RESULTS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def one(rows: Iterable[Mapping[str, Any]], **fields: Any) -> Mapping[str, Any]:
    """The only row with these fields: a figure without its row, or with two, is an error."""
    found = [row for row in rows if all(row.get(name) == value for name, value in fields.items())]
    if len(found) != 1:
        raise LookupError(f"expected one row with {fields}, found {len(found)}")
    return found[0]


def interval(count: int, total: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    z, share = 1.959964, count / total
    middle = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * (share * (1 - share) / total + z * z / (4 * total * total)) ** 0.5
    return max(0.0, middle - half), min(1.0, middle + half)


def counted(runs: Iterable[Mapping[str, Any]], what: str, **variant: Any) -> tuple[int, int]:
    """How often ``what`` happened, of how many answers, over all seeds of one variant under the guard's verdicts."""
    same = [run for run in runs if run["verdicts"] == "guard" and {**run["variant"], **variant} == run["variant"]]
    if not same:
        raise LookupError(f"expected runs of {variant}, found none")
    pairs = [run["counts"][what] for run in same]
    return sum(count for count, _ in pairs), sum(total for _, total in pairs)
