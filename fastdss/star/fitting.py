"""The rows that a probe is fitted on, and the fit: a ridge on the hidden states that predict other rows best."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .gates import LIMIT, Seen
from .ridge import Ridge

_MOST_FITTED = 1500  # boundaries: the time of a fit grows with their cube, and those of one row are much alike

Rows = list[list[Seen]]  # the judged responses of each row


class Table(NamedTuple):
    """All n boundaries with a branch, of some rows."""

    states: Tensor  # [n, 2 layers, D], see ``Past``
    exact: Tensor  # [n], logits of the scores
    shortcuts: Tensor  # [n], logits of the shortcuts, 0 where there is none
    places: Tensor  # [n], the number of the boundary in its response
    rows: list[int]  # the row that each comes from
    responses: list[tuple[int, slice]]  # for each response, its row and its boundaries


class Fit(NamedTuple):
    """A ridge on the hidden states ``used`` of a table, every ``step``-th of whose boundaries it was fitted on."""

    ridge: Ridge
    used: list[int]
    step: int
    table: Table
    targets: Tensor

    def left_out(self) -> list[tuple[Tensor, Tensor]]:
        """For each response, errors of the predictions by fits without its row, divided by their standard deviations,
        and the numbers of the boundaries."""
        fitted, found = torch.tensor(self.table.rows[:: self.step]), []
        without: dict[int, Ridge] = {}
        for row, own in self.table.responses:
            if row not in without:
                without = {row: self.ridge.without(fitted == row)}
            predicted, spreads = without[row].predict(self.table.states[own][:, self.used].flatten(1))
            found.append(((self.targets[own] - predicted) / spreads, self.table.places[own]))
        return found


def by_row(found: Sequence[Seen]) -> Rows:
    """The responses without failed scores, in groups of one conversation each."""
    rows: dict[int, list[Seen]] = {}
    for seen in found:
        if bool(torch.isfinite(seen.scores).all()):
            rows.setdefault(id(seen.judged.conversation), []).append(seen)
    return list(rows.values())


def exact_logits(seen: Seen) -> Tensor:
    """The logits of the scores that have a branch."""
    return torch.logit(seen.scores[sorted(seen.states)].double(), eps=LIMIT)


def table_of(rows: Rows) -> Table:
    found = [
        (seen.states[k], seen.shortcuts.get(k, 0.0), k, number)
        for number, row in enumerate(rows)
        for seen in row
        for k in sorted(seen.states)
    ]
    responses, begin = [], 0
    for number, seen in ((number, seen) for number, row in enumerate(rows) for seen in row if seen.states):
        responses.append((number, slice(begin, begin + len(seen.states))))
        begin += len(seen.states)
    exact = torch.cat([torch.empty(0).double(), *(exact_logits(seen) for row in rows for seen in row)])
    states, shortcuts, places, origin = zip(*found, strict=True) if found else ((torch.empty(1, 1),), (), (), ())
    return Table(
        torch.stack(states),
        exact,
        torch.tensor(shortcuts, dtype=torch.float32).double(),
        torch.tensor(places),
        list(origin),
        responses,
    )


def best_fit(table: Table, targets: Tensor) -> Fit:
    """By the hidden states that predict held-out rows best, one layer's with their mean or all together."""
    step = -(-len(table.rows) // _MOST_FITTED)
    layers = table.states.shape[1] // 2
    candidates = [*([k, layers + k] for k in range(layers)), list(range(2 * layers))]
    states, rows = table.states[::step], table.rows[::step]
    fits = [
        Fit(Ridge.fit(states[:, used].flatten(1), targets[::step], rows), used, step, table, targets)
        for used in candidates
    ]
    return min(fits, key=lambda fit: fit.ridge.spread)
