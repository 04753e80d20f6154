"""Every causal LM and vision-language class of transformers, every cell: ``python -m tests.matrix [CLASS …]``.

Writes tests/matrix/table.jsonl, a line a class, and docs/models.md from it; of named classes, their lines alone.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
from pathlib import Path

from tests.matrix.cells import CELLS
from tests.matrix.measure import measured
from tests.matrix.page import page
from tests.matrix.tiny import text_classes, vision_classes

TABLE = Path(__file__).parent / "table.jsonl"
PAGE = Path(__file__).parents[2] / "docs" / "models.md"


def main(names: list[str]) -> None:
    """Every class, or those named, which take their old lines' places."""
    start = time.perf_counter()
    known = [json.loads(line) for line in TABLE.read_text().splitlines()][1:] if names and TABLE.exists() else []
    with multiprocessing.get_context("spawn").Pool(2, maxtasksperchild=60) as pool:
        found = pool.map(measured, names or [*text_classes(), *vision_classes()], chunksize=1)
    anew = {row["class"]: row for row in found}
    rows = [anew.pop(row["class"], row) for row in known] + list(anew.values())
    import torch
    import transformers

    versions = {"transformers": transformers.__version__, "torch": torch.__version__, "cells": list(CELLS)}
    lines = [versions, *rows]
    TABLE.write_text("".join(json.dumps(line) + "\n" for line in lines))
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(lines))
    wrong = [row["class"] for row in rows if any(v.startswith(("WRONG", "ERROR")) for v in row["cells"].values())]
    print(f"{len(found)} classes in {(time.perf_counter() - start) / 60:.1f} minutes; wrong: {wrong or 'none'}")


if __name__ == "__main__":
    main(sys.argv[1:])
