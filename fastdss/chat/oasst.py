"""OpenAssistant's trees of messages as conversations: the paths from the first question to each last answer.

An answer that several paths share is trained in the first of them only, so nothing is learnt twice. A path ends at a
message that is marked as deleted, which is not trained.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from .turns import is_missing

_COLUMNS = {"message_id", "parent_id", "text", "role"}
LARGEST_TREE = 10_000  # messages of a tree, far more than any of OpenAssistant's has: a limit for broken input
TOO_MANY = f"its tree has more than {LARGEST_TREE} messages"
_REPEATED = "its message_id is that of a message before it"
_ALONE = "it answers a message that is not beside it: the rows of a tree must stand together"


def is_message(record: Mapping[str, Any]) -> bool:
    """Whether the record is one message of a tree."""
    return record.keys() >= _COLUMNS


def is_tree(record: Mapping[str, Any]) -> bool:
    """Whether the record is a whole tree, as OpenAssistant exports them."""
    prompt = record.get("prompt")
    return isinstance(prompt, Mapping) and "replies" in prompt and "text" in prompt


class TreeNames:
    """The tree to which each row belongs: its ``message_tree_id``, or without that column the tree of its parent."""

    def __init__(self) -> None:
        self.root: Any = None
        self.known: set[Any] = set()  # the messages of the present tree

    def __call__(self, record: Mapping[str, Any]) -> Any:
        if record.get("message_tree_id"):
            return record["message_tree_id"]
        if record["parent_id"] not in self.known:
            self.root, self.known = record["message_id"], set()
        self.known.add(record["message_id"])
        return self.root


def strays(rows: Sequence[Mapping[str, Any]]) -> list[str | None]:
    """For each of the rows of one tree why no path can hold it, None where one does. What answers a message that is
    missing, and all that was said after it, is in none: nobody knows what was asked."""
    first = {row["message_id"]: index for index, row in reversed(list(enumerate(rows)))}
    children: dict[Any, list[Any]] = {}
    for name, index in first.items():
        children.setdefault(_parent(rows[index]), []).append(name)
    reached, ahead = set(), [None]
    while ahead:
        answers = children.get(ahead.pop(), [])
        reached.update(answers)
        ahead += answers
    return [
        _REPEATED if first[row["message_id"]] != index else None if row["message_id"] in reached else _ALONE
        for index, row in enumerate(rows)
    ]


def paths_of_rows(rows: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Records that ``formats`` reads, one for each path through the messages of one tree, none of them a stray."""
    children: dict[Any, list[Mapping[str, Any]]] = {}
    for row in rows:
        children.setdefault(_parent(row), []).append(row)
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
        after = [] if path[-1].get("deleted") else list(_ranked(children(path[-1])))
        if after:
            stack += [[*path, row] for row in reversed(after)]
            continue
        turns = []
        for row in path:
            turn = {"role": row.get("role"), "content": row.get("text")}
            if id(row) in trained or row.get("deleted"):
                turn["train"] = False
            trained.add(id(row))
            turns.append(turn)
        answers = [turn for turn in turns if turn["role"] != "prompter"]
        if len(path) == 1 or path[-1].get("deleted") or any("train" not in turn for turn in answers):
            yield {"oasst_path": turns, "id": path[-1].get("message_id"), "lang": path[0].get("lang")}


def _parent(row: Mapping[str, Any]) -> Any:
    """The ``parent_id``, None for the first message of a tree."""
    return None if is_missing(row["parent_id"]) else row["parent_id"] or None


def _ranked(rows: Iterable[Mapping[str, Any]]) -> Iterable[Mapping[str, Any]]:
    """``rows`` with the best answer first."""
    return sorted(rows, key=lambda row: row["rank"] if isinstance(row.get("rank"), int | float) else 0)
