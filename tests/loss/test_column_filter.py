"""grad_tol: what it leaves out and promises, what it puts back, and that everything else stays as it was."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdss import dss_loss, weighted_ce
from fastdss.loss import column_filter
from fastdss.loss.column_filter import ColumnFilter, Entries
from fastdss.loss.row_gradient import RowGradient
from tests.support.loss_cases import KLS, Problem, make_problem, run, truth
from tests.support.numerics import assert_gradient_close

from .combinations import check, covering_cases

TOLERANCE = 2**-9
WORDS, RARE = 40, 472  # of a vocabulary of 512


def spoken(n: int = 70, dtype: torch.dtype = torch.float64) -> Problem:
    """A model that finds most of its vocabulary impossible, and those words much alike, as trained ones do."""
    p = make_problem(n, 24, WORDS + RARE, torch.float64)
    labels = p.labels.where(p.labels < 0, p.labels % WORDS)
    for hidden, head in ((p.hidden, p.lm_head), (p.ref_hidden, p.ref_lm_head)):
        head[WORDS:] = head[WORDS] + 0.2 * head[WORDS:]
        hidden[:, 0], head[:WORDS, 0], head[WORDS:, 0] = 1, 0, -9
    logprobs = torch.log_softmax(p.ref_hidden @ p.ref_lm_head.T, 1).gather(1, labels.clamp(min=0)[:, None])[:, 0]
    p = replace(p, labels=labels, ref_logprobs=logprobs)
    return replace(p, **{k: v.to(dtype) for k, v in vars(p).items() if v.dtype == torch.float64})


def error(got: Tensor, true: Tensor) -> float:
    return float((got.double() - true).norm() / true.norm())


@pytest.mark.parametrize("kl", ["k2", "reverse"])
@pytest.mark.parametrize("size", [1e-13, 1e-20, 1e-30])
def test_the_promise_where_squares_vanish(kl: str, size: float) -> None:
    """fp32 has no square of a gradient below 1e-19. What cannot be measured is not left out."""
    p = spoken(dtype=torch.float32)
    hidden, head = (p.hidden @ p.lm_head.T).requires_grad_(), torch.eye(WORDS + RARE)
    reference = {"ref_logprobs": p.ref_logprobs}
    if kl == "reverse":
        reference = {"ref_hidden": p.ref_hidden @ p.ref_lm_head.T, "ref_lm_head": head}

    def gradient(size: float, tolerance: float | None) -> Tensor:
        options: dict[str, Any] = {"kl": kl, "reduction": "none", "grad_tol": tolerance, **reference}
        loss = dss_loss(hidden, head, p.labels, p.star, **options).loss
        return torch.autograd.grad(loss, hidden, torch.full((70,), size))[0] / size

    assert error(gradient(size, TOLERANCE), gradient(1.0, None).double()) <= TOLERANCE * 1.01


def test_a_small_factor_of_large_exponentials_is_not_squared_alone() -> None:
    """A kernel's offset leaves E up to 2**60 and v down to 2**-60 of the weight, whose square fp32 does not have."""
    torch.manual_seed(0)
    matrix, row = torch.rand(32, 64), torch.full((32,), 1e-4)
    matrix[3], row[3] = matrix[3] * 2.0**60, row[3] * 2.0**-60
    true = (matrix.double() * row.double()[:, None]).square().sum(0)
    assert error(Entries(matrix, row, None).energies(), true) < 1e-5


@pytest.mark.parametrize("chunk_bytes", [None, 8 * 512 * 16])
@pytest.mark.parametrize("tolerance", [2.0**-6, 2.0**-9, 2.0**-14])
@pytest.mark.parametrize("kl", KLS)
def test_the_promise(kl: str, tolerance: float, chunk_bytes: int | None) -> None:
    """With the identity for a head dX is dZ itself: what is missing of it is within the tolerance, and not nothing."""
    p = spoken()
    p = replace(p, hidden=p.hidden @ p.lm_head.T, lm_head=torch.eye(WORDS + RARE).double(),
                ref_hidden=p.ref_hidden @ p.ref_lm_head.T, ref_lm_head=torch.eye(WORDS + RARE).double())  # fmt: skip
    true, filtered = truth(p, kl), run(p, kl, grad_tol=tolerance, chunk_bytes=chunk_bytes)
    assert 0 < error(filtered.d_hidden, true.d_hidden) <= tolerance * (1 + 1e-9)


def test_the_promise_counts_each_row_as_its_weight_does() -> None:
    """A tenth of the rows carry the gradient; what the others' columns hold must not be taken for it."""
    p = spoken()
    hidden = (p.hidden @ p.lm_head.T).requires_grad_()
    head, weights = torch.eye(WORDS + RARE).double(), torch.where(torch.arange(70) % 10 == 0, 1e3, 1e-3).double()
    exact, filtered = (
        torch.autograd.grad(weighted_ce(hidden, head, p.labels, weights, grad_tol=tolerance), hidden)[0]
        for tolerance in (None, TOLERANCE)
    )
    assert 0 < error(filtered, exact) <= TOLERANCE * (1 + 1e-9)


