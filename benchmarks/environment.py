"""What a row of a benchmark says about the machine and the code it ran on, and how rows are written."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch


def output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def chip(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    named = [line.split(":")[1].strip() for line in output("lscpu").splitlines() if line.startswith("Model name")]
    return named[0] if named else platform.processor() or platform.machine()


def environment(device: str, *packages: str, **more: Any) -> dict[str, Any]:
    """Chip, threads, load, versions of torch and ``packages``, commit and time; ``more`` comes first."""
    return more | {
        "device": device,
        "chip": chip(device),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1),
        "versions": {name: version(name) for name in ("torch", *packages)},
        "commit": output("git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def append_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append ``rows`` to a file of JSON Lines, whose folder is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
