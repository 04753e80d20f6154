"""Two processes over gloo that stand for two machines: started, named, waited for and ended in one place."""

from __future__ import annotations

import faulthandler
import os
import warnings
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

WORLD = 2


def on_two_ranks(
    work: Callable[..., Any],
    folder: Path | str,
    *args: Any,
    environment: Mapping[str, str] | None = None,
    seconds: int = 200,
) -> list[Any]:
    """What ``work(folder, *args)`` returns on each rank, in ranks' order.

    ``work`` is a function of a module, for it runs in new processes; ``environment`` is added to theirs. A rank that
    waits for another for ``seconds`` fails, and one that waits for ever prints where and ends.
    """
    given = (work, str(folder), args, dict(environment or {}), seconds)
    torch.multiprocessing.spawn(_rank, args=given, nprocs=WORLD)
    return [torch.load(Path(folder) / f"rank-{rank}.pt") for rank in range(WORLD)]


def _rank(
    rank: int, work: Callable[..., Any], folder: str, args: tuple[Any, ...], environment: dict[str, str], seconds: int
) -> None:
    torch.set_num_threads(1)
    os.environ |= environment | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(WORLD)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}  # unused: the group is there already
    warnings.filterwarnings("ignore")
    faulthandler.dump_traceback_later(2 * seconds, exit=True)  # FSDP2 has groups of its own, without our limit
    meeting = f"file://{folder}/meeting"
    limit = timedelta(seconds=seconds)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=WORLD, timeout=limit)
    try:
        torch.save(work(folder, *args), f"{folder}/rank-{rank}.pt")
    finally:
        faulthandler.cancel_dump_traceback_later()
        dist.destroy_process_group()
