"""``score_dataset``: plan the shards, find which are missing, let an engine score those, and write the manifest once
every shard has been read back."""

from __future__ import annotations

import errno
import hashlib
import json
import platform
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from itertools import takewhile
from pathlib import Path
from typing import Any

from fastdss.console.output import progress_bar
from fastdss.errors import UserError, UserTypeError
from fastdss.optional import require
from fastdss.star.promise import Promise

from .engines import ENGINES, Job, place_in_job
from .files import is_url
from .plan import Plan, make_plan, missing_shards
from .rows import DATA, DataOptions, FailedRow, Row, read_rows
from .sample import Sample
from .scorer import Report, Scorer
from .sources import Source, expand, several
from .store import ForeignManifestError, ScoredRow, Shards, load_manifest, only_writer, write_manifest
from .understood import Understood, kind_of_reason

_FULL = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}
_VERSIONS = ("fastdss", "torch", "transformers", "tokenizers", "pyarrow")


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
    """Score a whole data set into a folder: ``[scorer(row) for row in source]``, stored as shards of Parquet.

    However a run ends, finished shards stay valid and the same call goes on from there; on the same machine it writes
    the same bytes as a run that nothing interrupted. A shard that was damaged meanwhile is set aside and scored again.
    Scores of another guard, template or option are stored apart from these. After rows were edited or appended, only
    their own shards are scored again.

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
        workers: number of processes or actors, of the engines that have them; None leaves it to the engine.
        rescore: score rows again that already hold scores; otherwise they are an error.
        approx: approximate scores where a random sample of rows shows that this promise is kept, see
            ``docs/approximate.md``; engines local and datasets.
        approx_seed: seed of that sample.
        tell: called once with what was read, before anything is scored.
        progress: show a bar.

    Returns:
        dict: the manifest; under ``approx`` it says what was found out about approximate scores.

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
    """All that a run needs except the scorer."""

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
        """The scorer's ``identity``, and with it the options of reading on which scores depend."""
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
        """Score what is missing; returns the manifest.

        said: more entries of the manifest, asked for before and after scoring. stops: asked before each shard; where it
        returns True, the rest is not scored.
        """
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
                work = missing_shards(read_rows(self.sources, self.data), plan, self.shard_rows, missing)
                work = takewhile(lambda shard: not stops(), work)
                ENGINES[self.engine](Job(work, scorer, shards, self.workers, report))
        if all(shards.path(name).exists() for name in plan.names) and not stops():
            scored = (row for name in plan.names for row in shards.read(name))
            manifest |= {"counts": _counts(scored), "finished": True, **said()}
            write_manifest(self.folder, manifest)
        return manifest


def _approximated(run: _Run, scorer: Scorer, identity: dict[str, Any], sample: Sample) -> dict[str, Any]:
    """As ``run.score``, with approximate scores where the sample allows it; otherwise exact ones, with a warning that
    says why."""
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
    """A sentence for the user: what an interrupted run left in ``out``, and how to go on."""
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
    """The name of the cache entry: a hash of all that the scores depend on, but not of the guard's name."""
    depends = {name: value for name, value in identity.items() if name != "guard"}
    return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:16]


def _numerics(folder: Path, identity: dict[str, Any]) -> dict[str, str]:
    """The choices that alter scores by rounding (see ``Scorer.settle``) of an earlier run with the same guard and
    options, exact or approximate."""
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
    """Totals over all rows; the caller reads, and thereby verifies, every shard."""
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
    """A progress bar of rows; ``missing`` of them are still to be scored."""
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
