"""Where the scorer runs: in this process, in processes of ``datasets.map``, on the ranks of a distributed job, or in
actors of Ray Data.

An engine takes a ``Job`` and returns when every shard of its work is in the store. Every engine scores whole shards, so
that the same rows are in the same batches whichever engine runs. With Ray, the driver writes the shards as the actors
return them, so that actors need no common disk, and an interrupted run goes on from the shards without Ray's own
checkpoints.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from fastdss.errors import UserError
from fastdss.optional import missing_extra

from .rows import FailedRow, Row
from .scorer import Report, Scorer, score_readable
from .store import ScoredRow, Shards


@dataclass(frozen=True)
class Shard:
    """Consecutive rows that are scored and stored together."""

    name: str
    rows: list[Row | FailedRow]

    def pack(self) -> dict[str, Any]:
        """The shard as a record of two strings, for engines that keep their work in tables."""
        return {"name": self.name, "rows": json.dumps([_packed(row) for row in self.rows])}

    @staticmethod
    def unpack(record: Mapping[str, Any]) -> Shard:
        rows = json.loads(record["rows"])
        return Shard(record["name"], [FailedRow(**row) if "reason" in row else Row.unpacked(row) for row in rows])


def _packed(row: Row | FailedRow) -> dict[str, Any]:
    return row.packed() if isinstance(row, Row) else asdict(row)


@dataclass(frozen=True)
class Job:
    """What an engine has to do. ``work``: the shards that are missing; ``shards``: the store they go to."""

    work: Iterator[Shard]
    scorer: Scorer
    shards: Shards
    workers: int | None
    report: Report


def run_here(job: Job) -> None:
    """One shard after the other, in this process."""
    for shard in job.work:
        job.shards.write(shard.name, score_readable(job.scorer, shard.rows, job.report))


def run_rank(job: Job) -> None:
    """As ``run_here``, on this rank's GPU; ``job.work`` holds only this rank's shards."""
    _use_gpu(int(os.environ.get("LOCAL_RANK", "0")))
    run_here(job)


def place_in_job() -> tuple[int, int]:
    """The rank and the number of ranks, which torchrun and ``accelerate launch`` put into the environment."""
    try:
        rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    except (KeyError, ValueError):
        raise UserError("engine='ranks' needs RANK and WORLD_SIZE: start it with torchrun or accelerate") from None
    if not 0 <= rank < ranks:
        raise UserError(f"expected a rank below {ranks}, got {rank}")
    return rank, ranks


def run_datasets(job: Job) -> None:
    """``Dataset.map`` over shards in ``workers`` new processes, each of which stores the shards that it scored.

    A script that calls it needs ``if __name__ == "__main__"``, since new processes import the script.
    """
    import pyarrow as pa
    from datasets import Dataset

    with tempfile.TemporaryDirectory() as cache:
        path = os.path.join(cache, "shards.arrow")
        schema, rows = _packed_schema(), 0
        with pa.OSFile(path, "wb") as file, pa.ipc.new_stream(file, schema) as stream:
            for shard in job.work:
                stream.write(pa.RecordBatch.from_pylist([shard.pack()], schema=schema))
                rows += len(shard.rows)
        packed = Dataset.from_file(path)
        with _fresh_processes():
            packed.map(
                _ScoreAndStore(job.scorer, job.shards),
                with_rank=True,
                num_proc=min(job.workers, len(packed)) if job.workers else None,
                remove_columns=["rows"],
                load_from_cache_file=False,
                new_fingerprint="scored",
            )
    job.report(rows)


@contextmanager
def _fresh_processes() -> Iterator[None]:
    """Let ``datasets`` spawn its workers: a fork of a process that has used torch can hang, or has no GPU."""
    import multiprocess

    method = multiprocess.get_start_method(allow_none=True)
    multiprocess.set_start_method("spawn", force=True)
    try:
        yield
    finally:
        multiprocess.set_start_method(method, force=True)


@dataclass(frozen=True)
class _ScoreAndStore:
    scorer: Scorer
    shards: Shards

    def __call__(self, record: Mapping[str, Any], rank: int | None) -> dict[str, Any]:
        _use_gpu(rank or 0)
        shard = Shard.unpack(record)
        self.shards.write(shard.name, score_readable(self.scorer, shard.rows, lambda done: None))
        return {"name": shard.name}


def run_ray(job: Job) -> None:
    """``map_batches`` of Ray Data over shards, with a pool of actors; this process stores the shards that they return.

    All missing rows are first put into Ray's object store, which spills to disk. If an actor dies, Ray starts another
    and gives it the same shard. A process connected through ``ray://`` cannot stream Ray Data's results: there an actor
    in the cluster runs the pipeline and returns its results one by one. fastdss must be installed in the cluster.
    """
    try:
        import ray
        import ray.data
        import ray.util.client
    except ImportError as error:
        raise missing_extra("engine='ray'", "scale", error) from error
    import pyarrow as pa

    if not ray.is_initialized():
        ray.init()
    schema = _packed_schema()
    blocks: list[Any] = [ray.put(pa.Table.from_pylist([shard.pack()], schema=schema)) for shard in job.work]
    gpus, cpus = (int(ray.cluster_resources().get(kind, 0)) for kind in ("GPU", "CPU"))
    actors = min(job.workers or gpus or cpus or 1, len(blocks))
    records: Iterator[Mapping[str, Any]]
    if ray.util.client.ray.is_connected():
        remote: Any = ray.remote(num_cpus=0)(_Pipeline)
        pipeline = remote.remote(blocks, job.scorer, actors, bool(gpus))
        records = iter(lambda: ray.get(pipeline.next.remote()), None)
    else:
        records = _scored_by_actors(blocks, job.scorer, actors, bool(gpus))
    for record in records:
        rows = [ScoredRow.unpacked(row) for row in json.loads(record["rows"])]
        job.shards.write(record["name"], rows)
        job.report(len(rows))


def _scored_by_actors(blocks: list[Any], scorer: Scorer, actors: int, gpus: bool) -> Iterator[Mapping[str, Any]]:
    """Scored shards, packed, as they get ready.

    Without GPUs there is an actor per CPU. Each reserves half a CPU only: if they reserved all of them, Ray would have
    none left for the tasks that read the blocks, and the job would hang.
    """
    import ray.data

    scored = ray.data.from_arrow_refs(blocks).map_batches(
        _Actor,
        fn_constructor_args=(scorer,),
        compute=ray.data.ActorPoolStrategy(size=actors),
        batch_size=1,
        batch_format="pyarrow",
        num_gpus=1 if gpus else None,
        num_cpus=None if gpus else 0.5,
    )
    return iter(scored.iter_rows())


class _Pipeline:
    """An actor in the cluster that runs ``_scored_by_actors``: ``next`` returns one record, and None after the last."""

    def __init__(self, blocks: list[Any], scorer: Scorer, actors: int, gpus: bool) -> None:
        self.records = _scored_by_actors(blocks, scorer, actors, gpus)

    def next(self) -> Mapping[str, Any] | None:
        return next(self.records, None)


class _Actor:
    """An actor that scores one packed shard per call; its guard loads at the first."""

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer

    def __call__(self, table: Any) -> Any:
        import pyarrow as pa

        records = []
        for shard in map(Shard.unpack, table.to_pylist()):
            scored = score_readable(self.scorer, shard.rows, lambda done: None)
            records.append({"name": shard.name, "rows": json.dumps([asdict(row) for row in scored])})
        return pa.Table.from_pylist(records, schema=_packed_schema())


def _packed_schema() -> Any:
    import pyarrow as pa

    return pa.schema([("name", pa.string()), ("rows", pa.large_string())])


def _use_gpu(number: int) -> None:
    """Make a GPU the current one, where there are any; numbers beyond the last start again at the first."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_device(number % torch.cuda.device_count())


ENGINES: dict[str, Callable[[Job], None]] = {
    "local": run_here,
    "ranks": run_rank,
    "datasets": run_datasets,
    "ray": run_ray,
}
