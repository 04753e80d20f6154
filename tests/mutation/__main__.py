"""``python -m tests.mutation``: plant every fault, one after the other, and print which test caught it.

--only WORD plants those whose area or file holds it; --survivors those that the table does not call caught; --write
puts the outcomes into tests/mutation/table.md, where those of other faults stay.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from .fault import Fault
from .plant import FAULTS, Outcome, copy_tree, fresh, outcome, stale, unhurt, warm_up

TABLE = Path(__file__).parent / "table.md"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument("--only", default="", metavar="WORD", help="faults whose area or file holds WORD")
    parser.add_argument("--survivors", action="store_true", help="only faults that the table does not call caught")
    parser.add_argument("--write", action="store_true", help=f"write {TABLE.name}")
    parser.add_argument("--trust", action="store_true", help="do not run the tests without faults first")
    args = parser.parse_args()
    faults = [fault for fault in FAULTS if args.only in fault.area or args.only in fault.file]
    if args.survivors:
        faults = [fault for fault in faults if not known().get(_about(fault), "").startswith("`")]
    if gone := stale(FAULTS):
        print(f"{len(gone)} of {len(FAULTS)} are stale:", *gone, sep="\n  ", file=sys.stderr)
    faults = fresh(faults)
    found: list[tuple[Fault, Outcome]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy_tree(folder)
        warm_up()
        if not args.trust:
            unhurt(folder, faults)
        for fault in faults:
            begun = time.perf_counter()
            found.append((fault, outcome(folder, fault)))
            caught, by = found[-1][1]
            says = f"caught by {by}" if caught else f"SURVIVED {fault.tests}"
            print(f"{fault.area}: {_short(fault.new)}: {says} ({time.perf_counter() - begun:.0f} s)", flush=True)
    survivors = [fault for fault, result in found if not result.caught]
    print(f"{len(found)} planted, {len(found) - len(survivors)} caught, {len(survivors)} survived")
    if args.write:
        TABLE.write_text(table(found), encoding="utf-8")
    return int(bool(gone) or any(not fault.survives for fault in survivors))


def table(found: list[tuple[Fault, Outcome]]) -> str:
    """The outcomes as Markdown, new ones and those known before: how many per area, then one line per fault."""
    said = known()
    for fault, result in found:
        said[_about(fault)] = f"`{result.by}`" if result.caught else f"survived: {fault.survives or 'no reason yet'}"
    lines = [
        "# Planted faults and the tests that catch them",
        "",
        "Written by `python -m tests.mutation --write`. Each fault was planted alone in a copy of the tree; only the",
        "tests meant to notice it ran, and they pass without it.",
        "",
        "| area | planted | caught |",
        "|---|---|---|",
    ]
    outcomes = [(fault, said.get(_about(fault), "not planted yet")) for fault in FAULTS]
    for area in [*dict.fromkeys(fault.area for fault in FAULTS), ""]:
        those = [says for fault, says in outcomes if not area or fault.area == area]
        caught = sum(says.startswith("`") for says in those)
        lines.append(f"| {area or '**all**'} | {len(those)} | {caught} |")
    lines += ["", "| area | file | in | instead of | stands | caught by |", "|---|---|---|---|---|---|"]
    return "\n".join([*lines, *(f"{_about(fault)}{says} |" for fault, says in outcomes)]) + "\n"


def known() -> dict[str, str]:
    """What the table says of each fault, by the cells that describe it."""
    lines = TABLE.read_text(encoding="utf-8").splitlines() if TABLE.exists() else []
    cut = [(line.rpartition(" | ")[0] + " | ", line.rpartition(" | ")[2].removesuffix(" |")) for line in lines]
    return {about: says for about, says in cut if about.count(" | ") >= 5}


def _about(fault: Fault) -> str:
    return f"| {fault.area} | {fault.file} | {_code(fault.within)} | {_code(fault.old)} | {_code(fault.new)} | "


def _short(code: str) -> str:
    text = " ".join(code.split())
    return text if len(text) <= 60 else text[:57] + "..."


def _code(text: str) -> str:
    return f"`{' '.join(text.split())}`".replace("|", "\\|") if text.strip() else "nothing"


if __name__ == "__main__":
    sys.exit(main())
