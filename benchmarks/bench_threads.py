"""Rows a second by number of threads and by how they wait, on free cores and on busy ones.

    python benchmarks/bench_threads.py           # under two minutes; prints a table

Each cell is a process of its own, since libgomp reads its policy once. Busy: as many processes that only count as there
are cores. The built-in guard scores the demo's conversations, each way by turns, three rounds, medians.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from itertools import product

_WORK = """
import sys, time, torch
from fastdss import Guard, star_scores
from fastdss.demo.conversations import training_conversations
torch.set_num_threads(int(sys.argv[1]))
rows = training_conversations(24, 24, 0)
batch = {"prompt": [row.prompt for row in rows], "response": [row.response for row in rows]}
guard = Guard.tiny()
star_scores(guard, batch)
start = time.perf_counter()
star_scores(guard, batch)
print(len(rows) / (time.perf_counter() - start))
"""


def rate(threads: int, policy: str) -> float:
    """Rows a second."""
    environment = os.environ | {"OMP_WAIT_POLICY": policy}
    environment.pop("OMP_NUM_THREADS", None)
    command = [sys.executable, "-c", _WORK, str(threads)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def main() -> None:
    cores = len(os.sched_getaffinity(0))
    for busy in (False, True):
        counting = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(cores * busy)]
        try:
            ways = list(product((1, cores), ("ACTIVE", "PASSIVE")))
            found: dict[tuple[int, str], list[float]] = {way: [] for way in ways}
            for _ in range(3):
                for way in ways:
                    found[way].append(rate(*way))
        finally:
            for process in counting:
                process.kill()
        for (threads, policy), rates in found.items():
            state = "busy" if busy else "free"
            print(f"{state} cores, {threads} threads, {policy:<7}  {statistics.median(rates):7.1f} rows/s", flush=True)


if __name__ == "__main__":
    main()
