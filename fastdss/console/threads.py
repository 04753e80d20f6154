"""The CPU threads of a command: how they wait for each other, and how many there are."""

from __future__ import annotations

import argparse
import os

from fastdss.errors import UserError


def wait_without_spinning() -> None:
    """Make OpenMP's threads sleep while they wait. Call it before torch is imported: libgomp reads the setting then.

    By default a waiting thread loops ("spins") and so occupies the core that the thread it waits for needs. Where other
    programs kept both of two cores busy, two spinning threads scored 1 to 5 rows a second, one thread 28 to 37, and two
    sleeping threads 49 to 123 (benchmarks/bench_threads.py). The number of threads is not adapted to what is free:
    another number changes the last bits of scores, so two runs would differ.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def add_threads(parser: argparse.ArgumentParser) -> None:
    """Add the option ``--threads``."""
    parser.add_argument("--threads", type=int, help="CPU threads (default: PyTorch's choice)")


def use_threads(count: int | None) -> None:
    """Compute with ``count`` threads; None leaves the number to PyTorch."""
    if count is None:
        return
    if count < 1:
        raise UserError(f"threads: expected a positive number, got {count}")
    import torch

    torch.set_num_threads(count)
