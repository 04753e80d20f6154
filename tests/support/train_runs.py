"""Short runs of `fastdss train`: their settings, and what they report."""

import json
from pathlib import Path
from typing import Any

import pytest

from fastdss.train.run.settings import TrainSettings


def settings(files: Path, out: Path, **options: Any) -> TrainSettings:
    defaults = {
        "data": str(files / "data.jsonl"),
        "model": str(files / "model"),
        "out": str(out),
        "max_steps": 2,
        "batch_size": 2,
        "logging_steps": 1,
        "save_steps": 1,
        "eval_share": 0.25,
        "lora_targets": "q_proj,v_proj",
        "cpu": True,
    }
    return TrainSettings(**(defaults | options))


def report_of(folder: Path) -> Any:
    """What is in ``report.json``, as strict JSON."""
    return json.loads((folder / "report.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} in JSON"))
