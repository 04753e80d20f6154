"""Courses: what is known about one score says about the others what conditioning a Gaussian says."""

from __future__ import annotations

import pytest
import torch

from fastdss.star.course import Course, Persistence

PERSISTENCE = Persistence(0.8, 5.0, 1.5)
PLACES = torch.tensor([0, 1, 2, 4, 5, 6, 7, 11])


def course(seed: int = 0, spread: float = 1.0) -> tuple[Course, torch.Tensor, torch.Tensor]:
    """A course, with its predictions and their standard deviations."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(len(PLACES), generator=generator, dtype=torch.float64)
    spreads = spread * (0.5 + torch.rand(len(PLACES), generator=generator, dtype=torch.float64))
    return Course(PERSISTENCE, logits, spreads, PLACES), logits, spreads


def covariance(spreads: torch.Tensor) -> torch.Tensor:
    """Written out entry by entry."""
    found = torch.zeros(len(PLACES), len(PLACES), dtype=torch.float64)
    for i, a in enumerate(PLACES.tolist()):
        for j, b in enumerate(PLACES.tolist()):
            shared = 0.8 * torch.exp(torch.tensor(-abs(a - b) / 5.0, dtype=torch.float64)) + (0.2 if i == j else 0.0)
            found[i, j] = 1.5 * spreads[i] * 1.5 * spreads[j] * shared
    return found


@pytest.mark.parametrize("computed", [[3], [5, 0], [7, 2, 4], list(range(8))])
def test_scores_told_one_by_one_are_the_gaussian_given_all_of_them(computed: list[int]) -> None:
    found, logits, spreads = course()
    whole, exact = covariance(spreads), logits + torch.linspace(-1, 2, len(PLACES), dtype=torch.float64)
    for index in computed:
        found.learn(index, float(exact[index]))
    a = torch.tensor(computed)
    gain = whole[:, a] @ torch.linalg.inv(whole[a][:, a])
    expected = logits + gain @ (exact - logits)[a]
    left = (whole - gain @ whole[a]).diagonal().clamp(min=0).sqrt()
    assert torch.allclose(found.logits, expected, atol=1e-8)
    assert torch.equal(found.logits[a], exact[a])
    both = torch.stack([torch.sigmoid(expected + left), torch.sigmoid(expected - left)])
    doubts = (both - torch.sigmoid(expected)).abs().amax(0)
    doubts[a] = 0
    assert torch.allclose(found.doubts(), doubts, atol=1e-6)
    assert found.known.nonzero()[:, 0].tolist() == sorted(computed)


def test_the_most_doubtful_are_asked_for_and_those_beside_them_wait() -> None:
    spreads = torch.tensor([3.5, 1, 1, 1, 1, 4, 1, 1, 1, 3.8])
    flat = Course(Persistence(), torch.zeros(10), spreads, torch.arange(10))
    assert flat.doubtful() == [5, 0]  # 9, the second in doubt, is four from 5; the others have too little of 5's doubt
    flat.learn(5, 1.0)
    assert flat.doubtful() == [9, 0]
    assert not flat.logits[[0, 1, 2, 3, 4, 6, 7, 8, 9]].any()  # without persistence nothing is told about others
    for index in range(10):
        flat.learn(index, 1.0)
    assert flat.doubtful() == []
    assert flat.doubt == 0


def test_a_walk_ends_where_nothing_is_doubtful_and_leaves_the_course_as_it_was() -> None:
    found, logits, _ = course(spread=0.4)
    exact = logits + 0.3
    ends = [found.walked(threshold, exact) for threshold in (1e-6, 0.1, 1.0)]
    assert bool(ends[0].known.all())
    assert torch.equal(ends[0].logits, exact)
    assert 0 < int(ends[1].known.sum()) < len(PLACES)
    assert float(ends[1].doubt) <= 0.1
    assert ends[1].off(exact) < found.off(exact)
    assert not ends[2].known.any()
    assert torch.equal(found.logits, logits)
    assert float(found.off(exact)) == pytest.approx(float((torch.sigmoid(exact) - torch.sigmoid(logits)).abs().max()))


@pytest.mark.parametrize(("share", "reach", "scale"), [(0.9, 15.0, 2.0), (0.5, 2.0, 0.5), (0.0, 5.0, 1.0)])
def test_the_persistence_of_many_errors_is_found(share: float, reach: float, scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    places = torch.arange(40)
    root = torch.linalg.cholesky(Persistence(share, reach).correlation(places))
    errors = [scale * root @ torch.randn(40, generator=generator, dtype=torch.float64) for _ in range(60)]
    found = Persistence.fit([(error, places) for error in errors])
    assert found.share == share
    assert found.reach == reach or share == 0
    assert found.scale == pytest.approx(scale, rel=0.1)
