"""Turns the renderings of one response's prefixes into a trunk and branches.

The trunk is the longest rendering. Prefix k shares its first ``starts[k]`` tokens with the trunk and goes on with
``tails[k]``. Where they part is found by comparing tokens. The end of the response in the text would be the wrong
place: a tokenizer may join the response's last characters with the template's next ones (``.`` + ``\\n\\n`` is one
Llama token).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class PrefixTree:
    """``trunk[:starts[k]] + tails[k]`` is the k-th rendering; the guard's verdict is read at its last token."""

    trunk: list[int]
    starts: list[int]
    tails: list[list[int]]
    left_out: frozenset[int] = frozenset()  # prefixes whose branches are not computed

    @property
    def num_prefixes(self) -> int:
        return len(self.starts)

    @property
    def num_tokens(self) -> int:
        """The number of distinct tokens, which a model must compute."""
        return len(self.trunk) + sum(len(ids) for _, _, ids in self.branches)

    @property
    def num_naive_tokens(self) -> int:
        """The number of tokens that one forward per prefix would compute."""
        return sum(self.starts) + sum(map(len, self.tails))

    @cached_property
    def branches(self) -> list[tuple[int, int, list[int]]]:
        """``(k, start, ids)`` for each branch: prefix k needs the tokens ``ids`` at the positions from ``start`` on.

        In this order each branch may overwrite what the ones before it wrote to the slot. Branches that leave the trunk
        later come first. Among branches that leave it at the same place (such as the continuations of one answer) the
        tails are sorted, and a branch needs only the ``ids`` that differ from the tail before it. The last token is
        always among them, because a verdict is read there.
        """
        found: list[tuple[int, int, list[int]]] = []
        before: tuple[int, list[int]] = (-1, [])
        for k in sorted(range(self.num_prefixes), key=lambda k: (-self.starts[k], self.tails[k])):
            start, tail = self.starts[k], self.tails[k]
            if tail and k not in self.left_out:
                shared = shared_length(np.asarray(before[1]), np.asarray(tail)) if start == before[0] else 0
                shared = min(shared, len(tail) - 1)
                found.append((k, start + shared, tail[shared:]))
                before = start, tail
        return found

    @property
    def first_verdict(self) -> int:
        """The first position of the trunk at which a verdict is read; a shared prefix must end before it."""
        ends = [start - 1 for start, tail in zip(self.starts, self.tails, strict=True) if not tail]
        return min(ends, default=len(self.trunk))

    def without(self, left_out: Iterable[int]) -> PrefixTree:
        """The same tree, but without computing the branches of these prefixes."""
        return PrefixTree(self.trunk, self.starts, self.tails, frozenset(left_out))

    def first(self, k: int) -> PrefixTree:
        """The tree of the first ``k`` prefixes."""
        return self if k == self.num_prefixes else build_tree([self.rendering(i) for i in range(k)])

    def rendering(self, k: int) -> list[int]:
        """The tokens of prefix k."""
        return self.trunk[: self.starts[k]] + self.tails[k]


def build_tree(renderings: Sequence[Sequence[int]]) -> PrefixTree:
    """The tree of the token lists of one response's prefixes, in their order."""
    if not renderings or not all(renderings):
        raise ValueError("a prefix tree needs at least one rendering, and none may be empty")
    trunk = max(renderings, key=len)
    trunk_array = np.asarray(trunk)
    starts = [shared_length(trunk_array, np.asarray(ids)) for ids in renderings]
    tails = [list(ids[start:]) for ids, start in zip(renderings, starts, strict=True)]
    return PrefixTree(list(trunk), starts, tails)


def shared_length(a: np.ndarray, b: np.ndarray) -> int:
    """How many leading elements two arrays share."""
    n = min(len(a), len(b))
    differs = a[:n] != b[:n]
    return int(differs.argmax()) if differs.any() else n
