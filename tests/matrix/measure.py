"""One class after the other, quietly, with a line for each."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from typing import Any

from tests.matrix.cells import run_class


def measured(name: str) -> dict[str, Any]:
    start = time.perf_counter()
    import transformers

    transformers.logging.set_verbosity_error()
    logging.disable(logging.WARNING)
    with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing):
        cells = run_class(name)
    print(f"{name}: {summary(cells)} ({time.perf_counter() - start:.0f} s)", flush=True)
    return {"class": name, "cells": cells}


def summary(cells: dict[str, str]) -> str:
    words = [verdict.split(":")[0] for verdict in cells.values()]
    return (
        ", ".join(f"{words.count(word)} {word}" for word in dict.fromkeys(words)) if "not tried" not in cells else "-"
    )
