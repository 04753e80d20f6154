"""Scores on disk: Parquet shards with checksums, named by a hash of their rows, and one manifest.

    OUT/manifest.json               what was scored, by which guard, with which options; ``shards`` in the input's order
    OUT/<cache entry>/<name>.parquet    one shard: the scores of consecutive rows
    OUT/.lock                       held by the process that writes

A cache entry belongs to one guard, revision, template and set of options. A shard's name is a hash of its rows' ids and
contents, so that a resumed run, or one over appended or edited data, finds the shards that are still valid. A shard is
written to a temporary file, flushed to disk and renamed; its pages have checksums, which every read verifies.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fastdss.chat.record import Columns
from fastdss.errors import UserError, UserTypeError
from fastdss.files import write_atomically

from .rows import DataOptions, FailedRow, Row, read_rows
from .sources import Source

MANIFEST = "manifest.json"
_HOLDS = ("counts", "data", "entry", "finished", "guard", "inputs", "options", "revision", "shards")


class ForeignManifestError(UserTypeError):
    """There is a manifest.json that fastdss did not write, so the folder belongs to another program."""


class DamagedShard(UserError):
    """A shard that is truncated, altered, or not what its name says."""


@dataclass(frozen=True)
class ScoredTurn:
    """The scores of one turn.

    ``scores[k]``: P(safe) of the turn's answer up to character ``ends[k]``.
    ``error``: why there are no scores; then both lists are empty and ``"failed"`` is among the flags.
    ``exact[k]``: whether the guard computed ``scores[k]``, or it is an approximation; None: it computed all of them.
    ``missed``: where a turn was computed to check approximations, by how much they would have been off at most.
    """

    turn: int
    scores: list[float]
    ends: list[int]
    flags: list[str]
    error: str | None = None
    exact: list[bool] | None = None
    missed: float | None = None


@dataclass(frozen=True)
class ScoredRow:
    """The judged turns of a conversation.

    ``error``: why no turn was judged; then ``turns`` is empty. ``left_out``: nothing of the conversation is to be
    trained, so that no turn had to be judged.
    """

    id: str
    content_hash: str
    turns: list[ScoredTurn]
    error: str | None = None
    left_out: bool = False

    @property
    def scored(self) -> list[ScoredTurn]:
        """The turns that have scores."""
        return [turn for turn in self.turns if turn.error is None]

    @property
    def reason(self) -> str | None:
        """Why no turn of the row has scores; None where one has."""
        return None if self.scored else self.error or next((turn.error for turn in self.turns), None)

    @staticmethod
    def unpacked(record: dict[str, Any]) -> ScoredRow:
        """The row from plain lists and mappings, as ``dataclasses.asdict`` and Arrow return them."""
        return ScoredRow(**{**record, "turns": [ScoredTurn(**turn) for turn in record["turns"]]})


def load_manifest(folder: str | Path) -> dict[str, Any]:
    """The manifest of a folder of scores. Raises ``ValueError`` where there is none or it is damaged, and
    ``ForeignManifestError`` where another program wrote it."""
    path = Path(folder) / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{folder} holds no scores: there is no {MANIFEST}, which fastdss score --out {folder} writes"
        ) from None
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); score again, finished shards are used") from error
    if not isinstance(manifest, dict) or any(name not in manifest for name in _HOLDS):
        raise ForeignManifestError(f"{path} was not written by fastdss score; use another folder")
    return manifest


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Replace the manifest in one step."""
    write_atomically(folder / MANIFEST, (json.dumps(manifest, indent=1, sort_keys=True) + "\n").encode())


def read_scores(folder: str | Path) -> Iterator[ScoredRow]:
    """Scores in the order of the input, one shard in memory at a time, page checksums verified.

    Raises ``ValueError`` where a shard is damaged, or missing because the run has not finished.
    """
    manifest = load_manifest(folder)
    shards = Shards(Path(folder) / manifest["entry"])
    for name in manifest["shards"]:
        if not shards.path(name).exists():
            raise UserError(f"{folder} is not finished: shard {name} is missing; run the same command again")
        yield from shards.read(name)


def joined(folder: str | Path, sources: Sequence[Source] | None = None) -> Iterator[tuple[Row | FailedRow, ScoredRow]]:
    """``zip(read_rows(sources), read_scores(folder))``, each pair with the same ``content_hash``.

    sources: the scored input, by default where the manifest says it was. Raises ``ValueError`` where the input was
    edited or reordered since.
    """
    manifest = load_manifest(folder)
    if sources is None:
        sources = [item["path"] for item in manifest["inputs"] if item["path"] is not None]
        if len(sources) < len(manifest["inputs"]):
            raise UserError(f"{folder}: its input was no file; pass it as sources")
        for path in (Path(item["path"]) for item in manifest["inputs"]):
            if path.is_absolute() and not path.exists():
                raise UserError(
                    f"{path}, which was scored, is not there: fastdss merge takes its new place as --input, Python as "
                    "sources="
                )
    rows = read_rows(sources, data_options(manifest, sources))
    for score in read_scores(folder):
        row = next(rows, None)
        if row is None or row.content_hash != score.content_hash:
            raise UserError(
                f"the input is not what was scored: row {score.id!r} is missing, edited or elsewhere; score it again"
            )
        yield row, score
    if next(rows, None) is not None:
        raise UserError(f"the input has more rows than were scored ({manifest['counts']['rows']})")


