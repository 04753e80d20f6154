"""How a command's threads wait for each other, and how many there are."""

from __future__ import annotations

import os

from fastdss.errors import UserError


def wait_without_spinning() -> None:
    """Threads sleep while they wait; to be called before torch loads, when libgomp reads it.

    Threads that spin take the core from whom they wait for: where others used both of two cores, two threads that span
    scored 1 to 5 rows a second, one thread 28 to 37, two that slept 49 to 123 (benchmarks/bench_threads.py). A number
    of threads chosen by what is free would change the last bits of scores from run to run, so it is not chosen.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def use_threads(asked: int | None) -> None:
    """Compute with so many threads; None: as many as PyTorch chooses."""
    if asked is None:
        return
    if asked < 1:
        raise UserError(f"threads: expected a positive number, got {asked}")
    import torch

    torch.set_num_threads(asked)
