"""Short runs of `fastdss train`: their settings, and what they report."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

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


def whole_checkpoint(folder: Path) -> None:
    """A checkpoint that a run can go on from, in a folder named by its step: a file of each kind that Trainer keeps."""
    folder.mkdir(parents=True)
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": int(folder.name.rpartition("-")[2])}))
    save_file({"weight": torch.zeros(1)}, folder / "adapter_model.safetensors")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        torch.save({}, folder / name)