def data_options(manifest: dict[str, Any], sources: Sequence[Source] = ()) -> DataOptions:
    """How the input of these scores was read; ``sources`` that lie in memory are the part that was scored."""
    data = dict(manifest["data"])
    if not all(isinstance(source, str | Path) for source in sources):
        data |= {"split": None, "config": None}
    return DataOptions(columns=Columns(**data.pop("columns")), **data)


def shard_name(rows: Iterable[tuple[str, str]]) -> str:
    """SHA-256 over ids and content hashes, in order."""
    digest = hashlib.sha256()
    for row_id, content in rows:
        digest.update(json.dumps([row_id, content]).encode())
    return digest.hexdigest()[:32]


@dataclass(frozen=True)
class Shards:
    """The shards of one cache entry."""

    folder: Path

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.parquet"

    def prepare(self, *, alone: bool) -> None:
        """Make the folder. If no other rank writes (``alone``), remove temporary files that a killed run left: beside
        the manifest only its own, since a file may just be merged into the same folder, or be another program's."""
        self.folder.mkdir(exist_ok=True)
        if alone:
            for temporary in [*self.folder.glob(".*.tmp"), *self.folder.parent.glob(f".{MANIFEST}.*.tmp")]:
                temporary.unlink(missing_ok=True)

    def write(self, name: str, rows: Sequence[ScoredRow]) -> None:
        """Write a shard; the same rows give the same bytes."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.Table.from_pylist([asdict(row) for row in rows], schema=_schema())
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
        write_atomically(self.path(name), sink.getvalue())

    def read(self, name: str) -> list[ScoredRow]:
        """The rows of a shard. Raises ``DamagedShard`` where a checksum is wrong or the rows do not fit the name."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = self.path(name)
        try:
            with (
                path.open("rb") as source,
                pq.ParquetFile(source, page_checksum_verification=True, pre_buffer=False) as file,
            ):
                table = file.read(use_threads=False)  # in this thread alone: read_parquet says why
            table.validate(full=True)
            rows = [ScoredRow.unpacked(record) for record in table.to_pylist()]
        except (pa.ArrowException, OSError, ValueError, TypeError, KeyError) as error:
            if isinstance(error, FileNotFoundError | PermissionError):
                raise
            raise DamagedShard(f"{path}: {type(error).__name__} while reading") from error
        if table.schema != _schema() or shard_name((row.id, row.content_hash) for row in rows) != name:
            raise DamagedShard(f"{path}: its rows are not those it was written for")
        return rows

    def valid(self, name: str) -> list[ScoredRow] | None:
        """The rows of a finished shard, None where it is missing; a damaged one is renamed and counts as missing."""
        try:
            return self.read(name)
        except FileNotFoundError:
            return None
        except DamagedShard:
            os.replace(self.path(name), self.path(name).with_suffix(".damaged"))
            return None


def _schema() -> Any:
    import pyarrow as pa

    turn = [
        ("turn", pa.int32()),
        ("scores", pa.list_(pa.float32())),
        ("ends", pa.list_(pa.int32())),
        ("flags", pa.list_(pa.string())),
        ("error", pa.string()),
        ("exact", pa.list_(pa.bool_())),
        ("missed", pa.float32()),
    ]
    return pa.schema(
        [
            ("id", pa.string()),
            ("content_hash", pa.string()),
            ("turns", pa.list_(pa.struct(turn))),
            ("error", pa.string()),
            ("left_out", pa.bool_()),
        ]
    )


@contextmanager
def only_writer(folder: Path, *, rank: int = 0, ranks: int = 1) -> Iterator[None]:
    """Within the context this process holds the folder's lock, so that no other run writes there.

    The ranks of one job share the lock, and each has one of its own against a second process of the same rank. Raises
    ``ValueError`` with the process and the host of the other writer. The operating system frees the lock of a process
    that ends.
    """
    try:
        import fcntl
    except ImportError:
        raise UserError(
            "scores are kept in a folder that is locked by fcntl, which Windows lacks: use WSL, or call star_scores"
        ) from None
    wanted = [(".lock", fcntl.LOCK_EX if ranks == 1 else fcntl.LOCK_SH)]
    wanted += [(f".lock-{rank}", fcntl.LOCK_EX)] if ranks > 1 else []
    held: list[int] = []
    try:
        for name, kind in wanted:
            held.append(os.open(folder / name, os.O_RDWR | os.O_CREAT, 0o644))
            try:
                fcntl.flock(held[-1], kind | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.read(held[-1], 200).decode(errors="replace") or "another process"
                raise UserError(f"{folder} is being written by {holder}; wait for it or use another folder") from None
        os.ftruncate(held[-1], 0)
        os.write(held[-1], f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield
    finally:
        for descriptor in held:
            os.close(descriptor)
