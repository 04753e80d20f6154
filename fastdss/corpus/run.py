"""``score_dataset``: plan the shards, find what is missing, let an engine score it, close with a checked manifest."""

from __future__ import annotations

import errno
import hashlib
import json
import platform
import sqlite3
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from itertools import islice, repeat, takewhile
from pathlib import Path
from typing import Any

from fastdss.console.voice import progress_bar
from fastdss.errors import UserError, UserTypeError
from fastdss.optional import require
from fastdss.star.promise import Promise

from .engines import ENGINES, Job, Shard, place_in_job
from .files import is_url
from .rows import DATA, NAMING, DataOptions, FailedRow, Row, read_rows
from .sample import Sample
from .scorer import Report, Scorer
from .sources import Source, expand, several
from .store import ForeignManifestError, ScoredRow, Shards, load_manifest, only_writer, shard_name, write_manifest
from .understood import Understood, kind_of_reason

SHARD_ROWS = (16, 256)  # of the first shard, and of those of a large input
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
    data: DataOptions = DATA,
    shard_rows: int | None = None,
    workers: int | None = None,
    rescore: bool = False,
    approx: Promise | None = None,
    approx_seed: int = 0,
    tell: Callable[[Understood], None] | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Score a whole data set into a folder: ``[scorer(row) for row in source]``, kept as shards of Parquet.

    Whatever ends a run, finished shards stay valid and the same call goes on from there; on the same machine the bytes
    are those of an undisturbed run. A shard that was damaged since is set aside and scored again. Another guard,
    template or option makes another cache entry; edited or appended rows cost their own shards only.

    Args:
        source: one or several files or folders, or rows in memory (a list of mappings, a ``datasets.Dataset``).
        out: the folder; see ``store``.
        scorer: a ``StarScorer``.
        engine: ``"local"``, this process; ``"datasets"``, ``workers`` processes of ``datasets.map``; ``"ranks"``, this
            process's share of a job of torchrun or ``accelerate launch``; ``"ray"``, ``workers`` actors of Ray Data
            with one GPU each, or half a CPU where there is none, on the cluster that Ray finds (``RAY_ADDRESS``,
            ``ray://`` too; fastdss and the guard must be there), else on this machine.
        data: how the source is read and which turns are judged, see ``DataOptions``.
        shard_rows: rows of a shard; None: the first ones are small, so that a small input has several, and later ones
            grow to 256.
        workers: of the engines that have some; None leaves it to the engine.
        rescore: judge rows that hold scores already; else they are an error.
        approx: approximate scores where a random sample of rows shows that this promise is kept, see
            ``docs/approximate.md``; engines local and datasets.
        approx_seed: which sample is drawn.
        tell: called once with what was understood, before anything is scored.
        progress: show a bar.

    Returns:
        dict: the manifest; what was shown about approximate scores stands under ``approx``.

    Raises:
        ValueError: for ids that occur twice, input without any conversation, a second writer.
        OSError: where ``out`` cannot be written (before the guard loads) or the disk is full.
    """
    require("score_dataset", "score", "pyarrow")
    if not (hasattr(scorer, "identity") and hasattr(scorer, "score_rows")):
        hint = f": StarScorer({scorer!r})" if isinstance(scorer, str) else ""
        raise UserTypeError(f"scorer: expected a StarScorer, got {type(scorer).__name__}{hint}")
    _check(engine, shard_rows, workers)
    given, folder = several(source), Path(out)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"out: expected a folder, got the file {folder}")
    if any(isinstance(item, str | Path) and Path(item).resolve() == folder.resolve() for item in given):
        raise UserError(f"out: {folder} is the input's folder, where the manifest would be read as rows")
    sources = expand(given, data.split, data.config)
    place = place_in_job() if engine == "ranks" else (0, 1)
    folder.mkdir(parents=True, exist_ok=True)
    with only_writer(folder, rank=place[0], ranks=place[1]), _saying_what_is_kept(folder):
        identity = scorer.identity()
        understood = Understood()
        rows = _unscored(read_rows(sources, data), rescore)
        sample = None if approx is None else Sample(approx, approx_seed)
        plan = make_plan(rows if sample is None else sample.watching(rows), shard_rows, understood)
        if tell is not None and place[0] == 0:
            tell(understood)
        run = _Run(folder, sources, data, plan, shard_rows, engine, workers, progress, place)
        return run.score(scorer, identity) if sample is None else _approximated(run, scorer, identity, sample)


@dataclass(frozen=True)
class _Run:
    """Everything about a run but who scores."""

    folder: Path
    sources: Sequence[Source]
    data: DataOptions
    plan: Plan
    shard_rows: int | None
    engine: str
    workers: int | None
    progress: bool
    place: tuple[int, int]  # rank and number of ranks

    def entry(self, identity: dict[str, Any]) -> Path:
        return self.folder / _entry(self.whole(identity))

    def whole(self, identity: dict[str, Any]) -> dict[str, Any]:
        """With what scores depend on beside the scorer."""
        read = {"turns": self.data.turns, "max_bytes": self.data.max_bytes}
        return identity | {"options": identity["options"] | read}

    def settle(self, scorer: Scorer, identity: dict[str, Any]) -> dict[str, str]:
        return scorer.settle(_numerics(self.folder, self.whole(identity)))

    def score(
        self,
        scorer: Scorer,
        identity: dict[str, Any],
        said: Callable[[], dict[str, Any]] = dict,
        stops: Callable[[], bool] = lambda: False,
    ) -> dict[str, Any]:
        """The manifest. ``said``: more of it, as known by then; ``stops``: whether to leave the rest alone."""
        identity, plan, (rank, ranks) = self.whole(identity), self.plan, self.place
        manifest = _manifest(self.sources, self.data, identity, plan, self.shard_rows)
        manifest |= {"numerics": _numerics(self.folder, identity), **said()}
        shards = Shards(self.folder / manifest["entry"])
        shards.prepare(alone=ranks == 1)
        mine = range(rank, len(plan.names), ranks)
        missing = {number for number in mine if shards.valid(plan.names[number]) is None}
        if missing:
            write_manifest(self.folder, manifest)
            if self.engine == "local":  # with the other engines each worker settles for itself
                manifest["numerics"] = scorer.settle(manifest["numerics"])
                write_manifest(self.folder, manifest)
            with _bar(sum(plan.sizes[k] for k in mine), sum(plan.sizes[k] for k in missing), self.progress) as report:
                work = _work(read_rows(self.sources, self.data), plan, self.shard_rows, missing)
                work = takewhile(lambda shard: not stops(), work)
                ENGINES[self.engine](Job(work, scorer, shards, self.workers, report))
        if all(shards.path(name).exists() for name in plan.names) and not stops():
            scored = (row for name in plan.names for row in shards.read(name))
            manifest |= {"counts": _counts(scored), "finished": True, **said()}
            write_manifest(self.folder, manifest)
        return manifest


def _approximated(run: _Run, scorer: Scorer, identity: dict[str, Any], sample: Sample) -> dict[str, Any]:
    """As ``run.score``, approximated where the sample shows that it may be, else exact with a word about why."""
    from . import approximate

    star = approximate.approximable(scorer, run.engine)
    if sample.too_few:
        approximate.warn(sample.too_few)
        return run.score(scorer, identity, partial(_said, sample))
    asked = identity | {"approx": {**asdict(sample.promise), "seed": sample.seed, "sample": sample.name}}
    with _bar(len(sample.rows), len(sample.rows), run.progress, "scoring the sample") as report:
        probed = approximate.probed(star, sample, run.entry(asked), report, partial(run.settle, star, asked))
    if probed.probe.certificate.threshold is None:
        approximate.warn(str(probed.probe.certificate))

    def known(scorer: approximate.ProbedScorer) -> dict[str, Any]:
        return asked | {"approx": asked["approx"] | scorer.depends()}

    trail = approximate.AuditTrail(Shards(run.entry(known(probed))), run.plan.names, sample.promise)
    manifest = run.score(probed, known(probed), partial(_said, sample, probed, trail), trail.disagrees)
    if not trail.disagrees():
        return manifest
    approximate.warn("audited rows speak against the approximation: all scores are computed")
    exact = replace(probed, withdrawn=True)
    return run.score(exact, known(exact), partial(_said, sample, exact, trail))


def _said(*facts: Any) -> dict[str, Any]:
    from .approximate import record

    return {"approx": record(*facts)}


def finished_parts(out: str | Path) -> str:
    """What an interrupted run left in ``out``, and how to go on."""
    try:
        manifest = load_manifest(out)
    except UserError:
        return f"Nothing is in {out} yet: the same command starts anew."
    shards = Shards(Path(out) / manifest["entry"])
    done = sum(shards.path(name).exists() for name in manifest["shards"])
    if not done:
        return f"No part of {out} was finished: the same command starts anew; --shard-rows makes smaller parts."
    return f"{done} of {len(manifest['shards'])} parts are kept in {out}: the same command goes on from there."


def _check(engine: str, shard_rows: int | None, workers: int | None) -> None:
    if engine not in ENGINES:
        raise UserError(f"engine: expected one of {', '.join(ENGINES)}, got {engine!r}")
    for name, number in (("shard_rows", shard_rows), ("workers", workers)):
        if number is not None and number < 1:
            raise UserError(f"{name}: expected a positive integer, got {number}")


def _unscored(rows: Iterable[Row | FailedRow], rescore: bool) -> Iterator[Row | FailedRow]:
    for row in rows:
        if not rescore and isinstance(row, Row) and row.reading is not None and row.reading.scored:
            raise UserError(
                f"row {row.id!r} holds scores already (column star): train on the file as it is, or pass --rescore "
                "(rescore=True) to judge it anew"
            )
        yield row


def make_plan(rows: Iterable[Row | FailedRow], shard_rows: int | None, understood: Understood | None = None) -> Plan:
    """Names and sizes of the shards of ``rows``; ids that occur twice are found on disk, so that memory stays flat."""
    names, sizes = [], []
    understood = understood or Understood()
    with closing(sqlite3.connect("")) as seen:  # "" makes a temporary file that nobody else sees
        for part in _parts(understood.watching(_once(rows, seen)), shard_rows):
            names.append(shard_name((row.id, row.content_hash) for row in part))
            sizes.append(len(part))
    if not names:
        raise UserError("the input has no rows")
    if not understood.conversations:
        kind = next(iter((understood.reasons or understood.left_out_reasons).most_common(1)))[0]
        what = "is a conversation" if understood.failed else "has an answer to train"
        raise UserError(
            f"none of the {sum(sizes)} rows {what}; {understood.examples[kind]}; "
            f"fastdss check shows what was found; {NAMING}"
        )
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
        raise UserError(
            f"rows {first} and {position} have the same id {row_id!r}; ids must be unique: --id-column names another "
            "column, --number-rows takes positions for ids"
        ) from None


def _parts(rows: Iterable[Row | FailedRow], shard_rows: int | None) -> Iterator[list[Row | FailedRow]]:
    """Consecutive rows; how many depends on the place alone, so that rows added at the end leave all others as they
    are."""
    rows, sizes = iter(rows), _sizes() if shard_rows is None else repeat(min(shard_rows, sys.maxsize))
    while part := list(islice(rows, next(sizes))):
        yield part


def _sizes() -> Iterator[int]:
    size, largest = SHARD_ROWS
    yield size
    while size < largest:
        yield size
        size *= 2
    yield from repeat(largest)


def _work(rows: Iterable[Row | FailedRow], plan: Plan, shard_rows: int | None, missing: set[int]) -> Iterator[Shard]:
    """The missing shards' rows, checked against the plan."""
    for number, part in enumerate(_parts(rows, shard_rows)):
        if number not in missing:
            continue
        name = shard_name((row.id, row.content_hash) for row in part)
        if number >= len(plan.names) or name != plan.names[number]:
            raise UserError(f"the input changed while it was read: rows from {sum(plan.sizes[:number])} on are others")
        yield Shard(name, part)


def _manifest(
    sources: Sequence[Source], data: DataOptions, identity: dict[str, Any], plan: Plan, shard_rows: int | None
) -> dict[str, Any]:
    versions = {"python": platform.python_version()} | {name: _version(name) for name in _VERSIONS}
    paths = [
        (str(s) if is_url(str(s)) else str(Path(s).resolve())) if isinstance(s, str | Path) else None for s in sources
    ]
    return {
        **identity,
        "entry": _entry(identity),
        "inputs": [{"path": path} for path in paths],
        "data": asdict(data),
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
    """What an earlier run of the same guard and options settled on, whatever it approximated."""
    try:
        earlier = load_manifest(folder)
    except ForeignManifestError:
        raise
    except UserError:
        return {}
    same = identity.keys() - {"approx"}
    alike = _entry({name: earlier.get(name) for name in same}) == _entry({name: identity[name] for name in same})
    return earlier.get("numerics", {}) if alike else {}


def _counts(rows: Iterable[ScoredRow]) -> dict[str, Any]:
    """Totals over all shards, every one of them read and verified."""
    counts = dict.fromkeys(("rows", "scored", "failed", "left_out", "turns", "turns_failed"), 0)
    flags, reasons, examples = Counter[str](), Counter[str](), dict[str, str]()
    for row in rows:
        counts["rows"] += 1
        counts["turns"] += len(row.scored)
        counts["turns_failed"] += len(row.turns) - len(row.scored)
        if row.left_out:
            counts["left_out"] += 1
        elif row.reason is None:
            counts["scored"] += 1
        else:
            counts["failed"] += 1
            kind = kind_of_reason(row.reason)
            reasons[kind] += 1
            examples.setdefault(kind, row.reason)
        flags.update(flag for turn in row.turns for flag in turn.flags)
    shown = {examples[kind]: count for kind, count in reasons.most_common(20)}
    return {**counts, "flags": dict(sorted(flags.items())), "reasons": shown}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@contextmanager
def _bar(total: int, missing: int, shown: bool, what: str = "scoring") -> Iterator[Report]:
    """Rows, rows per second and time left on the terminal."""
    if not shown:
        yield lambda done: None
        return
    with progress_bar(total, what, "rows", done=total - missing) as bar:
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
