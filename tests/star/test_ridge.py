"""Ridge in closed form is what the normal equations give, and its doubt grows away from what was seen."""

from __future__ import annotations

import pytest
import torch

from fastdss.star.ridge import PENALTIES, Ridge


def problem(rows: int = 40, per_row: int = 5, features: int = 12, noise: float = 0.1, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows * per_row, features, generator=generator, dtype=torch.float64) * 3 + 1
    z = x @ torch.randn(features, generator=generator, dtype=torch.float64) - 2
    z = z + noise * torch.randn(len(z), generator=generator, dtype=torch.float64)
    return x, z, [row for row in range(rows) for _ in range(per_row)]


@pytest.mark.parametrize("features", [12, 400])
def test_weights_are_those_of_the_normal_equations(features: int) -> None:
    x, z, rows = problem(features=features)
    ridge = Ridge.fit(x, z, rows)
    unit = (x - x.mean(0)) / x.std(0)
    eye = torch.eye(features, dtype=torch.float64)
    normal = torch.linalg.inv(unit.T @ unit + ridge.penalty * eye)
    weights = normal @ (unit.T @ (z - z.mean()))
    assert torch.allclose(ridge.seen.T @ ridge.dual, weights, atol=1e-8)
    new = torch.randn(7, features, dtype=torch.float64) * 4
    at = (new - x.mean(0)) / x.std(0)
    predicted, doubt = ridge.predict(new)
    assert torch.allclose(predicted, at @ weights + z.mean(), atol=1e-8)
    expected = ridge.spread * torch.sqrt(1 + ((at @ normal) * at).sum(1))
    assert torch.allclose(doubt, expected, atol=1e-8)


def test_the_penalty_is_the_one_that_predicts_other_rows_best() -> None:
    x, z, rows = problem(noise=20.0, features=100)
    exact, _, _ = problem(noise=0.0, features=100)
    strong = Ridge.fit(x, z, rows).penalty
    weak = Ridge.fit(exact, exact @ torch.ones(100, dtype=torch.float64), rows).penalty
    assert strong > 10 * weak
    assert PENALTIES[0] < PENALTIES[-1]


def test_doubt_grows_away_from_what_was_seen() -> None:
    x, z, rows = problem()
    ridge = Ridge.fit(x, z, rows)
    _, near = ridge.predict(x[:1])
    _, far = ridge.predict(x[:1] * 100)
    assert far > 3 * near
    assert ridge.spread == pytest.approx(0.1, rel=0.5)


@pytest.mark.parametrize("features", [12, 400])
def test_without_some_rows_it_is_the_fit_of_the_others(features: int) -> None:
    """The others' own normal equations, with the mean, scale, offset, penalty and spread of all."""
    x, z, rows = problem(features=features)
    ridge = Ridge.fit(x, z, rows)
    left = torch.tensor(rows) == 3
    unit = ((x - x.mean(0)) / x.std(0))[~left]
    normal = torch.linalg.inv(unit.T @ unit + ridge.penalty * torch.eye(features, dtype=torch.float64))
    weights = normal @ (unit.T @ (z[~left] - z.mean()))
    at = (x[left] - x.mean(0)) / x.std(0)
    predicted, doubt = ridge.without(left).predict(x[left])
    assert torch.allclose(predicted, at @ weights + z.mean(), atol=1e-7)
    assert torch.allclose(doubt, ridge.spread * torch.sqrt(1 + ((at @ normal) * at).sum(1)), atol=1e-7)
    assert not torch.allclose(predicted, ridge.predict(x[left])[0], atol=1e-4)
