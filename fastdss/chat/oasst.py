"""OpenAssistant's trees of messages as conversations: the paths from the first question to each last answer.

An answer that several paths share is trained in the first of them only, so nothing is learnt twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

_COLUMNS = {"message_id", "parent_id", "text", "role"}
LARGEST_TREE = 10_000  # messages of a tree, far more than any of OpenAssistant's has: a limit for broken input


def is_message(record: Mapping[str, Any]) -> bool:
    """Whether the record is one message of a tree."""
    return record.keys() >= _COLUMNS


def is_tree(record: Mapping[str, Any]) -> bool:
    """Whether the record is a whole tree, as OpenAssistant exports them."""
    prompt = record.get("prompt")
    return isinstance(prompt, Mapping) and "replies" in prompt and "text" in prompt


def tree_name(record: Mapping[str, Any]) -> Any:
    """The id that all rows of a tree share; without a column for it, only the first message tells it."""
    return record.get("message_tree_id") or (record["message_id"] if not record["parent_id"] else None)


def paths_of_rows(rows: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Records that ``formats`` reads, one for each path through the messages of one tree."""
    children: dict[Any, list[Mapping[str, Any]]] = {}
    known = {row["message_id"] for row in rows}
    for row in rows:
        parent = row["parent_id"] if row["parent_id"] in known else None
        children.setdefault(parent, []).append(row)
    yield from _paths(lambda row: children.get(None if row is None else row["message_id"], []))


def paths_of_tree(record: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Like ``paths_of_rows``, for an exported tree."""
    root = record["prompt"]
    yield from _paths(lambda row: [root] if row is None else row.get("replies") or [])


def _paths(children: Any) -> Iterator[dict[str, Any]]:
    """A record for each path; ``children`` gives the answers to a message, and for None the first messages."""
    trained: set[int] = set()  # messages that an earlier path has
    stack: list[list[Mapping[str, Any]]] = [[row] for row in reversed(list(_ranked(children(None))))]
    while stack:
        path = stack.pop()
        after = [] if len(path) > LARGEST_TREE else list(_ranked(children(path[-1])))
        if after:
            stack += [[*path, row] for row in reversed(after)]
            continue
        turns = []
        for row in path:
            turn = {"role": row.get("role"), "content": row.get("text")}
            if id(row) in trained:
                turn["train"] = False
            trained.add(id(row))
            turns.append(turn)
        if any(turn["role"] != "prompter" and "train" not in turn for turn in turns):
            yield {"oasst_path": turns, "id": path[-1].get("message_id"), "lang": path[0].get("lang")}


def _ranked(rows: Iterable[Mapping[str, Any]]) -> Iterable[Mapping[str, Any]]:
    """``rows`` with the best answer first."""
    return sorted(rows, key=lambda row: row["rank"] if isinstance(row.get("rank"), int | float) else 0)
