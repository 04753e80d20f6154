"""Examples joined to packed rows, so that training wastes no tokens on padding."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fastdss.errors import UserError
from fastdss.models.inputs import MEDIA_INPUTS, TOKEN_INPUTS, as_tensor, token_values

from .example import COLUMNS, as_list, restarts, seen_tokens


def pack(examples: Sequence[Mapping[str, Any]], max_length: int) -> Iterator[dict[str, list[Any]]]:
    """Join examples to rows of at most ``max_length`` tokens, the longest first, each into the fullest row that has
    room for it. All aligned columns stay together, and no example is cut.

    Args:
        examples: as ``DSSCollator`` takes them.
        max_length: the longest row, in tokens.

    Returns:
        Iterator: rows with ``seq_lengths``.

    Raises:
        ValueError: for an example that is longer, one with images, which a packed row cannot have, and one that lacks
            a column of the others: packed with them, it would take that column from all.
    """
    tight = [_unpadded(index, example) for index, example in enumerate(examples)]
    for index, example in enumerate(tight):
        if example.keys() != tight[0].keys():
            raise UserError(
                f"example {index} has columns {sorted(example)}, example 0 has {sorted(tight[0])}: pack the two kinds "
                "apart, or give all rows all columns (a token_weights of 1 is plain cross-entropy)"
            )
    for members in _bins([len(example["input_ids"]) for example in tight], max_length):
        chosen = [tight[index] for index in members]
        packed: dict[str, list[Any]] = {
            name: [value for example in chosen for value in example[name]] for name in chosen[0]
        }
        packed["seq_lengths"] = [len(example["input_ids"]) for example in chosen]
        yield packed


def _unpadded(index: int, example: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The example's aligned columns as lists, without the padding that its attention_mask hides."""
    if media := [name for name in MEDIA_INPUTS if example.get(name) is not None]:
        raise UserError(f"example {index}: {', '.join(sorted(media))}: rows with images cannot be packed: pad them")
    names = [name for name in example if name in COLUMNS or name in TOKEN_INPUTS]
    names = [name for name in names if example[name] is not None]
    length = len(example["input_ids"])
    mask = example.get("attention_mask")
    values = None if mask is None else token_values(f"example {index}", "attention_mask", mask, length)
    kept, inner_mask = seen_tokens(f"example {index}", values, as_tensor(example["labels"]), length)
    if inner_mask is not None:
        raise UserError(f"example {index}: attention_mask hides tokens between others: such a row cannot be packed")
    positions = example.get("position_ids")
    if positions is not None and restarts(as_tensor(positions[kept])) != [kept.stop - kept.start]:
        raise UserError(f"example {index}: position_ids other than 0, 1, 2, …: it cannot be packed (again)")
    names = [name for name in names if name not in ("attention_mask", "position_ids")]
    return {name: as_list(example[name][kept]) for name in names}


def _bins(lengths: Sequence[int], max_length: int) -> list[list[int]]:
    """Which examples share a packed row, as indices: best-fit bin packing, the longest example first."""
    members: list[list[int]] = []
    rows_with: dict[int, list[int]] = {}  # room left -> rows
    rooms: list[int] = []  # the keys of rows_with, ascending
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        length = lengths[index]
        if length > max_length:
            raise UserError(f"example {index}: expected at most max_length = {max_length} tokens, got {length}")
        at = bisect_left(rooms, length)
        if at == len(rooms):
            row, room = len(members), max_length
            members.append([])
        else:
            room = rooms[at]
            row = rows_with[room].pop()
            if not rows_with[room]:
                del rows_with[room], rooms[at]
        members[row].append(index)
        if room - length not in rows_with:
            rows_with[room - length] = []
            insort(rooms, room - length)
        rows_with[room - length].append(row)
    return members
