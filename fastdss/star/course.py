"""The scores along one response: predicted at first, then corrected by those among them that are computed.

What predictions are off by hardly changes from a boundary to the next, so that one computed score tells about those
around it. Errors of predicted logits are taken for a Gaussian process along the response,

    cov(e_i, e_j) = s_i s_j (share exp(-|i - j| / reach) + (1 - share) [i = j])

with the standard deviations s of the predictions. Given the error at k, the others have

    mean_i += C_ik / C_kk (e_k - mean_k),    C_ij -= C_ik C_kj / C_kk

(kriging, one score at a time). Share and reach are those under which errors that were seen are likeliest. Should they
be wrong, only more scores are computed than need be, or the promise cannot be shown: it does not rest on them.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

SHARES = (0.0, 0.5, 0.8, 0.9, 0.95)
REACHES = (2.0, 5.0, 15.0, 50.0)  # boundaries
# Scores that are computed in one round stand further apart than _APART, since each may settle those beside it, and have
# at least this part of the largest doubt. A choice: with less of both more are computed than need be, with more there
# are more rounds.
_APART, _PART = 4, 0.8
_NONE = 1e-12  # less doubt than this is none


@dataclass(frozen=True)
class Persistence:
    """How errors of predicted logits persist along a response."""

    share: float = 0.0
    reach: float = 1.0
    scale: float = 1.0  # by which the errors are larger than the predictions' own standard deviations say

    @classmethod
    def fit(cls, seen: Sequence[tuple[Tensor, Tensor]]) -> Persistence:
        """seen: for each response, errors divided by their standard deviations ``[K]``, and the numbers of the
        boundaries ``[K]``. The likeliest of a few shares and reaches, each with its own likeliest scale."""
        fits = [cls._scaled(share, reach, seen) for share, reach in product(SHARES, REACHES)]
        return min(fits, key=lambda fit: fit[0])[1]

    @classmethod
    def _scaled(cls, share: float, reach: float, seen: Sequence[tuple[Tensor, Tensor]]) -> tuple[float, Persistence]:
        """Minus the log-likelihood of an error, but for a constant, and the model with the likeliest scale."""
        model, squares, logs, count = cls(share, reach), 0.0, 0.0, 0
        for errors, places in seen:
            root = torch.linalg.cholesky(model.correlation(places))
            squares += float(torch.linalg.solve_triangular(root, errors[:, None], upper=False).square().sum())
            logs += float(root.diagonal().log().sum())
            count += len(errors)
        scale = math.sqrt(max(squares / count, 1e-12))
        return math.log(scale) + logs / count, cls(share, reach, scale)

    def correlation(self, places: Tensor) -> Tensor:
        """``[K, K]``"""
        apart = (places[:, None] - places).abs().double()
        return self.share * torch.exp(-apart / self.reach) + (1 - self.share) * (apart == 0)


class Course:
    """Logits of P(safe) along one response, and how doubtful those are that were not computed.

    Attributes:
        logits: ``[K]``, predicted or computed.
        known: ``[K]``, which were computed.
    """

    def __init__(self, persistence: Persistence, logits: Tensor, spreads: Tensor, places: Tensor) -> None:
        """logits, spreads: ``[K]``, predictions and their standard deviations; places: ``[K]``, boundary numbers."""
        spreads = persistence.scale * spreads
        self.logits = logits.clone()
        self.known = torch.zeros(len(logits), dtype=torch.bool)
        self._covariance = spreads[:, None] * persistence.correlation(places) * spreads

    @property
    def values(self) -> Tensor:
        """P(safe) ``[K]``."""
        return torch.sigmoid(self.logits)

    def off(self, exact: Tensor) -> float:
        """How far P(safe) is at most from that of the exact logits ``[K]``."""
        return float((self.values - torch.sigmoid(exact)).abs().max())

    def doubts(self) -> Tensor:
        """``[K]``: how far one standard deviation of the logit moves P(safe); 0 where it was computed."""
        spreads, size = self._covariance.diagonal().clamp(min=0).sqrt(), self.logits.abs()
        doubts = torch.sigmoid(size) - torch.sigmoid(size - spreads)  # towards one half it moves furthest
        return doubts.masked_fill(self.known, 0).nan_to_num(nan=math.inf)  # what cannot be predicted is computed

    def learn(self, index: int, logit: float) -> None:
        """Take the computed logit of one score, and correct the others by it. One that is not finite tells nothing."""
        error = logit - float(self.logits[index])
        if math.isfinite(error):
            column = self._covariance[:, index].masked_fill(self.known, 0)  # what is known stays, without rounding
            self.logits += column * (error / column[index])
            self._covariance -= column[:, None] * (column / column[index])
        self.known[index] = True
        self.logits[index] = logit  # without rounding

    @property
    def doubt(self) -> float:
        """The largest doubt."""
        return float(self.doubts().amax()) if len(self.known) else 0.0

    def doubtful(self) -> list[int]:
        """Which scores to compute in the next round. It is for the caller to stop when ``doubt`` is small enough."""
        doubts, found = self.doubts(), list[int]()
        order = doubts.argsort(descending=True, stable=True).tolist() if len(doubts) else []
        values = doubts.tolist()
        for index in order:
            if values[index] < max(_PART * values[order[0]], _NONE):
                break
            if all(abs(index - other) > _APART for other in found):
                found.append(index)
        return found

    def steps(self, exact: Tensor) -> Iterator[Course]:
        """This course before anything is computed, after the first round, and so on until nothing is doubtful, given
        the exact logits ``[K]``. It is one object, which each step changes."""
        walked = copy.copy(self)
        walked.logits, walked.known, walked._covariance = (
            part.clone() for part in (self.logits, self.known, self._covariance)
        )
        yield walked
        while doubtful := walked.doubtful():
            for index in doubtful:
                walked.learn(index, float(exact[index]))
            yield walked

    def walked(self, threshold: float, exact: Tensor) -> Course:
        """The course when no doubt is larger than ``threshold``, given the exact logits ``[K]``."""
        return next(step for step in self.steps(exact) if step.doubt <= threshold)
