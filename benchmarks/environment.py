"""What a row of a benchmark says about the machine and the code it ran on, and how rows are written."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import time
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent


def output(*command: str) -> str:
    """What the command prints; "" where there is no such command."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except FileNotFoundError:
        return ""


def commit() -> str:
    """The commit that is checked out; "" where there is no git, as in a copy of the tree alone."""
    return output("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD")


@cache
def code() -> str:
    """A digest of the sources that are measured and that measure. It tells two states of them apart where there is no
    git, and stays the same when rows are committed."""
    files = sorted(file for folder in ("fastdss", "kernels", "benchmarks") for file in (ROOT / folder).rglob("*.py"))
    text = b"".join(file.relative_to(ROOT).as_posix().encode() + b"\0" + file.read_bytes() for file in files)
    return hashlib.sha256(text).hexdigest()[:12]


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
        "commit": commit(),
        "code": code(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def append_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append ``rows`` to a file of JSON Lines, whose folder is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
