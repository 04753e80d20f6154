"""Computes a group of trees in rounds: trunks, shortcuts, and branches as long as a gate asks for more."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from .attention import KVStore
from .packing import Group, Segment, branch_segments, trunk_segments

# Computes segments -> logits [n, R] in parts, and the indices of their n scores.
Run = Callable[[Iterable[Segment]], tuple[list[Tensor], list[int]]]


class Gate(Protocol):
    """Decides which branches are computed, from the hidden states where they leave their trunks.

    Where memory runs out a group begins anew, with ``read``.

    ``shortcut``: how many of the last tokens of a branch its shortcut has (see ``shortcut_segments``); 0: there are no
    shortcuts.
    """

    shortcut: int

    def read(self, scores: list[int], states: Tensor) -> None:
        """Take the hidden states for these scores: ``[layers + 1, len(scores), D]`` float32, on the CPU."""

    def wants(self, score: int) -> bool:
        """Whether to compute the shortcut of this score; asked after ``read``."""

    def hear(self, scores: list[int], logits: Tensor) -> None:
        """Take the logits of shortcuts for these scores: ``[len(scores), R]``, on the CPU."""

    def asks(self, left: Collection[int]) -> Collection[int]:
        """Those of these scores whose branches are computed next; none: what is left is not computed."""

    def told(self, scores: list[int], logits: Tensor) -> None:
        """Take the logits of branches for these scores: ``[len(scores), R]``, on the CPU."""


def run_rounds(run: Run, group: Group, head: int, store: KVStore, gate: Gate, listen: Callable[[], None]) -> None:
    """Compute a group whose slots in ``store`` hold their first ``head`` tokens. listen: computes the shortcuts."""
    run(trunk_segments(group, head, tapped=True))
    listen()
    left = {
        first + k
        for first, tree in zip(group.first_score, group.trees, strict=True)
        for k, tail in enumerate(tree.tails)
        if tail
    }
    wanted = set(gate.asks(left))
    while wanted:
        left -= wanted
        trees = [
            tree.without(k for k in range(tree.num_prefixes) if first + k not in wanted)
            for tree, first in zip(group.trees, group.first_score, strict=True)
        ]
        # Branches are written over the trunk's tokens after them, which branches of later rounds may see.
        trunks = [
            (base + min(start for _, start, _ in tree.branches), base + len(tree.trunk))
            for base, tree in zip(group.bases, trees, strict=True)
            if tree.branches
        ]
        kept = [(begin, store.part(begin, end)) for begin, end in trunks]
        rows, order = run(branch_segments(group, trees))
        gate.told(order, fetch(rows))
        wanted = set(gate.asks(left)) if left else set()
        for begin, part in kept if wanted else ():
            store.load(part, [begin])


def fetch(parts: Sequence[Tensor]) -> Tensor:
    """``[sum of rows, R]`` on the CPU, at least fp32. Without a gate this is the only place where the host waits."""
    found = torch.cat(list(parts)).cpu()
    return found.to(torch.promote_types(found.dtype, torch.float32))
