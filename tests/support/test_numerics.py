"""The checker must reject what a lenient tolerance lets through."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from .numerics import assert_gradient_close, assert_tokens_close

DTYPES = [torch.float64, torch.float32, torch.bfloat16]


def _problem() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x [N, D], dz [N, V], head [V, D], weights [N]: enough to make the gradients of a weighted loss."""
    torch.manual_seed(0)
    x, head = torch.randn(200, 16).double(), torch.randn(300, 16).double()
    dz = (x @ head.T).softmax(1) / 200
    return x, dz, head, torch.rand(200).double() + 0.1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fault", ["zero", "2x", "1.01x", "row dropped", "last block dropped", "nan"])
def test_a_wrong_gradient_is_rejected(dtype: torch.dtype, fault: str) -> None:
    x, dz, head, weights = _problem()
    truth = (dz * weights[:, None]).T @ x  # [V, D]
    actual = truth.clone()
    if fault == "zero":
        actual.zero_()
    elif fault == "row dropped":
        truth = (dz * weights[:, None]) @ head
        actual = truth.clone()
        actual[17] = 0
    elif fault == "last block dropped":
        actual[-44:] = 0  # a vocabulary of 300 in blocks of 256
    elif fault == "nan":
        actual[3, 5] = torch.nan
    else:
        actual *= float(fault[:-1])
    with pytest.raises(AssertionError, match=r"gradient\["):
        assert_gradient_close(actual.to(dtype), truth, precision=dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_weight_applied_to_the_hidden_gradient_only_is_rejected(dtype: torch.dtype) -> None:
    x, dz, head, weights = _problem()
    weighted = dz * weights[:, None]
    assert_gradient_close((weighted @ head).to(dtype), weighted @ head, precision=dtype)
    with pytest.raises(AssertionError, match="relative Frobenius"):
        assert_gradient_close((dz.T @ x).to(dtype), weighted.T @ x, precision=dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_rounded_truth_is_accepted(dtype: torch.dtype) -> None:
    x, dz, _, _ = _problem()
    truth = dz.T @ x
    assert_gradient_close(truth.to(dtype), truth, precision=dtype, eager=truth.to(dtype))


def test_a_small_row_cannot_hide_behind_a_large_norm() -> None:
    truth = torch.ones(1000, 4).double()
    truth[7] = 1e-4
    actual = truth.clone()
    actual[7] = 0
    with pytest.raises(AssertionError, match=r"gradient\[7\] is missing"):
        assert_gradient_close(actual.float(), truth, precision=torch.float32)
    with pytest.raises(AssertionError, match=r"gradient\[7\] is invented"):
        assert_gradient_close(truth.float(), torch.where(truth < 1, 0, truth), precision=torch.float32)


def test_one_outlier_beyond_eager_is_rejected() -> None:
    _, dz, head, _ = _problem()
    truth = dz @ head
    actual = truth.to(torch.bfloat16)
    actual[4, 9] += truth.abs().max() * 0.006
    with pytest.raises(AssertionError, match=r"gradient\[4, 9\]"):
        assert_gradient_close(actual, truth, precision=torch.bfloat16, eager=truth.to(torch.bfloat16))


@pytest.mark.parametrize(("factor", "accepted"), [(1 + 1e-6, True), (1.0001, False), (1.01, False), (0.0, False)])
def test_tokens(factor: float, accepted: bool) -> None:
    truth = torch.linspace(0.5, 20, 50).double()
    if accepted:
        assert_tokens_close(truth * factor, truth, precision=torch.float32)
        return
    with pytest.raises(AssertionError, match=r"tokens\[49\] = .*expected 20"):
        assert_tokens_close(truth * factor, truth, precision=torch.float32)


def test_an_absolute_error_on_a_zero_is_bounded() -> None:
    with pytest.raises(AssertionError, match=r"tokens\[0\]"):
        assert_tokens_close(torch.full((1,), 1e-4), torch.zeros(1).double(), precision=torch.float32)


def test_shapes_and_dtypes_are_compared() -> None:
    with pytest.raises(AssertionError, match="shape"):
        assert_gradient_close(torch.zeros(2, 3), torch.zeros(3, 2).double(), precision=torch.float32)
    with pytest.raises(TypeError, match="float64"):
        assert_tokens_close(torch.zeros(2), torch.zeros(2), precision=torch.float32)
