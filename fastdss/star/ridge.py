"""Ridge regression in closed form, with a standard deviation for each prediction.

For standardised features X [n, F] and targets z [n] the weights are ``(X^T X + l I)^-1 X^T z``. They are computed from
the n x n matrix of products, since a language model has many features and the targets are few, by one
eigendecomposition for all penalties l. The standard deviation of a prediction at x is
``s sqrt(1 + x^T (X^T X + l I)^-1 x)`` with the residuals' standard deviation s: it grows far from all that was fitted.

With a = (K + l I)^-1 z and K = X X^T, the fit without the rows B has, with P = (K + l I)^-1,

    a - P_:B P_BB^-1 a_B,    P - P_:B P_BB^-1 P_B:

whose entries for B are zero: what was fitted can be predicted as if it had been left out, without another fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

PENALTIES = tuple(10.0**power for power in range(-3, 5))  # as multiples of the mean eigenvalue


@dataclass(frozen=True)
class Ridge:
    """Predicts targets from features, and the standard deviation of each prediction."""

    mean: Tensor  # [F]
    scale: Tensor  # [F]
    offset: float
    dual: Tensor  # [n]: the weights are seen^T dual
    seen: Tensor  # [n, F] standardised features
    inverse: Tensor  # [n, n] of the penalised products
    penalty: float
    spread: float  # standard deviation of the residuals on rows that were left out

    @classmethod
    def fit(cls, features: Tensor, targets: Tensor, rows: Sequence[int]) -> Ridge:
        """features: [n, F]; targets: [n]; rows: the row that each comes from, so that none is both fitted and tested.

        The penalty is the one that predicts a quarter of the rows best from the others.
        """
        features, targets = features.double(), targets.double()
        order = {row: place for place, row in enumerate(dict.fromkeys(rows))}
        held = torch.tensor([order[row] % 4 == 3 for row in rows])  # every fourth row, to compare penalties on
        mean, scale = features.mean(0), features.std(0).clamp(min=1e-8)
        x = (features - mean) / scale
        offset, centre = targets[~held].mean(), x[~held].mean(0)
        known = x[~held] - centre
        values, vectors = torch.linalg.eigh(known @ known.t())
        rotated = vectors.t() @ (targets[~held] - offset)
        crossed = (x[held] - centre) @ known.t() @ vectors
        unit = values.mean().clamp(min=1e-12)
        errors = [
            (crossed @ (rotated / (values + penalty * unit)) + offset - targets[held]).square().mean()
            for penalty in PENALTIES
        ]
        best = min(range(len(PENALTIES)), key=lambda index: float(errors[index]))
        products = x @ x.t()
        penalty = PENALTIES[best] * float(products.diagonal().mean())
        inverse = torch.linalg.inv(products + penalty * torch.eye(len(x), dtype=x.dtype))
        whole = targets.mean()
        dual = inverse @ (targets - whole)
        return cls(mean, scale, float(whole), dual, x, inverse, penalty, float(errors[best].sqrt()))

    def without(self, members: Tensor) -> Ridge:
        """The fit as it were without these of the n, but for their share in mean, scale, offset, penalty and spread.

        members: ``[n]``, boolean.
        """
        columns = self.inverse[:, members]
        solved = torch.linalg.solve(columns[members], columns.t())  # P_BB^-1 P_B:
        dual = self.dual - solved.t() @ self.dual[members]
        return replace(self, dual=dual, inverse=self.inverse - columns @ solved)

    def predict(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """features: [m, F] -> predictions [m] and their standard deviations [m], float64."""
        x = (features.double() - self.mean) / self.scale
        crossed = x @ self.seen.t()
        # x^T (X^T X + l I)^-1 x, by the matrix of products
        leverage = (x.square().sum(1) - ((crossed @ self.inverse) * crossed).sum(1)) / self.penalty
        return crossed @ self.dual + self.offset, self.spread * torch.sqrt(1 + leverage.clamp(min=0))
