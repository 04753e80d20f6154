"""Turns to judge become what each guard is shown: prefix trees, made in slices so that the next can be made while one
is scored."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import takewhile
from typing import NamedTuple

import numpy as np

from fastdss.chat.conversation import Conversation, Message
from fastdss.errors import RowError, UserError
from fastdss.guards.guard import GuardModel
from fastdss.prefix.tree import PrefixTree, build_tree, shared_length

WHOLE, SMALLEST_SLICE = 48, 4  # turns: up to so many are one slice; the first of several slices has the fewest
_SHORT = 4  # a text with fewer characters than this for each token of the context most likely fits


class Judged(NamedTuple):
    """A turn of a conversation to judge. Turns of one ``row`` stand together; errors call the row by ``name``."""

    conversation: Conversation
    turn: int
    row: int
    name: int

    @property
    def text(self) -> str:
        return self.conversation.turns[self.turn].answer.text


class Turn(NamedTuple):
    """A turn to judge, what came before it, its text, and the ends of its prefixes."""

    judged: Judged
    history: list[Message]
    response: str
    ends: list[int]


class Forest(NamedTuple):
    """The renderings of some turns: for each guard its trees and the first turn of each tree; how many scores each turn
    keeps; and how many renderings were left out, because they are too long."""

    trees: list[list[PrefixTree]]
    first: list[list[int]]
    kept: list[int]
    cut: int


def make_forest(guards: Sequence[GuardModel], turns: Sequence[Turn], max_tokens: int | None) -> Forest:
    """The trees of some turns, with as many prefixes as every guard has room for."""
    whole = [
        [_tree(guard, item.name, history, text, ends, max_tokens) for item, history, text, ends in turns]
        for guard in guards
    ]
    kept = [
        min(tree.num_prefixes // guard.readouts for guard, tree in zip(guards, trees, strict=True))
        for trees in zip(*whole, strict=True)
    ]
    trees, first = [], []
    for guard, own in zip(guards, whole, strict=True):
        own = [tree.first(k * guard.readouts) for tree, k in zip(own, kept, strict=True)]
        shared, begins = _sharing(own, [turn.judged.row for turn in turns])
        trees.append(shared)
        first.append(begins)
    cut = sum(len(turn.ends) for turn in turns) - sum(kept)
    return Forest(trees, first, kept, cut * sum(guard.readouts for guard in guards))


def cut_in_slices(turns: list[Turn]) -> list[list[Turn]]:
    """Turns in slices, small ones first, so that scoring begins soon. The turns of a row stay in one slice, since they
    share trees; up to ``WHOLE`` turns are a single slice."""
    if len(turns) <= WHOLE:
        return [turns]
    slices: list[list[Turn]] = [[]]
    for turn in turns:
        full = len(slices[-1]) >= min(WHOLE, SMALLEST_SLICE << len(slices) - 1)
        if full and turn.judged.row != slices[-1][-1].judged.row:
            slices.append([])
        slices[-1].append(turn)
    return slices


def _sharing(trees: list[PrefixTree], rows: list[int]) -> tuple[list[PrefixTree], list[int]]:
    """The trees, those of one row joined where a common trunk saves tokens; and the first turn of each tree.

    Where a guard reads whole conversations, what it reads of a turn begins the rendering of the next. Where it reads
    the last exchange alone, two turns share the template's head and nothing else.
    """
    groups: list[list[int]] = []
    for i, tree in enumerate(trees):
        if groups and rows[groups[-1][0]] == rows[i]:
            last = trees[groups[-1][-1]]
            shared = shared_length(np.asarray(last.trunk), np.asarray(tree.trunk))
            lengths = [start + len(tail) for start, tail in zip(last.starts, last.tails, strict=True)]
            # What the last tree costs as branches of this tree's trunk, to compare with its own trunk and branches.
            joined = sum(n - min(start, shared) for n, start in zip(lengths, last.starts, strict=True))
            if joined < len(last.trunk) + sum(map(len, last.tails)):
                groups[-1].append(i)
                continue
        groups.append([i])
    found = [
        trees[group[0]]
        if len(group) == 1
        else build_tree([trees[i].rendering(k) for i in group for k in range(trees[i].num_prefixes)])
        for group in groups
    ]
    return found, [group[0] for group in groups]


def _tree(
    guard: GuardModel, row: int, history: list[Message], response: str, ends: list[int], max_tokens: int | None
) -> PrefixTree:
    """The row's prefix tree, cut down to the prefixes that fit ``max_tokens``."""
    limit = min(guard.max_tokens, max_tokens or guard.max_tokens)

    def rendered(ends: Sequence[int]) -> tuple[list[list[int]], list[int]]:
        """The renderings, and for each prefix the length of its longest one."""
        ids = guard.encode_prefixes(history, response, ends)
        return ids, [max(map(len, ids[k : k + guard.readouts])) for k in range(0, len(ids), guard.readouts)]

    try:
        characters = len(response) + sum(len(turn["content"]) for turn in history)
        # For a longer text, rendering the whole shows first whether it is worth the time to render all prefixes.
        short = characters < limit * _SHORT
        renderings, lengths = rendered(ends if short else ends[-1:])
        whole = lengths[-1]
        if whole > limit and max_tokens is None:
            raise UserError(
                f"{whole} tokens exceed the context of {guard.spec.name}, {limit}; pass max_tokens to score what fits"
            )
        if not short:
            if whole > limit:
                ends = ends[: bisect_left(ends, True, key=lambda end: rendered([end])[1][0] > limit)]
            renderings, lengths = rendered(ends) if ends else ([], [])
    except ValueError as error:
        raise RowError(row, str(error)) from error
    kept = len(list(takewhile(lambda length: length <= limit, lengths)))
    if not kept:
        raise RowError(row, f"even its first prefix exceeds {limit} tokens with the template and the prompt")
    return build_tree(renderings[: kept * guard.readouts])
