"""Values and every gradient against float64, each option alone and all of them together."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from fastdss import dss_loss, token_logprobs, weighted_ce
from fastdss.loss import chunked
from tests.support.loss_cases import (
    KLS,
    SHAPES,
    Outcome,
    check_ruled_out_where_the_kl_does_not_count,
    check_values,
    make_problem,
    run,
    truth,
)
from tests.support.numerics import CAST_MARGIN, assert_gradient_close, assert_tokens_close

ALL = {"label_smoothing": 0.1, "z_loss": 1e-3, "softcap": 8.0, "logit_scale": 0.7}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "label_smoothing": {"label_smoothing": 0.1},
    "z_loss": {"z_loss": 1e-3},
    "softcap": {"softcap": 8.0},
    "logit_scale": {"logit_scale": 0.7},
    "reference differs": {"logit_scale": 0.7, "ref_logit_scale": 1.3, "ref_softcap": 5.0},
    "all": ALL,
}


def check(actual: Outcome, expected: Outcome, precision: torch.dtype) -> None:
    check_values(actual.loss, expected.loss, precision=precision)
    for field in ("d_hidden", "d_head", "d_bias"):
        assert_gradient_close(getattr(actual, field), getattr(expected, field), precision=precision, name=field)


@pytest.mark.parametrize("kl", KLS)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])
def test_dss_loss(kl: str, options: dict[str, Any], dtype: torch.dtype) -> None:
    problem = make_problem(33, 48, 130, dtype)
    check(run(problem, kl, **options), truth(problem, kl, **options), dtype)


@pytest.mark.parametrize("kl", KLS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes_and_chunks(kl: str, shape: tuple[int, int, int]) -> None:
    problem = make_problem(*shape, torch.float32)
    expected = truth(problem, kl, **ALL)
    check(run(problem, kl, **ALL), expected, torch.float32)
    check(run(problem, kl, chunk_bytes=4 * 4 * 2 * shape[2], **ALL), expected, torch.float32)


@pytest.mark.parametrize("kl", KLS)
def test_reductions_and_upstream_gradients(kl: str) -> None:
    problem = make_problem(33, 48, 130, torch.float32)
    upstream = torch.randn(33)
    check(
        run(problem, kl, upstream, reduction="none", **ALL),
        truth(problem, kl, upstream=upstream, reduction="none", **ALL),
        torch.float32,
    )
    check(run(problem, kl, reduction="sum"), truth(problem, kl, reduction="sum"), torch.float32)
    expected = truth(problem, kl, num_items_in_batch=17)
    check(run(problem, kl, num_items_in_batch=17), expected, torch.float32)
    check(run(problem, kl, num_items_in_batch=torch.tensor(17)), expected, torch.float32)
    scaled = truth(problem, kl, upstream=torch.tensor(-3.5))
    check(run(problem, kl, torch.tensor(-3.5)), scaled, torch.float32)


@pytest.mark.parametrize("kl", ["k2", "reverse"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_sixteen_bit_inputs_keep_full_precision_tokens(kl: str, dtype: torch.dtype) -> None:
    problem = make_problem(60, 64, 500, dtype)
    actual, expected = run(problem, kl, token_stats=True), truth(problem, kl)
    assert {value.dtype for value in actual.loss[:-1]} == {torch.float32}
    check_values(actual.loss, expected.loss, precision=dtype)
    # The CPU's 16-bit GEMM rounds dX once more than the final cast: sqrt(2) times the error of a cast, and dZ's share.
    for field, margin in (("d_hidden", 1.6), ("d_head", CAST_MARGIN), ("d_bias", CAST_MARGIN)):
        got, true = getattr(actual, field), getattr(expected, field)
        assert got.dtype == dtype
        assert_gradient_close(got, true, precision=dtype, name=field, cast_margin=margin)


def test_sixteen_bit_gradients_err_less_than_eager() -> None:
    p = make_problem(60, 64, 500, torch.bfloat16)
    leaves = [t.clone().requires_grad_() for t in (p.hidden, p.lm_head)]
    true = [t.double().requires_grad_() for t in (p.hidden, p.lm_head)]
    weighted_ce(*leaves, p.labels).backward()
    cross_entropy(true[0] @ true[1].T, p.labels).backward()
    eager = [t.clone().requires_grad_() for t in (p.hidden, p.lm_head)]
    cross_entropy((eager[0] @ eager[1].T).float(), p.labels).backward()
    for ours, theirs, exact in zip(leaves, eager, true, strict=True):
        errors = [(t.grad.double() - exact.grad).norm() for t in (ours, theirs)]
        assert errors[0] < errors[1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("kl", ["k2", "reverse"])
def test_sixteen_bit_dz_as_on_a_gpu(kl: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """dZ rounded to 16 bit, products summed in fp32: only the entry of the label, kept exactly, makes 1.25 possible."""
    monkeypatch.setattr(chunked, "_gradient_dtype", lambda call, accumulate: call.compute_dtype)
    problem = make_problem(60, 64, 500, dtype)
    actual, expected = run(problem, kl), truth(problem, kl)
    for field in ("d_hidden", "d_head", "d_bias"):
        assert_gradient_close(getattr(actual, field), getattr(expected, field), precision=dtype, name=field)


@pytest.mark.parametrize("kl", KLS)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_gradcheck(kl: str, reduction: str) -> None:
    p = make_problem(7, 3, 5, torch.float64)
    star = p.star.double()
    reference = {"ref_hidden": p.ref_hidden, "ref_lm_head": p.ref_lm_head}

    def loss(*leaves: torch.Tensor) -> torch.Tensor:
        return dss_loss(
            leaves[0], leaves[1], p.labels, star, bias=leaves[2], kl=kl, reduction=reduction, **reference, **ALL
        ).loss

    leaves = [t.clone().requires_grad_() for t in (p.hidden, p.lm_head, p.bias)]
    assert torch.autograd.gradcheck(loss, leaves, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("kl", ["k1", "k2", "k3"])
def test_label_forms_take_the_reference_as_hidden_states_too(kl: str) -> None:
    p = make_problem(33, 48, 130, torch.float32)
    logprobs = token_logprobs(p.ref_hidden, p.ref_lm_head, p.labels, logit_scale=0.7, softcap=8.0)
    options = {"kl": kl, "logit_scale": 0.7, "softcap": 8.0}
    given = dss_loss(p.hidden, p.lm_head, p.labels, p.star, ref_logprobs=logprobs, **options)
    made = dss_loss(
        p.hidden, p.lm_head, p.labels, p.star, ref_hidden=p.ref_hidden, ref_lm_head=p.ref_lm_head, **options
    )
    assert_tokens_close(made.token_kl, given.token_kl.double(), precision=torch.float32)


def test_reference_of_another_width() -> None:
    p, wide = make_problem(20, 16, 50, torch.float64), make_problem(20, 40, 50, torch.float64)
    loss = dss_loss(
        p.hidden, p.lm_head, p.labels, p.star, kl="forward", ref_hidden=wide.hidden, ref_lm_head=wide.lm_head
    )
    log_p, log_q = (torch.log_softmax(t.hidden @ t.lm_head.T, 1) for t in (p, wide))
    kl = (log_q.exp() * (log_q - log_p)).sum(1)
    matters = (p.labels != -100) & (p.star < 1)
    assert_tokens_close(loss.token_kl, torch.where(matters, kl, 0), precision=torch.float64)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_weighted_ce_with_weight_one_is_cross_entropy(smoothing: float) -> None:
    p = make_problem(33, 48, 130, torch.float64)
    ours, theirs = (t.clone().requires_grad_() for t in (p.lm_head, p.lm_head))
    loss = weighted_ce(p.hidden, ours, p.labels, label_smoothing=smoothing)
    expected = cross_entropy(p.hidden @ theirs.T, p.labels, label_smoothing=smoothing)
    loss.backward()
    expected.backward()
    assert_tokens_close(loss.detach(), expected.detach(), precision=torch.float64)
    assert_gradient_close(ours.grad, theirs.grad, precision=torch.float64)


def test_token_logprobs_and_their_gradient() -> None:
    p = make_problem(33, 48, 130, torch.float64)
    ours, theirs = (t.clone().requires_grad_() for t in (p.lm_head, p.lm_head))
    logp = token_logprobs(p.hidden, ours, p.labels, bias=p.bias, softcap=8.0, logit_scale=0.7)
    logits = 8 * torch.tanh(0.7 * (p.hidden @ theirs.T + p.bias) / 8)
    counts = p.labels != -100
    expected = torch.log_softmax(logits, 1).gather(1, p.labels.clamp(min=0)[:, None])[:, 0] * counts
    upstream = torch.randn(33).double()
    logp.backward(upstream)
    expected.backward(upstream)
    assert_tokens_close(logp.detach(), expected.detach(), precision=torch.float64)
    assert_gradient_close(ours.grad, theirs.grad, precision=torch.float64)


def test_logits_of_ten_thousand_stay_finite() -> None:
    p = make_problem(17, 24, 67, torch.float32)
    hidden = p.hidden * 1e4
    loss = dss_loss(hidden.requires_grad_(), p.lm_head, p.labels, p.star, ref_logprobs=p.ref_logprobs)
    loss.loss.backward()
    assert loss.loss.isfinite()
    assert hidden.grad.isfinite().all()
    log_p = torch.log_softmax(hidden.detach().double() @ p.lm_head.double().T, 1)
    nll = -log_p.gather(1, p.labels.clamp(min=0)[:, None])[:, 0] * (p.labels != -100)
    assert_tokens_close(loss.token_ce, nll, precision=torch.float32)


def test_an_impossible_token_costs_nothing() -> None:
    """A bias of -inf takes a token out of the vocabulary, on both sides."""
    p = make_problem(17, 24, 67, torch.float64)
    labels = p.labels.masked_fill(p.labels == 66, 0)
    bias = torch.zeros(67).double()
    bias[66] = -torch.inf
    for kl in ("reverse", "forward"):
        head = p.lm_head.clone().requires_grad_()
        full = dss_loss(p.hidden, head, labels, p.star, kl=kl, bias=bias, ref_bias=bias, ref_hidden=p.ref_hidden,
                        ref_lm_head=p.ref_lm_head)  # fmt: skip
        short = dss_loss(p.hidden, head[:66], labels, p.star, kl=kl, ref_hidden=p.ref_hidden,
                         ref_lm_head=p.ref_lm_head[:66])  # fmt: skip
        got, expected = (torch.autograd.grad(x.loss, head)[0] for x in (full, short))
        assert_tokens_close(full.token_kl, short.token_kl, precision=torch.float64)
        assert_gradient_close(got, expected, precision=torch.float64)


@pytest.mark.parametrize("compact", [True, False])
def test_a_reference_may_rule_out_tokens_where_the_kl_does_not_count(compact: bool) -> None:
    check_ruled_out_where_the_kl_does_not_count(compact=compact)
