"""Tables that Arrow reads: Parquet, Arrow and Feather files, saved ``datasets``, and tables and frames in memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fastdss.chat.nulls import as_meant, keeps, without_nulls
from fastdss.chat.record import rows_of_batch
from fastdss.errors import UserError

from .csv_files import check_names
from .files import ROWS_AT_ONCE, Found, Unreadable, without_text


def read_parquet(path: str, file: Any) -> Iterator[Found]:
    """Rows of a Parquet file, ``ROWS_AT_ONCE`` of them in memory.

    In this thread alone: one of Arrow's that still frees what it read from a file of Python while Python ends, as after
    an error, aborts the process.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file, pre_buffer=False) as table:
            check_names(path, table.schema_arrow.names)
            for batch in table.iter_batches(batch_size=ROWS_AT_ONCE, use_threads=False):
                yield from _rows(batch)
    except (pa.ArrowException, UnicodeError) as error:  # not every ArrowException is a ValueError
        raise UserError(f"{path}: not to be read as Parquet: {without_text(error)}") from None


def read_arrow(path: str, file: Any) -> Iterator[Found]:
    """Rows of an Arrow file or stream, or of a Feather file."""
    import pyarrow as pa
    from pyarrow import feather, ipc

    try:
        try:
            source: Any = ipc.open_file(file)
            batches: Any = (source.get_batch(i) for i in range(source.num_record_batches))
        except pa.ArrowInvalid:
            file.seek(0)
            try:
                source = ipc.open_stream(file)
                batches = iter(source)
            except pa.ArrowInvalid:
                file.seek(0)
                source = feather.read_table(file, use_threads=False)  # version 1 of Feather is no Arrow file
                batches = iter(source.to_batches())
        check_names(path, source.schema.names)
        for batch in batches:
            for start in range(0, len(batch), ROWS_AT_ONCE):
                yield from _rows(batch.slice(start, ROWS_AT_ONCE))
    except (pa.ArrowException, UnicodeError) as error:
        raise UserError(f"{path}: not to be read as Arrow: {without_text(error)}") from None


def read_saved(path: str) -> Iterator[Found]:
    """Rows of a folder of ``Dataset.save_to_disk``."""
    from datasets import load_from_disk

    try:
        dataset = load_from_disk(path)
    except Exception as error:  # datasets does not document what it raises for a damaged folder
        raise UserError(f"{path}: not to be read as a saved datasets.Dataset ({type(error).__name__})") from error
    yield from read_dataset(dataset)


def read_dataset(dataset: Any) -> Iterator[Found]:
    """Rows of a ``datasets.Dataset``, whatever ``set_format`` made of it."""
    raw = dataset.with_format("arrow")
    check_names("the data set", list(dataset.column_names))
    for start in range(0, len(dataset), ROWS_AT_ONCE):
        table = raw[start : start + ROWS_AT_ONCE]
        for batch in table.combine_chunks().to_batches():
            yield from _rows(batch)


def read_memory(source: Any) -> Iterator[Found] | None:
    """The rows of a table in memory; None where ``source`` is not one."""
    name = f"{type(source).__module__.split('.')[0]}.{type(source).__name__}"
    if name in ("datasets.DatasetDict", "datasets.IterableDatasetDict"):
        raise UserError(f"the DatasetDict holds the splits {', '.join(source)}: give one of them")
    if name == "datasets.Dataset":
        return read_dataset(source)
    if name == "datasets.IterableDataset":
        return _stream(source)
    if name == "pandas.DataFrame":
        return _frame(source)
    if name == "pyarrow.RecordBatch":
        return _rows(source)
    if name == "pyarrow.Table":
        batches = source.to_batches(max_chunksize=ROWS_AT_ONCE)
        return (found for batch in batches for found in _rows(batch))
    if hasattr(source, "__arrow_c_stream__"):  # Polars, DuckDB and others hand their tables over so
        import pyarrow as pa

        return read_memory(pa.table(source))
    return map(Found, records_of(source)) if isinstance(source, Mapping) else None


def _stream(source: Any) -> Iterator[Found]:
    """Rows of a stream. One that knows no features may come out of a generator, whose nulls are values."""
    kinds = None if source.features is None else _kinds_with_json(source.features.arrow_schema)
    for row in source:
        record = {name: listed(value) for name, value in row.items()}
        yield Found(as_meant(record) if kinds is None else _of_arrow(record, kinds))


def _frame(frame: Any) -> Iterator[Found]:
    """Rows of a pandas frame. Cells that came from Arrow, as those of Parquet do, are arrays or of Arrow's dtype: there
    a null field of a mapping means "not there"; in a cell that holds a list of Python's it is a value."""
    check_names("the frame", [str(name) for name in frame.columns])
    arrow = {name for name, dtype in frame.dtypes.items() if type(dtype).__name__ == "ArrowDtype"}
    for start in range(0, len(frame), ROWS_AT_ONCE):
        for record in frame.iloc[start : start + ROWS_AT_ONCE].to_dict("records"):
            from_arrow = {name for name, value in record.items() if name in arrow or hasattr(value, "tolist")}
            plain = {name: listed(value) for name, value in record.items()}
            yield Found({str(n): without_nulls(value) if n in from_arrow else value for n, value in plain.items()})


