"""The tables of the loss on a CPU, from the rows of ``python benchmarks/bench_loss.py``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from . import rows

Row = Mapping[str, Any]
WAYS = {  # a method of the benchmark -> its name in a table
    "fastdss": "fastdss",
    "fastdss, grad_tol=2**-10": "fastdss, `grad_tol=2**-10`",
    "fastdss, grad_tol=2**-9": "fastdss, `grad_tol=2**-9`",
    "torch.compile": "`torch.compile`, full logits",
    "cut-cross-entropy": "cut-cross-entropy",
    "F.linear_cross_entropy": "`F.linear_cross_entropy`",
    "eager": "eager, full logits",
}
_PROSE = [("float32", "ce"), ("float32", "k2"), ("float32", "reverse"), ("bfloat16", "k2")]
_HALF = [
    ("cross-entropy", "float32", "ce", False),
    ("cross-entropy", "bfloat16", "ce", False),
    ("k2", "float32", "k2", False),
    ("k2", "bfloat16", "k2", False),
    ("k2, frozen head, N = 1024", "float32", "k2", True),
    ("reverse KL, N = 1024", "float32", "reverse", False),
    ("reverse KL, frozen head, N = 1024", "float32", "reverse", True),
]


def on_prose() -> str:
    """Hidden states of a real model: the time over that of the matrix products, and the error of the gradient."""
    found = rows.read("loss_cpu")
    lines = [
        "| on prose, all tokens count | fp32, cross-entropy | fp32, k2 | fp32, reverse KL | bf16, k2 | "
        "memory, fp32 and bf16 |",
        "|---|---|---|---|---|---|",
    ]
    for method, name in WAYS.items():
        cells = [prose(found, method, dtype, loss) for dtype, loss in _PROSE]
        memory = [_mib(row) for row in (cells[0], cells[3]) if row is not None]
        lines.append(f"| {name} | {' | '.join(map(timed, cells))} | {', '.join(memory)} MiB |")
    return "\n".join(lines)


def half_counting() -> str:
    """Random hidden states, half of the tokens ignored: the time over that of the products on the rows that count, and
    the memory of all ways in the columns' order."""
    found = rows.read("loss_cpu")
    ways = ("fastdss", "torch.compile", "cut-cross-entropy", "F.linear_cross_entropy", "eager")
    lines = [
        f"| half of the tokens count | dtype | {' | '.join(WAYS[way] for way in ways)} | memory, MiB |",
        "|---|---|" + "---|" * (len(ways) + 1),
    ]
    for name, dtype, loss, frozen in _HALF:
        by_way = [_found(found, way, dtype=dtype, loss=loss, frozen=frozen, text=False) for way in ways]
        times = ["-" if row is None else f"{row['cpu_ratio_to_floor']:.2f}" for row in by_way]
        memory = ", ".join("-" if row is None else _mib(row) for row in by_way)
        cells = [name, {"float32": "fp32", "bfloat16": "bf16"}[dtype], *times, memory]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def prose(found: Sequence[Row], method: str, dtype: str, loss: str) -> Row | None:
    return _found(found, method, dtype=dtype, loss=loss, text=True)


def timed(row: Row | None) -> str:
    """Processor time over that of the products, and the gradient's error."""
    return "-" if row is None else f"{row['cpu_ratio_to_floor']:.2f} ({_digits(row['error'])})"


def _digits(error: float) -> str:
    return f"{error:.0e}".replace("e-0", "e-") if error < 1e-3 else f"{float(f'{error:.1e}'):g}"


def _found(found: Sequence[Row], method: str, **case: Any) -> Row | None:
    """The row, or None where the method does not compute this loss or was not timed on it."""
    same = [row for row in found if all(row[name] == value for name, value in {**case, "method": method}.items())]
    return rows.one(same) if same else None


def _mib(row: Row) -> str:
    return f"{row['peak_extra_bytes'] / 2**20:.0f}"
