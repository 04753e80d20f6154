"""Cuts prefix trees into segments in K/V slots, and packs the segments into micro-batches under a token budget.

Every trunk gets a *slot*: a run of positions in one K/V store. A *segment* is a run of n new tokens that follows
``start`` tokens already in its slot. Computing it writes its keys and values there, and its tokens attend causally to
``slot[: start + n]``. Trunks are computed first, then branches, beginning with those that leave the trunk last. So each
branch overwrites only positions that no later branch can see. Trunk and branch are thus the same operation, nothing is
copied, and the memory does not grow with the number of branches. No rendering is longer than the trunk, so all fit into
the slot.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain

import numpy as np

from .tree import PrefixTree, shared_length

# A shortcut is computed if its branch is at least this many times as long. For branches of 17 tokens, shortcuts of 4
# tokens cost more time than they saved (bench_probe, the built-in tiny guard).
_WORTH_IT = 8


@dataclass(frozen=True)
class Segment:
    """New tokens ``ids`` at positions ``start, start + 1, …`` of the slot that begins at ``base`` in the store.

    ``verdicts`` are pairs of an offset into ``ids`` and the index of the score that is read there. ``taps`` are pairs
    of an offset and the index of a score whose branch leaves the trunk after that token. ``copies`` are the bases of
    further slots that share these tokens. ``lent`` makes the segment a shortcut, see ``shortcut_segments``: with
    ``lent=(p, n)`` the keys for the positions from p on are read n positions later in the slot.
    """

    base: int
    start: int
    ids: list[int]
    verdicts: list[tuple[int, int]] = field(default_factory=list)
    copies: tuple[int, ...] = ()
    taps: list[tuple[int, int]] = field(default_factory=list)
    lent: tuple[int, int] | None = None

    def cut(self, size: int) -> Iterator[Segment]:
        """Pieces of at most ``size`` tokens, in order. A shortcut has only a few tokens and stays whole."""
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
        """How many positions the store needs: one for each token of each trunk."""
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
    """The segments of the trunks; tokens that trunks of one prompt share are computed once.

    tapped: with ``taps`` where branches leave the trunk, except in tokens that trunks share.
    """
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
    for i, (tree, first) in enumerate(zip(group.trees, group.first_score, strict=True)):
        places = [(start - 1 - filled[i], first + k) for k, start in enumerate(tree.starts)]
        on_trunk = [place for place, tail in zip(places, tree.tails, strict=True) if not tail]
        taps = [place for place, tail in zip(places, tree.tails, strict=True) if tapped and tail and place[0] >= 0]
        yield Segment(bases[i], filled[i], tree.trunk[filled[i] :], on_trunk, taps=taps)


def branch_segments(group: Group, trees: Sequence[PrefixTree]) -> Iterator[Segment]:
    """The segments of the branches. trees: those of the group, or the same without branches that are not wanted."""
    for base, first, tree in zip(group.bases, group.first_score, trees, strict=True):
        for k, start, ids in tree.branches:
            yield Segment(base, start, ids, [(len(ids) - 1, first + k)])


def shortcut_segments(group: Group, length: int, wanted: Callable[[int], bool]) -> Iterator[Segment]:
    """Shortcuts for the branches whose scores are wanted: their last ``length`` tokens, if branches are much longer.

    All branches end with the same template text, and so does the trunk. A shortcut's tokens see the trunk up to where
    the branch leaves it, and then, in place of the rest of the branch, which is not computed, the tokens at the same
    distance from the trunk's end. These were computed after the whole response, so that they carry text from after the
    boundary: the verdict of a shortcut is not that of its branch, but often close to it. A shortcut writes nothing to
    the slot, so that branches can be computed after it.
    """
    for base, first, tree in zip(group.bases, group.first_score, group.trees, strict=True):
        for k, (start, tail) in enumerate(zip(tree.starts, tree.tails, strict=True)):
            if len(tail) >= _WORTH_IT * length and wanted(first + k):
                ids, end = tail[-length:], start + len(tail)
                yield Segment(base, end - length, ids, [(length - 1, first + k)], lent=(start, len(tree.trunk) - end))


def micro_batches(segments: Iterable[Segment], budget: int, longest: int) -> Iterator[list[Segment]]:
    """Batches of at most ``budget`` tokens. Segments keep their order; those longer than ``longest`` are cut."""
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
    """The indices of ``prompts``, grouped by prompt."""
    rows: dict[int, list[int]] = {}
    for i, prompt in enumerate(prompts):
        rows.setdefault(prompt, []).append(i)
    return list(rows.values())


def _limit(shared: int, trees: Sequence[PrefixTree]) -> int:
    """``shared``, or fewer tokens: each tree's own segment must keep all its verdicts, and at least one token."""
    return min(shared, *(min(tree.first_verdict, len(tree.trunk) - 1) for tree in trees))
