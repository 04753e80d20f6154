"""``fastdss merge``: conversations and their scores joined into one data set to train on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from fastdss.errors import UserError
from fastdss.files import replacing
from fastdss.star.scored import Flag

from .columns import ColumnTypes, json_text, star_type
from .rows import FailedRow, Row
from .sources import Source, expand
from .store import ScoredRow, data_options, joined, load_manifest

FAILED = ("drop", "zero")
OWN = ("id", "messages", "tools", "star")  # columns that are written here; the input's columns of these names are not
_ROWS_AT_ONCE = 1024  # of a row group of Parquet: a choice between memory and a file that compresses well


@dataclass
class Merged:
    """What was written and what was left out."""

    rows: int = 0  # conversations that were written
    dropped: int = 0  # conversations that have no scores
    left_out: int = 0  # conversations of which nothing is to be trained
    turns_dropped: int = 0  # turns without scores, of conversations that were written


def merge(
    folder: str | Path, file: str | Path, *, failed: str = "drop", sources: Sequence[Source] | None = None
) -> Merged:
    """Write ``joined(folder, sources)`` to one Parquet or JSONL file, by its suffix; it appears whole or not at all.

    A conversation is a row with ``id``, ``messages``, ``tools`` where there are any (in Parquet as JSON text), the
    input's other columns, and ``star``: for each judged turn ``{turn, text, ends, scores, flags}``, and ``exact`` where
    some scores are approximations. ``prepare_dss_dataset`` and ``fastdss train`` read such rows.

    failed: what happens to turns without scores. ``"drop"``: they are not trained, and conversations without any
    scored turn are left out. ``"zero"``: they are kept with score 0 over the whole answer, so that the reference model
    alone decides there, and with the flag ``"unscored"``. Rows that hold no conversation or nothing to train are always
    left out.

    Raises ``ValueError`` where the scores are not finished or the input changed.
    """
    if failed not in FAILED:
        raise UserError(f"failed: expected one of {', '.join(FAILED)}, got {failed!r}")
    path = Path(file)
    if path.suffix not in (".parquet", ".jsonl"):
        raise UserError(f"{path}: expected a .parquet or .jsonl file")
    manifest = load_manifest(folder)
    if not manifest["finished"]:
        raise UserError(f"{folder} is not finished; run the same fastdss score command again")
    options = data_options(manifest, sources or ())
    read = (
        [item["path"] for item in manifest["inputs"]]
        if sources is None
        else expand(sources, options.split, options.config)
    )
    if any(isinstance(source, str | Path) and Path(source).resolve() == path.resolve() for source in read):
        raise UserError(f"{path} is the input of these scores; write to another file")

    def records(done: Merged) -> Iterator[dict[str, Any]]:
        return merged_records(joined(folder, sources), failed, done)

    done = Merged()
    types = ColumnTypes() if path.suffix == ".parquet" else None
    if types is not None:
        for record in records(Merged()):
            types.add(record)
    with replacing(path) as out:
        if types is None:
            out.writelines(json_text(record).encode() + b"\n" for record in records(done))
        else:
            _write_parquet(path, out, records(done), types)
    return done


def merged_records(
    pairs: Iterator[tuple[Row | FailedRow, ScoredRow]], failed: str, done: Merged
) -> Iterator[dict[str, Any]]:
    """A record for each conversation that has something to train on; ``done`` counts what becomes of the rows."""
    for row, scored in pairs:
        if scored.left_out:
            done.left_out += 1
            continue
        star = [] if isinstance(row, FailedRow) else star_of(row, scored, failed)
        if isinstance(row, FailedRow) or not star:
            done.dropped += 1
            continue
        done.rows += 1
        done.turns_dropped += len(scored.turns) - len(star)
        tools = {"tools": list(row.conversation.tools)} if row.conversation.tools else {}
        others = {name: value for name, value in row.others.items() if name not in OWN}
        yield {"id": row.id, "messages": row.conversation.records(), **tools, **others, "star": star}


def star_of(row: Row, scored: ScoredRow, failed: str = "drop") -> list[dict[str, Any]]:
    """The row's value of the column ``star``: the text of each judged turn and its scores."""
    star = []
    for judged in scored.turns:
        text = row.conversation.turns[judged.turn].answer.text
        answer = {"turn": judged.turn, "text": text}
        if judged.error is None:
            marks = {} if judged.exact is None else {"exact": judged.exact}
            star.append({**answer, "ends": judged.ends, "scores": judged.scores, "flags": judged.flags, **marks})
        elif failed == "zero":
            star.append({**answer, "ends": [len(text)], "scores": [0.0], "flags": [str(Flag.UNSCORED)]})
    return star


def _write_parquet(path: Path, out: Any, records: Iterator[dict[str, Any]], types: ColumnTypes) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = types.schema({"star": star_type()})
    with pq.ParquetWriter(out, schema, compression="zstd", write_page_checksum=True) as writer:
        while part := list(islice(records, _ROWS_AT_ONCE)):
            try:
                table = pa.Table.from_pylist([types.fitted(record) for record in part], schema=schema)
            except pa.ArrowException:  # such as whole numbers beyond 2**53 beside fractions
                raise UserError(f"{path}: a column has values that no one type of Arrow holds: write .jsonl") from None
            writer.write_table(table)
