"""Where ``fastdss train`` starts: at step 1, or at the last whole checkpoint of the same run."""

from __future__ import annotations

import hashlib
import json
import logging
import zipfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import safe_open

from fastdss.errors import UserError
from fastdss.files import write_atomically
from fastdss.models.batching import add_tensor

from .settings import TrainSettings

_log = logging.getLogger(__name__)
_SETTINGS = "settings.json"
_ROWS = "rows_sha256"
_STATE = "trainer_state.json"
# What a step cannot be gone on from without, and how names of the files begin by which Trainer, FSDP and DeepSpeed keep
# it.
_PARTS = {
    "weights": ("model", "adapter_model", "pytorch_model", "global_step"),
    "state of the optimizer": ("optimizer", "global_step"),
    "random state": ("rng_state",),
}
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
    ``--resume`` is not given (a later ``--resume`` could not tell the two runs' checkpoints apart), there is no whole
    one to resume, or they were made with other settings.
    """
    checkpoints = _numbered(folder)
    if not settings.resume:
        if checkpoints:
            raise UserError(
                f"out: {folder} has checkpoints of an earlier run: --resume goes on from the last; to start anew, "
                "move that folder away (scores and reference values beside it are used again)"
            )
        return None
    if not checkpoints:
        raise UserError(f"resume: {folder} has no checkpoint: leave out --resume, or check --out")
    whole, reasons = _last_whole(checkpoints)
    if whole is None:
        raise UserError(
            f"resume: no checkpoint in {folder} is whole: {'; '.join(reasons)}: bring the file back, or move that "
            "folder away to start anew (scores and reference values beside it are used again)"
        )
    for reason in reasons:
        _log.warning("%s: going on from %s", reason, whole.name)
    if (folder / _SETTINGS).exists():
        earlier, now = json.loads((folder / _SETTINGS).read_text(encoding="utf-8")), asdict(settings)
        for name in sorted(earlier.keys() & now.keys() - _MAY_CHANGE):
            if earlier[name] != now[name]:
                raise UserError(
                    f"resume: the checkpoints in {folder} were made with {name} = {earlier[name]!r}, got {now[name]!r}"
                )
    return str(whole)


def _last_whole(checkpoints: list[Path]) -> tuple[Path | None, list[str]]:
    """The last checkpoint that can be gone on from, and why those after it cannot."""
    reasons: list[str] = []
    for checkpoint in reversed(checkpoints):
        damage = next(_damage(checkpoint), None)
        if damage is None:
            return checkpoint, reasons
        reasons.append(f"{checkpoint.name} {damage}")
    return None, reasons


def _damage(checkpoint: Path) -> Iterator[str]:
    """What is wrong with a checkpoint. A machine that stops may leave any of its files empty, cut or away; Trainer ends
    in a traceback where it cannot read one, and takes steps with a new optimizer where it finds none."""
    names = {path.name for path in checkpoint.iterdir()}
    if _STATE not in names:  # Trainer writes it last
        yield f"was interrupted while it was written (it has no {_STATE})"
    for kind, beginnings in _PARTS.items():
        if not any(name.startswith(beginnings) for name in names):
            yield f"has no {kind}"
    if "optimizer.pt" in names and "scheduler.pt" not in names:
        yield "has no scheduler.pt"
    for path in sorted(checkpoint.rglob("*")):
        try:
            _read(path)
        except Exception as error:  # readers raise errors of many classes where they find garbage
            yield f"has a damaged {path.relative_to(checkpoint)} ({path.stat().st_size} bytes, {type(error).__name__})"


def _read(path: Path) -> None:
    """Raise an error where a file of a checkpoint is damaged, as far as its kind can tell: tensors of safetensors have
    no checksum, so only their number of bytes does."""
    if path.suffix == ".json":
        content = json.loads(path.read_text(encoding="utf-8"))
        if path.name == _STATE and path.parent.name != f"checkpoint-{content['global_step']}":
            raise LookupError("another step's state")
        if path.name.endswith(".index.json"):
            for name in set(content["weight_map"].values()):
                path.with_name(name).stat()
    elif path.suffix == ".safetensors":
        with safe_open(path, framework="pt"):
            pass
    elif path.suffix in (".pt", ".pth", ".bin"):  # archives of torch.save
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:
                raise zipfile.BadZipFile


def _numbered(folder: Path) -> list[Path]:
    numbers = {path: path.name.removeprefix("checkpoint-") for path in folder.glob("checkpoint-*")}
    return sorted((path for path in numbers if numbers[path].isdecimal()), key=lambda path: int(numbers[path]))


def what_is_kept(out: Path) -> str:
    """A sentence for the user: what an interrupted run left in ``out``, and how to go on."""
    whole, _ = _last_whole(_numbered(out / "checkpoints"))
    names = {"scores": "scores", "reference": "reference values"}
    kept = [names[name] for name in names if (out / name).is_dir() and any((out / name).iterdir())]
    if whole is not None:
        step = whole.name.removeprefix("checkpoint-")
        return f"Step {step} is kept in {whole}: the same command with --resume goes on from there."
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