def listed(value: Any) -> Any:
    """The value with arrays and scalars of numpy, pandas and Arrow replaced by lists and plain values, nested ones
    too."""
    if type(value).__name__ in ("NAType", "NaTType"):  # pandas' missing values
        return None
    for name in ("tolist", "to_pylist", "as_py"):
        if hasattr(value, name):
            return listed(getattr(value, name)())
    if isinstance(value, list):
        return [listed(inner) for inner in value]
    if isinstance(value, Mapping) and type(value) is dict:
        return {name: listed(inner) for name, inner in value.items()}
    return value if isinstance(value, str | Mapping | tuple) or not hasattr(value, "__iter__") else list(value)


def records_of(batch: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The records of a batch of columns. What ``datasets`` gives to a function of ``map``, and columns that are arrays,
    came out of Arrow; a dictionary of lists may hold anything."""
    records = rows_of_batch({name: listed(values) for name, values in batch.items()})
    if type(batch) is dict and not any(hasattr(values, "tolist") for values in batch.values()):
        return [as_meant(record) for record in records]
    table = getattr(batch, "pa_table", None)
    kinds = {} if table is None else _kinds_with_json(table.schema)
    return [_of_arrow(record, kinds) for record in records]


def _rows(batch: Any) -> Iterator[Found]:
    kinds = _kinds_with_json(batch.schema)
    records: list[Mapping[str, Any] | Unreadable]
    try:
        records = [_of_arrow(record, kinds) for record in batch.to_pylist(maps_as_pydicts="strict")]
    except (ValueError, OverflowError, KeyError, RecursionError):
        records = [_alone(batch.slice(i, 1), kinds) for i in range(len(batch))]
    yield from map(Found, records)


def _alone(batch: Any, kinds: Mapping[str, Any]) -> Mapping[str, Any] | Unreadable:
    """The record of a batch of one row. It may be unreadable, for Arrow can hold invalid UTF-8, damaged JSON, and dates
    that Python cannot represent."""
    try:
        return _of_arrow(batch.to_pylist(maps_as_pydicts="strict")[0], kinds)
    except UnicodeError as error:
        reason = without_text(error)
    except (json.JSONDecodeError, RecursionError) as error:
        reason = f"JSON in it is damaged: {without_text(error)}"
    except KeyError:
        reason = "a name occurs twice in a map"
    except (ValueError, OverflowError) as error:
        reason = f"a value that Python cannot hold ({type(error).__name__})"
    return Unreadable(reason, hashlib.sha256(batch.serialize()).hexdigest())


def _of_arrow(record: Mapping[str, Any], kinds: Mapping[str, Any]) -> Mapping[str, Any]:
    """A record of Arrow's as it was before: without the nulls that fill it, and with the values of JSON in it."""
    return {n: _decoded(value, kinds[n]) if n in kinds else without_nulls(value) for n, value in record.items()}


def _kinds_with_json(schema: Any) -> dict[str, Any]:
    """The types of those columns of which a part is of the type ``arrow.json``, in which ``datasets`` keeps values that
    are not alike, such as the arguments of calls."""
    return {field.name: field.type for field in schema if _holds_json(field.type)}


def _holds_json(kind: Any) -> bool:
    return _is_json(kind) or any(_holds_json(kind.field(i).type) for i in range(kind.num_fields))


def _is_json(kind: Any) -> bool:
    return getattr(kind, "extension_name", None) == "arrow.json"


def _decoded(value: Any, kind: Any) -> Any:
    if _is_json(kind):  # there a null is a value; datasets decodes it where it formats the rows
        return json.loads(value) if isinstance(value, str) else value
    if isinstance(value, list) and hasattr(kind, "value_type"):
        return [_decoded(inner, kind.value_type) for inner in value]
    if isinstance(value, Mapping) and all(kind.get_field_index(name) >= 0 for name in value):
        kept = {name: inner for name, inner in value.items() if inner is not None or keeps(value, name)}
        return {name: _decoded(inner, kind.field(name).type) for name, inner in kept.items()}
    return without_nulls(value)


def is_saved(path: Path) -> bool:
    """Whether a folder was written by ``Dataset.save_to_disk``."""
    return (path / "state.json").is_file() and (path / "dataset_info.json").is_file()


def saved_split(path: Path) -> str | None:
    """The split that a saved data set says it is; None where it does not say."""
    try:
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
    except ValueError:
        return None
    said = state.get("_split") if isinstance(state, dict) else None
    return said if isinstance(said, str) else None
