"""Numbers at the edge of what the types hold, and vocabularies from 5 to 262144."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fastdss import dss_loss, token_logprobs, weighted_ce
from tests.support.loss_cases import KLS, check_values, make_problem, reference_arguments, run, truth
from tests.support.numerics import assert_gradient_close, assert_tokens_close


@pytest.mark.parametrize("v", [1, 2, 5, 32000, 128256, 151936, 262144])
@pytest.mark.parametrize("kl", ["k2", "reverse"])
def test_vocabulary_sizes(v: int, kl: str) -> None:
    """The row pass takes blocks of 4M logits: 18 rows of 262144 are two of them, the second a ragged one."""
    problem = make_problem(18, 16, v, torch.float32)
    actual, expected = run(problem, kl, compact=False, token_stats=True), truth(problem, kl)
    check_values(actual.loss, expected.loss, precision=torch.float32)
    if v > 1:  # one word: every gradient is 0
        assert_gradient_close(actual.d_hidden, expected.d_hidden, precision=torch.float32)
        assert_gradient_close(actual.d_head, expected.d_head, precision=torch.float32)
    else:
        assert actual.d_head.abs().max() < 1e-6


@pytest.mark.parametrize("kl", KLS)
@pytest.mark.parametrize("size", [1.0, 100.0, 10_000.0])
def test_logits_up_to_ten_thousand(kl: str, size: float) -> None:
    """Loss and gradients as in float64. k3 = exp(-d) - 1 + d overflows where the policy lost 88 nats: its reference is
    kept near the policy."""
    problem = make_problem(33, 24, 67, torch.float64)
    top = (problem.hidden @ problem.lm_head.T).abs().max()
    problem = make_problem(33, 24, 67, torch.float32)
    scaled: dict[str, Any] = vars(problem) | {"hidden": problem.hidden * (size / top).float()}
    scaled["ref_hidden"] = scaled["hidden"] * (1 + 1e-3)
    problem = type(problem)(**scaled)
    if kl == "k3":
        near = token_logprobs(problem.ref_hidden, problem.lm_head, problem.labels.clamp(min=0), bias=problem.bias)
        problem = type(problem)(**(vars(problem) | {"ref_logprobs": near}))
    logits = problem.hidden @ problem.lm_head.T
    assert logits.abs().max() == pytest.approx(size, rel=1e-5)
    actual, expected = run(problem, kl), truth(problem, kl)
    # One rounding of a logit of 1e4 is 5e-4 of it: per-token terms carry that, so the rule is relative to the logits.
    slack = max(1.0, size * 2**-23 * 24 / 1e-5)
    assert_tokens_close(
        (actual.loss.token_ce / slack).detach(),
        expected.loss.token_ce / slack,
        precision=torch.float32,
        name="token_ce",
    )
    assert actual.loss.loss.isfinite()
    for field in ("d_hidden", "d_head"):
        gradient, true = getattr(actual, field), getattr(expected, field)
        assert gradient.isfinite().all()
        assert (gradient.double() - true).norm() <= max(1e-5, size * 2e-6) * true.norm()


def test_k3_overflows_loudly() -> None:
    """exp(-d) beyond fp32: the loss says inf. Nothing clips it to a number that looks like a loss."""
    problem = make_problem(9, 6, 11, torch.float32)
    star = torch.zeros(9)
    loss = dss_loss(
        problem.hidden * 1e3,
        problem.lm_head,
        problem.labels,
        star,
        kl="k3",
        ref_logprobs=torch.zeros(9),
        reduction="none",
    )
    assert loss.loss.isinf().any()
    assert not loss.loss.isnan().any()


@pytest.mark.parametrize("kl", KLS)
def test_weights_of_exactly_zero_and_one(kl: str) -> None:
    problem = make_problem(24, 8, 20, torch.float64)
    for star in (torch.zeros(24), torch.ones(24), (torch.arange(24) % 2).float()):
        fixed = type(problem)(**(vars(problem) | {"star": star}))
        actual, expected = run(fixed, kl), truth(fixed, kl)
        assert_tokens_close(actual.loss.token_kl, expected.loss.token_kl, precision=torch.float64)
        assert_gradient_close(actual.d_hidden, expected.d_hidden, precision=torch.float64)
    one = dss_loss(
        problem.hidden, problem.lm_head, problem.labels, torch.ones(24), kl=kl, **reference_arguments(problem, kl)
    )
    plain = weighted_ce(problem.hidden, problem.lm_head, problem.labels)
    assert_tokens_close(one.loss, plain, precision=torch.float64)
    assert torch.equal(one.kl, torch.zeros_like(one.kl))


@pytest.mark.parametrize("kl", KLS)
def test_minus_zero_is_zero(kl: str) -> None:
    """As a weight, and as the log-probability of a reference that is certain: the same bits, rows left out or not."""
    problem = make_problem(24, 8, 20, torch.float32)
    found = []
    for zero in (0.0, -0.0):
        star, certain = problem.star.clone(), problem.ref_logprobs.clone()
        star[::2], certain[::3] = zero, zero
        outcome = run(type(problem)(**(vars(problem) | {"star": star, "ref_logprobs": certain})), kl, token_stats=True)
        found.append([*outcome.loss, outcome.d_hidden, outcome.d_head])
    assert all(torch.equal(plus, minus) for plus, minus in zip(*found, strict=True))


@pytest.mark.parametrize("tiny", [2.0**-149, 2.0**-130, 2.0**-126])
def test_denormal_numbers(tiny: float) -> None:
    """A denormal weight is a weight: its row is computed and its share is not NaN. Denormal states are states."""
    problem = make_problem(9, 6, 11, torch.float32)
    weights = torch.full((9,), tiny)
    loss = weighted_ce(problem.hidden, problem.lm_head, problem.labels, weights, reduction="sum")
    plain = weighted_ce(problem.hidden.double(), problem.lm_head.double(), problem.labels, reduction="sum")
    assert loss.isfinite()
    assert abs(loss.double() - plain * tiny) <= 9 * 2.0**-149 + 1e-5 * tiny * plain
    small = weighted_ce(problem.hidden * tiny, problem.lm_head, problem.labels)
    counts = problem.labels != -100
    assert_tokens_close(small, torch.tensor(11.0).double().log(), precision=torch.float32)
    assert counts.any()


def test_more_logits_than_int32_counts() -> None:
    """N * V > 2**31 with a slab of a few rows: nothing of that size exists, and the last rows are as right as the
    first."""
    n, v = 8200, 262144
    assert n * v > 2**31
    torch.manual_seed(0)
    hidden, head = torch.randn(n, 2), torch.randn(v, 2)
    labels = torch.full((n,), -100)
    some = torch.tensor([0, 1, 4099, n - 2, n - 1])
    labels[some] = torch.tensor([0, 5, v // 2, v - 2, v - 1])
    got = token_logprobs(hidden, head, labels)
    expected = torch.log_softmax(hidden[some].double() @ head.double().T, 1).gather(1, labels[some, None])[:, 0]
    assert_tokens_close(got[some], expected, precision=torch.float32)
    assert got.count_nonzero() == 5