@pytest.mark.parametrize("kl", KLS)
def test_gradients_are_near_and_nearer_for_what_is_put_back(kl: str, monkeypatch: pytest.MonkeyPatch) -> None:
    p = spoken()
    true, filtered, exact = truth(p, kl), run(p, kl, grad_tol=TOLERANCE), run(p, kl)
    torch.testing.assert_close(filtered.loss.loss, exact.loss.loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(filtered.d_bias, exact.d_bias, rtol=1e-9, atol=1e-12)
    monkeypatch.setattr(ColumnFilter, "put_back", lambda *given: None)
    bare = run(p, kl, grad_tol=TOLERANCE)
    for field in ("d_hidden", "d_head"):
        errors = [error(getattr(got, field), getattr(true, field)) for got in (filtered, bare)]
        assert 1e-6 < errors[0] < 2 * TOLERANCE
        assert errors[0] < 0.6 * errors[1]


@pytest.mark.parametrize("chunk_bytes", [None, 8 * 512 * 16])
def test_the_sums_over_the_vocabulary_are_those_without_a_filter(chunk_bytes: int | None) -> None:
    p = spoken()
    p.lm_head[:, 0] = 1  # dX has dZ's row sums there
    true, filtered = truth(p, "reverse"), run(p, "reverse", grad_tol=TOLERANCE, chunk_bytes=chunk_bytes)
    scale = true.d_hidden.abs().max()
    torch.testing.assert_close(filtered.d_hidden[:, 0], true.d_hidden[:, 0], rtol=0, atol=1e-12 * float(scale))
    torch.testing.assert_close(filtered.d_head.sum(0), true.d_head.sum(0), rtol=0, atol=1e-12 * float(scale))


@pytest.mark.parametrize("signs", [1, -1])
def test_what_is_put_back_is_never_worse_than_nothing(signs: int) -> None:
    """Rows of both signs, whose sums nearly cancel: a rank-one matrix of the row sums could be far from them."""
    generator = torch.Generator().manual_seed(0)
    for scale in (1e-1, 1e-3, 1e-6):
        dz = torch.rand(9, 31, generator=generator, dtype=torch.float64) * scale
        dz[::2] *= signs
        dz[:, ::2] *= -1 + 1e-3
        dz[:, 3] = 5
        head, x = torch.eye(31).double(), torch.eye(9).double()
        d_x, d_head = torch.zeros(9, 31).double(), torch.zeros(31, 9).double()
        kept = ColumnFilter(0.07)
        gradient = RowGradient(dz, None, torch.zeros(9).long(), "torch")
        columns = kept.keep(gradient.entries(), x, slice(0, 9))
        assert columns is not None
        assert columns.tolist() == [3]
        gradient.multiply(head, x, d_x, d_head, columns=columns)
        kept.put_back(head, d_x, d_head)
        dropped = dz.clone()
        dropped[:, 3] = 0
        for got in (d_x, d_head.t()):
            assert (got - dz).norm() <= dropped.norm()
            torch.testing.assert_close(got.sum(1), dz.sum(1), rtol=1e-12, atol=1e-12)


def test_fewer_columns_are_multiplied(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    real = ColumnFilter.keep

    def watched(self: ColumnFilter, *given: Any) -> Tensor | None:
        columns = real(self, *given)
        assert columns is not None
        seen.append(columns.shape[0])
        return columns

    monkeypatch.setattr(ColumnFilter, "keep", watched)
    run(spoken(), "k2", grad_tol=TOLERANCE)
    assert 5 < seen[0] < 2 * WORDS


def test_where_nearly_all_columns_count_nothing_is_left_out() -> None:
    p = make_problem(33, 48, 130, torch.float64)
    filtered, plain = run(p, "k2", grad_tol=1e-12), truth(p, "k2")
    assert_gradient_close(filtered.d_hidden, plain.d_hidden, precision=torch.float64)
    assert_gradient_close(filtered.d_head, plain.d_head, precision=torch.float64)


@pytest.mark.parametrize("case", covering_cases(), ids=str)
def test_gathered_columns_meet_every_option(case: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gathering all columns changes nothing: the products with every pair of options, against float64."""
    if case["rows"] == "all":
        case = case | {"rows": "found"}
    monkeypatch.setattr(column_filter, "_DENSE", 2.0)
    check(case, grad_tol=1e-13)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_the_scale_of_the_weights_does_not_matter(reduction: str) -> None:
    p = spoken()
    found = []
    for scale in (1.0, 2.0**-20):
        leaves = [t.clone().requires_grad_() for t in (p.hidden, p.lm_head)]
        loss = weighted_ce(
            *leaves, p.labels, p.star.double() * scale, bias=p.bias, reduction=reduction, grad_tol=TOLERANCE
        )
        found.append([g / scale for g in torch.autograd.grad(loss.sum(), leaves)])
    for large, small in zip(*found, strict=True):
        torch.testing.assert_close(small, large, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("as_on_a_gpu", [False, True])
def test_half_precision(dtype: torch.dtype, as_on_a_gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if as_on_a_gpu:  # dZ in 16 bit
        monkeypatch.setattr("fastdss.loss.chunked._gradient_dtype", lambda call, accumulate: call.compute_dtype)
    p = spoken(dtype=dtype)
    true, filtered = truth(p, "k2"), run(p, "k2", grad_tol=TOLERANCE)
    rounding = 2 * torch.finfo(dtype).eps
    assert error(filtered.d_hidden, true.d_hidden) < 2e-3 + rounding
    assert error(filtered.d_head, true.d_head) < 2e-3 + rounding


def test_a_nan_is_not_left_out() -> None:
    p = spoken()
    p.hidden[3] = torch.nan
    filtered = run(p, "k2", grad_tol=TOLERANCE)
    assert filtered.d_hidden[3].isnan().all()
    assert filtered.d_head.isnan().all()
    assert filtered.d_hidden[4].isfinite().all()


@pytest.mark.parametrize("rows", [0, 5])
def test_nothing_to_learn(rows: int) -> None:
    hidden, head = torch.randn(rows, 8).requires_grad_(), torch.randn(20, 8).requires_grad_()
    weighted_ce(hidden, head, torch.full((rows,), -100), grad_tol=TOLERANCE).backward()
    assert hidden.grad is not None
    assert head.grad is not None
    assert not hidden.grad.any()
    assert not head.grad.any()
