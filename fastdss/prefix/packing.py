"""Prefix trees -> segments in K/V slots -> micro-batches under a token budget.

Every trunk gets a *slot*: a run of positions in one K/V store. A *segment* is a run of new tokens that follows
``start`` tokens already in its slot; computing it writes its keys and values there, and then it attends to all of
``slot[: start + n]`` causally. Trunks are computed first. Branches follow, those that leave the trunk last foremost, so
each overwrites only positions that no later branch can see: trunk and branch are one and the same operation, nothing is
copied, and the memory does not grow with the number of branches. No rendering is longer than the trunk, so all fit the
slot.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain

import numpy as np

from .tree import PrefixTree, shared_length

_WORTH_IT = 8  # times a shortcut's length: at 17 tokens, four cost more than they spared (bench_probe, the tiny guard)


@dataclass(frozen=True)
class Segment:
    """New tokens ``ids`` at positions ``start, start + 1, …`` of the slot that begins at ``base`` in the store.

    ``verdicts`` pairs an offset into ``ids`` with the index of the score that is read there; ``taps`` one with the
    index of a score whose branch leaves the trunk after that token; ``copies`` are the bases of further slots that
    share these tokens. ``lent`` makes it a shortcut, see ``shortcut_segments``: positions from its first number on are
    read as many positions later as its second says.
    """

    base: int
    start: int
    ids: list[int]
    verdicts: list[tuple[int, int]] = field(default_factory=list)
    copies: tuple[int, ...] = ()
    taps: list[tuple[int, int]] = field(default_factory=list)
    lent: tuple[int, int] | None = None

    def cut(self, size: int) -> Iterator[Segment]:
        """Pieces of at most ``size`` tokens, in order; a shortcut is a few tokens and stays whole."""
        if self.lent is not None:
            yield self
            return
        for left in range(0, len(self.ids), size):
            ids = self.ids[left : left + size]
            verdicts, taps = (
                [(at - left, k) for at, k in places if left <= at < left + len(ids)]
                for places in (self.verdicts, self.taps)
            )
            yield Segment(self.base, self.start + left, ids, verdicts, self.copies, taps)


@dataclass(frozen=True)
class Group:
    """Trees whose trunks are in the store together; ``first_score[i]`` is the index of tree i's first score."""

    trees: list[PrefixTree]
    prompts: list[int]
    first_score: list[int]

    @property
    def bases(self) -> list[int]:
        """Where each tree's slot begins in the store."""
        return [0, *accumulate(len(tree.trunk) for tree in self.trees)][:-1]

    @property
    def capacity(self) -> int:
        """Positions of the store: every trunk has its slot."""
        return sum(len(tree.trunk) for tree in self.trees)

    def split(self, store_tokens: int) -> list[Group]:
        """Groups of at most ``store_tokens`` trunk tokens (one tree at least), in order."""
        groups: list[Group] = []
        room = 0
        for tree, prompt, first in zip(self.trees, self.prompts, self.first_score, strict=True):
            need = len(tree.trunk)
            if not groups or need > room:
                groups.append(Group([], [], []))
                room = store_tokens
            groups[-1].trees.append(tree)
            groups[-1].prompts.append(prompt)
            groups[-1].first_score.append(first)
            room -= need
        return groups


def shared_head(trees: Sequence[PrefixTree]) -> list[int]:
    """The tokens with which every trunk begins: the guard's template up to the first character that differs."""
    first = np.asarray(trees[0].trunk)
    shared = min(shared_length(first, np.asarray(tree.trunk)) for tree in trees)
    return trees[0].trunk[: _limit(shared, trees)]


def make_groups(trees: Sequence[PrefixTree], prompts: Sequence[int], store_tokens: int) -> list[Group]:
    """Trees in groups of at most ``store_tokens`` trunk tokens (one tree at least), equal prompts side by side."""
    first_score = [0, *accumulate(tree.num_prefixes for tree in trees)]
    order = sorted(range(len(trees)), key=lambda i: (prompts[i], i))
    whole = Group([trees[i] for i in order], [prompts[i] for i in order], [first_score[i] for i in order])
    return whole.split(store_tokens)


