"""Arrow types of what fastdss writes, the same for every row and every batch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

_AS_JSON = "tools"  # definitions of tools differ from row to row in their fields, and no type of Arrow holds that


def star_type() -> Any:
    """Of the column ``star``: the judged turns of a conversation."""
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
    """A list that becomes an array of ``type`` wherever Arrow reads it, whatever it holds.

    ``datasets`` fixes a column's type by the first values that it writes: without a type, a batch in which nothing
    failed would make the errors of later ones impossible to write.
    """

    def __init__(self, array: Any) -> None:
        super().__init__(array.to_pylist())
        self.type = array.type

    def __arrow_array__(self, type: Any = None) -> Any:
        import pyarrow as pa

        return pa.array(list(self), type or self.type)


def with_columns(batch: Any, arrays: Mapping[str, Any]) -> Any:
    """What a batch function returns: a table or a frame with the columns added, of a mapping the new columns alone."""
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
    """Types of columns from all of their values; what has no single type is written as its JSON."""

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
                found = pa.array([value]).type
                known = self.types.get(name)
                self.types[name] = found if known is None else _common(known, found)
            except (pa.ArrowException, ValueError, TypeError, OverflowError):
                self.as_json.add(name)
                self.types[name] = pa.string()

    def schema(self, known: Mapping[str, Any]) -> Any:
        """The columns in the order in which they were met, but ``star`` last; ``known`` are types given beforehand."""
        import pyarrow as pa

        names = [name for name in self.types if name not in known]
        fields = [(name, pa.string() if name in self.as_json else self.types[name]) for name in names]
        fields = [(name, pa.string() if pa.types.is_null(kind) else kind) for name, kind in fields]
        return pa.schema([*fields, *known.items()])

    def fitted(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """The record with JSON where a column is written so."""
        return {
            name: json.dumps(value, ensure_ascii=False, default=str)
            if name in self.as_json and value is not None
            else value
            for name, value in record.items()
        }


def _common(one: Any, other: Any) -> Any:
    """The type that holds values of both; ``ArrowInvalid`` or ``ArrowTypeError`` where there is none."""
    import pyarrow as pa

    if one == other:
        return one
    schemas = [pa.schema([("value", kind)]) for kind in (one, other)]
    return pa.unify_schemas(schemas, promote_options="permissive").field("value").type
