"""Where ``fastdss train`` starts: anew, or from the last checkpoint that is whole and of the same run."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastdss.errors import UserError
from fastdss.files import write_atomically
from fastdss.models.batching import add_tensor

from .settings import TrainSettings

_log = logging.getLogger(__name__)
_SETTINGS = "settings.json"
_ROWS = "rows_sha256"
# Of no consequence for the steps already taken; a longer run changes the schedule of those to come.
_MAY_CHANGE = {
    "out",
    "resume",
    "epochs",
    "max_steps",
    "checkpointing",
    "save_steps",
    "save_minutes",
    "threads",
    "logging_steps",
    "report_to",
    "cpu",
}


def starting_point(settings: TrainSettings, folder: Path) -> str | None:
    """The checkpoint in ``folder`` to resume from; None for a run that starts anew.

    Raises ``ValueError`` where steps would be lost or mixed with another run's: checkpoints that are not resumed (the
    next ``--resume`` would take the last of either run), none to resume, or settings they were not made with.
    """
    found = _numbered(folder)
    if not settings.resume:
        if found:
            raise UserError(
                f"out: {folder} has checkpoints of an earlier run: --resume goes on from the last; to start anew, "
                "move that folder away (scores and reference values beside it are used again)"
            )
        return None
    whole = finished_checkpoints(folder)
    if not whole:
        raise UserError(f"resume: {folder} has no finished checkpoint: leave out --resume, or check --out")
    if whole[-1] != found[-1]:
        _log.warning("%s was interrupted while it was written: going on from %s", found[-1], whole[-1].name)
    if (folder / _SETTINGS).exists():
        earlier, now = json.loads((folder / _SETTINGS).read_text(encoding="utf-8")), asdict(settings)
        for name in sorted(earlier.keys() & now.keys() - _MAY_CHANGE):
            if earlier[name] != now[name]:
                raise UserError(
                    f"resume: the checkpoints in {folder} were made with {name} = {earlier[name]!r}, got {now[name]!r}"
                )
    return str(whole[-1])


def finished_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints that were written whole, the last one last."""
    return [path for path in _numbered(folder) if (path / "trainer_state.json").exists()]  # what is written last


def _numbered(folder: Path) -> list[Path]:
    numbers = {path: path.name.removeprefix("checkpoint-") for path in folder.glob("checkpoint-*")}
    return sorted((path for path in numbers if numbers[path].isdecimal()), key=lambda path: int(numbers[path]))


def what_is_kept(out: Path) -> str:
    """What an interrupted run left in ``out``, and how to go on."""
    whole = finished_checkpoints(out / "checkpoints")
    kept = [name for name in ("scores", "reference") if (out / name).is_dir()]
    if whole:
        step = whole[-1].name.removeprefix("checkpoint-")
        return f"Step {step} is kept in {whole[-1]}: the same command with --resume goes on from there."
    if kept:
        return f"No step is saved yet; {' and '.join(kept)} in {out} are kept: the same command uses them, from step 1."
    return f"Nothing is kept in {out} yet: the same command starts anew."


def keep_settings(settings: TrainSettings, rows: str, folder: Path) -> None:
    """Beside the checkpoints to come, for ``starting_point`` and ``check_rows``."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / _SETTINGS, json.dumps(asdict(settings) | {_ROWS: rows}, indent=1).encode())


def hash_rows(rows: Any) -> str:
    """Of a prepared ``datasets.Dataset``: tokens, labels and weights of each row, in their order."""
    content = hashlib.sha256()
    for row in rows.with_format("torch", columns=["input_ids", "labels", "token_weights"]):
        for name in sorted(row):
            add_tensor(content, name, row[name])
    return content.hexdigest()


def check_rows(rows: str, folder: Path, *, resumed: bool) -> None:
    """``ValueError`` where a resumed run would train on rows of another hash: of another file, order or guard."""
    if resumed and (folder / _SETTINGS).exists():
        earlier = json.loads((folder / _SETTINGS).read_text(encoding="utf-8")).get(_ROWS, rows)
        if earlier != rows:
            raise UserError(
                f"resume: the checkpoints in {folder} were trained on other rows: the data, the scores or the model's "
                "tokenizer changed since. Bring them back, or move that folder away to start anew"
            )