def schedule(group: Group, head: int) -> Iterator[Segment]:
    """The segments of a group whose slots already hold their first ``head`` tokens, in an order that is exact."""
    return chain(trunk_segments(group, head), branch_segments(group, group.trees))


def trunk_segments(group: Group, head: int, *, tapped: bool = False) -> Iterator[Segment]:
    """Those of the trunks; ``tapped``: with the places where branches leave them, but for those in shared tokens."""
    bases = group.bases
    filled = {}
    for rows in _equal_prompts(group.prompts):
        trees = [group.trees[i] for i in rows]
        shared = head
        if len(rows) > 1:
            shared = max(head, len(shared_head(trees)))
            copies = tuple(bases[i] for i in rows[1:])
            if shared > head:
                yield Segment(bases[rows[0]], head, trees[0].trunk[head:shared], copies=copies)
        filled.update(dict.fromkeys(rows, shared))
    for i, tree in enumerate(group.trees):
        on_trunk = [
            (start - 1 - filled[i], group.first_score[i] + k)
            for k, (start, tail) in enumerate(zip(tree.starts, tree.tails, strict=True))
            if not tail
        ]
        taps = [
            (start - 1 - filled[i], group.first_score[i] + k)
            for k, (start, tail) in enumerate(zip(tree.starts, tree.tails, strict=True))
            if tapped and tail and start > filled[i]
        ]
        yield Segment(bases[i], filled[i], tree.trunk[filled[i] :], on_trunk, taps=taps)


def branch_segments(group: Group, trees: Sequence[PrefixTree]) -> Iterator[Segment]:
    """Those of the branches of ``trees``: the group's own, or what is left of them where some are not computed."""
    for base, first, tree in zip(group.bases, group.first_score, trees, strict=True):
        for k, start, ids in tree.branches:
            yield Segment(base, start, ids, [(len(ids) - 1, first + k)])


def shortcut_segments(group: Group, length: int, wanted: Callable[[int], bool]) -> Iterator[Segment]:
    """The last ``length`` tokens of the branches whose scores are wanted, where that is a small part of them.

    Branches end alike, and the trunk has such an end of its own. A shortcut sees the trunk up to where its branch
    leaves it, then the trunk's end in the place of the branch's, which is not computed. The trunk's end was computed
    behind the whole response, so it carries text after the boundary, and a shortcut's verdict is not the branch's, but
    often near it. It writes nothing to the slot, so branches can follow.
    """
    for base, first, tree in zip(group.bases, group.first_score, group.trees, strict=True):
        for k, (start, tail) in enumerate(zip(tree.starts, tree.tails, strict=True)):
            if len(tail) >= _WORTH_IT * length and wanted(first + k):
                ids, end = tail[-length:], start + len(tail)
                yield Segment(base, end - length, ids, [(length - 1, first + k)], lent=(start, len(tree.trunk) - end))


def micro_batches(segments: Iterable[Segment], budget: int, longest: int) -> Iterator[list[Segment]]:
    """Segments in batches of at most ``budget`` tokens, in order; none is longer than ``longest``."""
    batch: list[Segment] = []
    room = budget
    for segment in segments:
        for piece in segment.cut(min(budget, longest)):
            if len(piece.ids) > room:
                yield batch
                batch, room = [], budget
            batch.append(piece)
            room -= len(piece.ids)
    if batch:
        yield batch


def _equal_prompts(prompts: Sequence[int]) -> list[list[int]]:
    rows: dict[int, list[int]] = {}
    for i, prompt in enumerate(prompts):
        rows.setdefault(prompt, []).append(i)
    return list(rows.values())


def _limit(shared: int, trees: Sequence[PrefixTree]) -> int:
    """A shared prefix leaves every verdict, and at least one token, to each tree's own segment."""
    return min(shared, *(min(tree.first_verdict, len(tree.trunk) - 1) for tree in trees))
