"""Attention of shortcuts: the last tokens of branches, over their trunk's beginning, its own end, and themselves.

A shortcut sees three runs of keys (``packing.shortcut_segments``): those of the trunk up to where its branch leaves it;
in place of the branch's other tokens those at the trunk's end, ``away`` positions later than they stand for; and its
own. Rotated keys would have to be moved back by ``away``. Products of rotated queries and keys depend on the difference
of their positions only, so the few queries are moved forward by ``away`` instead, and all shortcuts of a trunk read the
same keys:

    softmax([q K[:begin]^T, move(q, away) K[begin + away : end]^T, q k^T]) [V[:begin]; V[begin + away : end]; v]
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import groupby

import torch
from torch import Tensor

from .attention import PrefixPlan, softmax_shares
from .packing import Segment


@dataclass(frozen=True)
class _Sights:
    """What the N tokens of one trunk's shortcuts see of the trunk's first ``shared`` keys, the keys of its slot in
    ``lent``, and their own, C keys in all."""

    shared: int
    lent: slice
    away: Tensor  # [N], of each token's shortcut
    places: Tensor  # [N], positions of the tokens
    stands: Tensor  # [N, C], positions that the keys stand for
    seen: Tensor  # [N, C], whether a token may see a key, but for windows and chunks
    masks: dict[tuple[int | None, int | None], Tensor] = field(default_factory=dict)  # by window and chunk

    @classmethod
    def of(cls, segments: list[Segment], device: torch.device) -> _Sights:
        rows = [
            (number, segment.start + k, *(segment.lent or (0, 0)), segment.start)
            for number, segment in enumerate(segments)
            for k in range(len(segment.ids))
        ]
        owner, places, begin, away, start = torch.tensor(rows, device=device).t()
        shared, lent = int(begin.max()), slice(int((begin + away).min()), int((start + away).max()))
        trunk = torch.arange(shared, device=device).expand(len(rows), -1)
        moved = torch.arange(lent.start, lent.stop, device=device) - away[:, None]
        own = places.expand(len(rows), -1)
        seen = [
            trunk < begin[:, None],
            (moved >= begin[:, None]) & (moved < start[:, None]),
            (owner[:, None] == owner) & (own <= places[:, None]),
        ]
        return cls(shared, lent, away, places, torch.cat([trunk, moved, own], 1), torch.cat(seen, 1))

    def mask(self, window: int | None, chunk: int | None, like: Tensor) -> Tensor:
        """Additive mask ``[N, C]``, made once for all layers with this window and chunk."""
        if (window, chunk) not in self.masks:
            places = self.places[:, None]
            hidden = ~self.seen
            if window is not None:
                hidden = hidden | (places - self.stands >= window)
            if chunk is not None:
                hidden = hidden | (self.stands < places // chunk * chunk)
            mask = torch.zeros_like(hidden, dtype=like.dtype).masked_fill_(hidden, float("-inf"))
            self.masks[window, chunk] = mask
        return self.masks[window, chunk]


def attend_shortcuts(
    plan: PrefixPlan, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float, window: int | None,
    softcap: float | None, chunk: int | None = None, sinks: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """The attention of a micro-batch of shortcuts, see ``attend_in_order`` for the arguments. Nothing is written."""
    assert plan.move is not None
    stored = plan.store.layer(layer, key, value)
    groups = query.shape[1] // key.shape[1]
    exact = torch.promote_types(query.dtype, torch.float32)
    if not plan.sights:
        runs = [list(run) for _, run in groupby(plan.segments, key=lambda segment: segment.base)]
        plan.sights = [(run[0].base, _Sights.of(run, query.device)) for run in runs]
    out, left = query.new_empty(query.shape[2], query.shape[1], value.shape[3]), 0
    for base, sights in plan.sights:
        here = slice(left, left + len(sights.places))
        left = here.stop
        q = query[0, :, here].to(exact)
        keys, values = (
            [rows[:, base : base + sights.shared], rows[:, base:][:, sights.lent], new[0, :, here]]
            for rows, new in zip(stored, (key, value), strict=True)
        )
        grouped = [rows.unflatten(0, (-1, groups)).flatten(1, 2) for rows in (q, plan.move(q, sights.away), q)]
        scores = torch.cat([a @ b.to(exact).transpose(1, 2) for a, b in zip(grouped, keys, strict=True)], 2) * scaling
        mask = sights.mask(window, chunk, scores)
        shares = softmax_shares(scores.unflatten(1, (groups, -1)), mask, softcap, sinks).flatten(1, 2)
        found = shares @ torch.cat(values, 1).to(exact)  # [Hkv, groups * N, dv]
        out[here] = found.unflatten(1, (groups, -1)).flatten(0, 1).transpose(0, 1).to(out.dtype)
    return out[None]
