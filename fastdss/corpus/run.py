"""``score_dataset``: plan the shards, find what is missing, let an engine score it, close with a checked manifest."""

from __future__ import annotations

import errno
import hashlib
import json
import platform
import sqlite3
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from typing import Any

from fastdss.errors import UserError
from fastdss.optional import require

from .engines import ENGINES, Job, Shard, place_in_job
from .rows import COLUMNS, MAX_BYTES, TURNS, Columns, FailedRow, Row, Source, expand, judged, read_rows
from .scorer import Report, Scorer
from .store import ForeignManifestError, Shards, load_manifest, only_writer, read_scores, shard_name, write_manifest

SHARD_ROWS = 256
_FULL = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}
_VERSIONS = ("fastdss", "torch", "transformers", "tokenizers", "pyarrow")


@dataclass(frozen=True)
class Plan:
    """The input as shards of consecutive rows: their names, and how many rows each has."""

    names: list[str]
    sizes: list[int]


def score_dataset(
    source: Source | Sequence[str | Path],
    out: str | Path,
    scorer: Scorer,
    *,
    engine: str = "local",
    columns: Columns = COLUMNS,
    turns: str = "last",
    shard_rows: int = SHARD_ROWS,
    max_bytes: int = MAX_BYTES,
    workers: int | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """``[scorer(row) for row in source]``, kept in the folder ``out`` (see ``store``); returns the manifest.

    source: one or several files or folders, or rows in memory (a list of mappings, a ``datasets.Dataset``); see
    ``rows.read_rows``. scorer: a ``StarScorer``. Whatever ends a run, finished shards of ``shard_rows`` rows stay valid
    and the same call goes on from there; on the same machine the bytes are those of an undisturbed run. A shard that
    was damaged since is set aside and scored again. Another guard, template or option makes another cache entry;
    edited or appended rows cost their own shards only.

    turns: ``"last"`` judges each conversation's last turn, ``"all"`` every assistant's turn, as a row of its own with
    the conversation's id and the turn's position for an id, ``ID#TURN``; see ``rows.judged``.

    engine: ``"local"``, this process; ``"datasets"``, ``workers`` processes of ``datasets.map``; ``"ranks"``, this
    process's share of a job of torchrun or ``accelerate launch``; ``"ray"``, ``workers`` actors of Ray Data with one
    GPU each, or half a CPU where there is none, on the cluster that Ray finds (``RAY_ADDRESS``, ``ray://`` too;
    fastdss and the guard must be there), else on this machine.

    Raises ``ValueError`` for ids that occur twice, input without any conversation, a second writer; ``OSError`` where
    ``out`` cannot be written (before the guard loads) or the disk is full.
    """
    require("score_dataset", "score", "pyarrow")
    _check(engine, turns, shard_rows, workers)
    given, folder = _several(source), Path(out)
    if any(isinstance(item, str | Path) and Path(item).resolve() == folder.resolve() for item in given):
        raise UserError(f"out: {folder} is the input's folder, where the manifest would be read as rows")
    sources = expand(given)
    rank, ranks = place_in_job() if engine == "ranks" else (0, 1)
    folder.mkdir(parents=True, exist_ok=True)
    with only_writer(folder, rank=rank, ranks=ranks), _saying_what_is_kept(folder):
        identity = scorer.identity()
        identity["options"] = identity["options"] | {"turns": turns, "max_bytes": max_bytes}
        plan = make_plan(read_rows(sources, columns, max_bytes=max_bytes), shard_rows, turns)
        manifest = _manifest(sources, columns, identity, plan, shard_rows) | {"numerics": _numerics(folder, identity)}
        shards = Shards(folder / manifest["entry"])
        shards.prepare(alone=ranks == 1)
        mine = range(rank, len(plan.names), ranks)
        missing = {number for number in mine if shards.valid(plan.names[number]) is None}
        if missing:
            write_manifest(folder, manifest)
            if engine == "local":  # elsewhere each worker settles for itself
                manifest["numerics"] = scorer.settle(manifest["numerics"])
                write_manifest(folder, manifest)
            with _bar(sum(plan.sizes[k] for k in mine), sum(plan.sizes[k] for k in missing), progress) as report:
                rows = judged(read_rows(sources, columns, max_bytes=max_bytes), turns)
                work = _work(rows, plan, shard_rows, missing)
                ENGINES[engine](Job(work, scorer, shards, workers, report))
        if all(shards.path(name).exists() for name in plan.names):
            manifest |= {"counts": _counts(folder), "finished": True}
            write_manifest(folder, manifest)
    return manifest


def _check(engine: str, turns: str, shard_rows: int, workers: int | None) -> None:
    for name, value, known in (("engine", engine, tuple(ENGINES)), ("turns", turns, TURNS)):
        if value not in known:
            raise UserError(f"{name}: expected one of {', '.join(known)}, got {value!r}")
    for name, number in (("shard_rows", shard_rows), ("workers", workers)):
        if number is not None and number < 1:
            raise UserError(f"{name}: expected a positive integer, got {number}")


def make_plan(rows: Iterable[Row | FailedRow], shard_rows: int, turns: str = "last") -> Plan:
    """Names and sizes of the shards of ``judged(rows, turns)``; ids that occur twice among ``rows`` are found on disk,
    so that memory stays flat."""
    names, sizes = [], []
    reason, readable = "", 0
    with closing(sqlite3.connect("")) as seen:  # a temporary file that nobody else sees
        for part in _parts(judged(_once(rows, seen), turns), shard_rows):
            names.append(shard_name((row.id, row.content_hash) for row in part))
            sizes.append(len(part))
            readable += sum(isinstance(row, Row) for row in part)
            reason = reason or next((row.reason for row in part if isinstance(row, FailedRow)), "")
    if not names:
        raise UserError("the input has no rows")
    if not readable:
        raise UserError(f"none of the {sum(sizes)} rows is a conversation; {reason}")
    return Plan(names, sizes)


def _once(rows: Iterable[Row | FailedRow], seen: sqlite3.Connection) -> Iterator[Row | FailedRow]:
    """The same rows; ``ValueError`` at an id that was there before."""
    seen.execute("CREATE TABLE ids (digest BLOB PRIMARY KEY, position INTEGER) WITHOUT ROWID")
    for position, row in enumerate(rows):
        _remember(seen, row.id, position)
        yield row


def _remember(seen: sqlite3.Connection, row_id: str, position: int) -> None:
    digest = hashlib.blake2b(row_id.encode(), digest_size=16).digest()
    try:
        seen.execute("INSERT INTO ids VALUES (?, ?)", (digest, position))
    except sqlite3.IntegrityError:
        (first,) = seen.execute("SELECT position FROM ids WHERE digest = ?", (digest,)).fetchone()
        raise UserError(f"rows {first} and {position} have the same id {row_id!r}; ids must be unique") from None


def _parts(rows: Iterable[Row | FailedRow], size: int) -> Iterator[list[Row | FailedRow]]:
    rows = iter(rows)
    while part := list(islice(rows, min(size, sys.maxsize))):
        yield part


def _work(rows: Iterable[Row | FailedRow], plan: Plan, shard_rows: int, missing: set[int]) -> Iterator[Shard]:
    """The missing shards' rows, checked against the plan."""
    for number, part in enumerate(_parts(rows, shard_rows)):
        if number not in missing:
            continue
        name = shard_name((row.id, row.content_hash) for row in part)
        if number >= len(plan.names) or name != plan.names[number]:
            raise UserError(f"the input changed while it was read: rows from {number * shard_rows} on are others")
        yield Shard(name, part)


def _manifest(
    sources: Sequence[Source], columns: Columns, identity: dict[str, Any], plan: Plan, shard_rows: int
) -> dict[str, Any]:
    versions = {"python": platform.python_version()} | {name: _version(name) for name in _VERSIONS}
    paths = [str(Path(s).resolve()) if isinstance(s, str | Path) else None for s in sources]
    return {
        **identity,
        "entry": _entry(identity),
        "inputs": [{"path": path} for path in paths],
        "columns": asdict(columns),
        "shard_rows": shard_rows,
        "shards": plan.names,
        "versions": versions,
        "counts": {"rows": sum(plan.sizes)},
        "finished": False,
    }


def _entry(identity: dict[str, Any]) -> str:
    """Name of the cache entry: everything the scores depend on, whatever the guard is called."""
    depends = {name: value for name, value in identity.items() if name != "guard"}
    return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:16]


