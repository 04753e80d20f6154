"""Where ``fastdss train`` starts: at step 1, or at the last complete checkpoint of the same run."""

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
# Settings that a resumed run may change, since the steps already taken do not depend on them. (With more epochs the
# learning rate's schedule changes, but only for the steps to come.)
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
    """The checkpoint in ``folder`` to resume from; None for a run that starts at step 1.

    Raises ``ValueError`` where steps would be lost or mixed with those of another run: there are checkpoints and
    ``--resume`` is not given (a later ``--resume`` could not tell the two runs' checkpoints apart), there are none to
    resume, or they were made with other settings.
    """
    checkpoints = _numbered(folder)
    if not settings.resume:
        if checkpoints:
            raise UserError(
                f"out: {folder} has checkpoints of an earlier run: --resume goes on from the last; to start anew, "
                "move that folder away (scores and reference values beside it are used again)"
            )
        return None
    finished = finished_checkpoints(folder)
    if not finished:
        raise UserError(f"resume: {folder} has no finished checkpoint: leave out --resume, or check --out")
    if finished[-1] != checkpoints[-1]:
        _log.warning("%s was interrupted while it was written: going on from %s", checkpoints[-1], finished[-1].name)
    if (folder / _SETTINGS).exists():
        earlier, now = json.loads((folder / _SETTINGS).read_text(encoding="utf-8")), asdict(settings)
        for name in sorted(earlier.keys() & now.keys() - _MAY_CHANGE):
            if earlier[name] != now[name]:
                raise UserError(
                    f"resume: the checkpoints in {folder} were made with {name} = {earlier[name]!r}, got {now[name]!r}"
                )
    return str(finished[-1])


def finished_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints that were written completely, in order of their steps."""
    return [path for path in _numbered(folder) if _is_whole(path / "trainer_state.json")]


def _is_whole(state: Path) -> bool:
    """Whether this file, which Trainer writes last, is there, and not by half as a killed process or a full disk leaves
    it."""
    try:
        json.loads(state.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return False
    return True


def _numbered(folder: Path) -> list[Path]:
    numbers = {path: path.name.removeprefix("checkpoint-") for path in folder.glob("checkpoint-*")}
    return sorted((path for path in numbers if numbers[path].isdecimal()), key=lambda path: int(numbers[path]))


def what_is_kept(out: Path) -> str:
    """A sentence for the user: what an interrupted run left in ``out``, and how to go on."""
    finished = finished_checkpoints(out / "checkpoints")
    names = {"scores": "scores", "reference": "reference values"}
    kept = [names[name] for name in names if (out / name).is_dir() and any((out / name).iterdir())]
    if finished:
        step = finished[-1].name.removeprefix("checkpoint-")
        return f"Step {step} is kept in {finished[-1]}: the same command with --resume goes on from there."
    if kept:
        return f"No step is saved yet; {' and '.join(kept)} in {out} are kept: the same command uses them, from step 1."
    return f"Nothing is kept in {out} yet: the same command starts anew."


def keep_settings(settings: TrainSettings, rows_hash: str, folder: Path) -> None:
    """Write the settings and the hash of the rows beside the checkpoints, where a resumed run compares them."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / _SETTINGS, json.dumps(asdict(settings) | {_ROWS: rows_hash}, indent=1).encode())


def hash_rows(rows: Any) -> str:
    """A hash of the tokens, labels and weights of a prepared ``datasets.Dataset``, row by row."""
    content = hashlib.sha256()
    for row in rows.with_format("torch", columns=["input_ids", "labels", "token_weights"]):
        for name in sorted(row):
            add_tensor(content, name, row[name])
    return content.hexdigest()


def check_rows(rows_hash: str, folder: Path, *, resumed: bool) -> None:
    """Raise ``ValueError`` where a resumed run would train on other rows: of another file, order or guard."""
    if resumed and (folder / _SETTINGS).exists():
        earlier = json.loads((folder / _SETTINGS).read_text(encoding="utf-8")).get(_ROWS, rows_hash)
        if earlier != rows_hash:
            raise UserError(
                f"resume: the checkpoints in {folder} were trained on other rows: the data, the scores or the model's "
                "tokenizer changed since. Bring them back, or move that folder away to start anew"
            )
