"""Scores joined to their conversations as a data set to train on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from fastdss.errors import UserError
from fastdss.files import replacing

from .rows import Row, Source, expand
from .store import ScoredRow, joined, load_manifest

FAILED = ("drop", "zero")
_ROWS_AT_ONCE = 1024


@dataclass
class Merged:
    """How many rows were written, and how many failed ones were left out."""

    rows: int = 0
    dropped: int = 0


def merge(
    folder: str | Path, file: str | Path, *, failed: str = "drop", sources: Sequence[Source] | None = None
) -> Merged:
    """``joined(folder, sources)`` as one Parquet or JSONL file (by its suffix), which appears whole or not at all.

    Columns: ``id``, ``prompt`` (the turns before the response), ``response``, and what ``prepare_dss_dataset`` reads,
    ``scores``, ``ends`` and ``flags``. failed: rows without scores are left out (``"drop"``), or kept with score 0 over
    the whole response (``"zero"``: the reference model alone decides there) and the flag ``"unscored"``; rows that hold
    no conversation are always left out. Raises ``ValueError`` where the scores are not finished or the input changed.
    """
    if failed not in FAILED:
        raise UserError(f"failed: expected one of {', '.join(FAILED)}, got {failed!r}")
    path = Path(file)
    if path.suffix not in (".parquet", ".jsonl"):
        raise UserError(f"{path}: expected a .parquet or .jsonl file")
    manifest = load_manifest(folder)
    if not manifest["finished"]:
        raise UserError(f"{folder} is not finished; run the same fastdss score command again")
    read = [item["path"] for item in manifest["inputs"]] if sources is None else expand(sources)
    if any(isinstance(source, str | Path) and Path(source).resolve() == path.resolve() for source in read):
        raise UserError(f"{path} is the input of these scores; write to another file")
    done = Merged()
    records = _records(joined(folder, sources), failed, done)
    with replacing(path) as out:
        if path.suffix == ".jsonl":
            out.writelines(json.dumps(record, ensure_ascii=False).encode() + b"\n" for record in records)
        else:
            _write_parquet(out, records)
    return done


def _records(pairs: Iterator[tuple[Row, ScoredRow]], failed: str, done: Merged) -> Iterator[dict[str, Any]]:
    for row, scored in pairs:
        record: dict[str, Any] = {"id": row.id, "prompt": row.history, "response": row.response}
        if scored.error is None:
            record |= {"scores": scored.scores, "ends": scored.ends, "flags": scored.flags}
        elif failed == "zero" and (row.history or row.response):
            record |= {"scores": [0.0], "ends": [len(row.response)], "flags": ["unscored"]}
        else:
            done.dropped += 1
            continue
        done.rows += 1
        yield record


def _write_parquet(out: Any, records: Iterator[dict[str, Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    turn = pa.struct([("role", pa.string()), ("content", pa.string())])
    schema = pa.schema(
        [
            ("id", pa.string()),
            ("prompt", pa.list_(turn)),
            ("response", pa.string()),
            ("scores", pa.list_(pa.float32())),
            ("ends", pa.list_(pa.int32())),
            ("flags", pa.list_(pa.string())),
        ]
    )
    with pq.ParquetWriter(out, schema, compression="zstd", write_page_checksum=True) as writer:
        while part := list(islice(records, _ROWS_AT_ONCE)):
            writer.write_table(pa.Table.from_pylist(part, schema=schema))