def _numerics(folder: Path, identity: dict[str, Any]) -> dict[str, str]:
    """What an earlier run of the same cache entry settled on."""
    try:
        earlier = load_manifest(folder)
    except ForeignManifestError:
        raise
    except UserError:
        return {}
    return earlier.get("numerics", {}) if earlier.get("entry") == _entry(identity) else {}


def _counts(folder: Path) -> dict[str, Any]:
    """Totals over all shards, every one of them read and verified."""
    rows, failed, flags = 0, 0, Counter[str]()
    for row in read_scores(folder):
        rows += 1
        failed += row.error is not None
        flags.update(row.flags)
    return {"rows": rows, "scored": rows - failed, "failed": failed, "flags": dict(sorted(flags.items()))}


def _several(source: Any) -> list[Source]:
    if isinstance(source, str | Path):
        return [source]
    if isinstance(source, Sequence) and source and all(isinstance(item, str | Path) for item in source):
        return list(source)
    return [source]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@contextmanager
def _bar(total: int, missing: int, shown: bool) -> Iterator[Report]:
    """Rows, rows per second and time left on the terminal."""
    if not shown:
        yield lambda done: None
        return
    from tqdm.auto import tqdm

    with tqdm(total=total, initial=total - missing, unit="row", desc="scoring", smoothing=0.05) as bar:
        yield bar.update


@contextmanager
def _saying_what_is_kept(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        kept = "finished shards are intact, and the same command goes on from there once there is room"
        raise OSError(error.errno, f"no room to write in {folder} ({error.strerror}): {kept}") from error
