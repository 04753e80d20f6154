"""The whole fit on simulated guards whose errors are known: it keeps its promise as often as it says, and is useful."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastdss import Promise, ScoringOptions, TrunkProbe
from fastdss.chat.conversation import plain
from fastdss.star.gates import Gating, Reading, Seen, no_verdict
from fastdss.star.promise import Audit
from fastdss.star.scoring import Judged

PROMISE = Promise(tolerance=0.1, at_most=0.1, confidence=0.9)
SAMPLED, BOUNDARIES, FEATURES = 66, 4, 30  # a third of the rows, fitted, have hardly more scores than features
JUDGED = [Judged(plain([{"role": "assistant", "content": str(k)}]), 0, k, k) for k in range(SAMPLED)]


def simulated(generator: torch.Generator, rows: int, noise: float, drift: float = 0.0) -> tuple[Tensor, Tensor]:
    """Hidden states with their means ``[rows, K, 2, F]``, scores ``[rows, K]``: a trunk that knows them but for noise.

    Rows differ in how noisy they are, and one in eight is far noisier: scores of one row are not independent.
    """
    states = torch.randn(rows, BOUNDARIES, 1, FEATURES, generator=generator)
    loud = torch.where(torch.rand(rows, 1, generator=generator) < 0.125, 6.0, 1.0)
    own = torch.randn(rows, 1, generator=generator) + 0.5 * torch.randn(rows, BOUNDARIES, generator=generator)
    scores = torch.sigmoid(3 * states[..., 0, 0] - 2 * states[..., 0, 1] + noise * loud * own + drift)
    means = states.cumsum(1) / torch.arange(1, BOUNDARIES + 1)[:, None, None]
    return torch.cat([states, means], 2), scores


def learnt(generator: torch.Generator, noise: float) -> TrunkProbe:
    reading = Reading()
    reading.layers = (1,)
    states, scores = simulated(generator, SAMPLED, noise)
    reading.seen = [Seen(JUDGED[k], scores[k], dict(enumerate(states[k]))) for k in range(SAMPLED)]
    return TrunkProbe.learn(reading, promise=PROMISE, options=ScoringOptions())


def wrong_rows(probe: TrunkProbe, states: Tensor, scores: Tensor) -> Tensor:
    """Which rows have an approximated score that is off."""
    threshold = probe.certificate.threshold
    if threshold is None:
        return torch.zeros(len(scores), dtype=torch.bool)
    exact = torch.logit(scores.double())
    ends = [
        probe.course(range(BOUNDARIES), list(row), torch.zeros(BOUNDARIES)).walked(threshold, z)
        for row, z in zip(states, exact, strict=True)
    ]
    return torch.tensor([end.off(z) > PROMISE.tolerance for end, z in zip(ends, exact, strict=True)])


@pytest.mark.parametrize(
    ("noise", "repetitions", "useful"),
    [
        pytest.param(0.3, 150, 45, marks=pytest.mark.long),
        pytest.param(0.05, 1000, 900, marks=pytest.mark.slow),
        pytest.param(0.3, 1000, 300, marks=pytest.mark.slow),
        pytest.param(3.0, 1000, 0, marks=pytest.mark.slow),
    ],
)
@pytest.mark.timeout(3000)
def test_the_promise_holds_in_its_share_of_the_repetitions(noise: float, repetitions: int, useful: int) -> None:
    generator = torch.Generator().manual_seed(0)
    kept = certified = 0
    for _ in range(repetitions):
        probe = learnt(generator, noise)
        certified += probe.certificate.threshold is not None
        kept += float(wrong_rows(probe, *simulated(generator, 300, noise)).float().mean()) <= PROMISE.at_most
    # the 300 rows that the share is counted on blur it by 1.7 %, whose effects cancel where it is near the promise;
    # draws of a true share of 90 % lie above this share with a probability of 99 %
    assert kept >= 0.9 * repetitions - 2.33 * (0.09 * repetitions) ** 0.5
    assert certified >= useful


@pytest.mark.long
def test_drift_is_found_by_the_audit_and_steady_rows_are_not_accused() -> None:
    """Rows come after the fit, all of them audited as a share of very many would be."""
    generator = torch.Generator().manual_seed(1)
    accused = found = 0
    for _ in range(60):
        probe = learnt(generator, 0.05)
        assert probe.certificate.threshold is not None
        for drift in (0.0, 2.0):
            audit = Audit(PROMISE)
            for _ in range(4):
                states, scores = simulated(generator, SAMPLED, 0.05, drift)
                kept, whole = [BOUNDARIES] * SAMPLED, [True] * SAMPLED
                threshold, tolerance = probe.certificate.threshold, PROMISE.tolerance
                gate = Gating(probe, threshold, tolerance, JUDGED, whole, kept, audit, no_verdict)
                layers = torch.zeros(2, SAMPLED * BOUNDARIES, FEATURES)
                layers[1] = states[:, :, 0].flatten(0, 1)
                gate.read(list(range(SAMPLED * BOUNDARIES)), layers)
                gate.settle(scores.flatten())
            accused += audit.disagrees and not drift
            found += audit.disagrees and bool(drift)
    assert found >= 59
    assert accused <= 12  # one in ten at most, and what sixty draws of it may show
