"""Arrow types of the columns that fastdss writes, the same in every batch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

_AS_JSON = "tools"  # written as JSON text: tools have other fields in every row, for which Arrow has no type


def star_type() -> Any:
    """The type of the column ``star``: a list of the judged turns of a conversation."""
    import pyarrow as pa

    turn = [
        ("turn", pa.int32()),
        ("text", pa.string()),
        ("ends", pa.list_(pa.int32())),
        ("scores", pa.list_(pa.float32())),
        ("flags", pa.list_(pa.string())),
        ("exact", pa.list_(pa.bool_())),
    ]
    return pa.list_(pa.struct(turn))


class TypedList(list[Any]):
    """A list that Arrow reads as an array of ``type``, whatever values it holds.

    ``datasets`` takes a column's type from the first batch. If nothing fails in that batch, the column ``error`` would
    get the null type, and the errors of later batches could not be written.
    """

    def __init__(self, array: Any) -> None:
        super().__init__(array.to_pylist())
        self.type = array.type

    def __arrow_array__(self, type: Any = None) -> Any:
        import pyarrow as pa

        return pa.array(list(self), type or self.type)


def with_columns(batch: Any, arrays: Mapping[str, Any]) -> Any:
    """The result of a batch function: a table or a frame with the columns added; for a mapping the new columns alone,
    since ``datasets`` adds them itself."""
    if isinstance(batch, Mapping):
        return {name: TypedList(array) for name, array in arrays.items()}
    if type(batch).__module__.startswith("pandas"):
        import pandas as pd

        return batch.assign(
            **{
                name: pd.Series(array, index=batch.index, dtype=pd.ArrowDtype(array.type))
                for name, array in arrays.items()
            }
        )
    for name, array in arrays.items():
        batch = batch.append_column(name, array)
    return batch


class ColumnTypes:
    """The type of each column, found from all of its values; a column without a single type is written as JSON text."""

    def __init__(self) -> None:
        self.types: dict[str, Any] = {}
        self.as_json: set[str] = set()

    def add(self, record: Mapping[str, Any]) -> None:
        """Take one more record into account."""
        import pyarrow as pa

        for name, value in record.items():
            if name == "star" or name in self.as_json:
                self.types.setdefault(name, None)
                continue
            try:
                if name == _AS_JSON:
                    raise pa.ArrowInvalid("always JSON")
                kind = pa.array([value]).type
                known = self.types.get(name)
                self.types[name] = kind if known is None else _common(known, kind)
            except (pa.ArrowException, ValueError, TypeError, OverflowError):
                self.as_json.add(name)
                self.types[name] = pa.string()

    def schema(self, known: Mapping[str, Any]) -> Any:
        """A schema of the columns in the order in which they were met, then those of ``known`` with their types."""
        import pyarrow as pa

        names = [name for name in self.types if name not in known]
        self.as_json |= {name for name in names if _has_empty_struct(self.types[name])}
        fields = [(name, pa.string() if name in self.as_json else self.types[name]) for name in names]
        fields = [(name, pa.string() if pa.types.is_null(kind) else kind) for name, kind in fields]
        return pa.schema([*fields, *known.items()])

    def fitted(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """The record, with JSON text in columns that are written so."""
        return {
            name: json_text(value) if name in self.as_json and value is not None else value
            for name, value in record.items()
        }


def json_text(value: Any) -> str:
    """The value as JSON that can be encoded: lone surrogates, which cut text has, stay the escapes that they are."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value, default=str)
    return text


def _has_empty_struct(kind: Any) -> bool:
    """Whether a struct without fields is in the type: Parquet has none."""
    import pyarrow as pa

    inner = [kind.field(i).type for i in range(kind.num_fields)]
    return (pa.types.is_struct(kind) and not inner) or any(map(_has_empty_struct, inner))


def _common(one: Any, other: Any) -> Any:
    """The type that holds values of both; ``ArrowInvalid`` or ``ArrowTypeError`` where there is none."""
    import pyarrow as pa

    if one == other:
        return one
    schemas = [pa.schema([("value", kind)]) for kind in (one, other)]
    return pa.unify_schemas(schemas, promote_options="permissive").field("value").type
