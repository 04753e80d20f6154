"""A row's terms by one kernel, and rows times numbers by another, in the interpreter, against float64 formulas."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fastdss.kernels.row_terms import launch_row_terms_fwd
from fastdss.kernels.scaled_rows import launch_hidden_rows_bwd, launch_scaled_rows_bwd
from torch import Tensor

KINDS = {"none": 0, "k1": 1, "k2": 2, "k3": 3}
# What the others' log-sum-exp is above the label's logit: certain, near, level, far and infinitely apart.
DISTANCES = torch.tensor([-90.0, -30.0, -20.7, -3.0, -0.1, 0.0, 0.2, 1.0, 17.0, 60.0, 3000.0])


def k(kind: str, d: Tensor) -> Tensor:
    return {"none": d * 0, "k1": d, "k2": d * d / 2, "k3": torch.exp(-d) - 1 + d}[kind]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
@pytest.mark.parametrize("kind", KINDS)
def test_terms_and_factors(kind: str, z_loss: float, smoothing: float) -> None:
    """Two logits stand for the vocabulary: the label's, and one for all others. v and dZ_y are autograd's then."""
    count, words, scale = len(DISTANCES), 50, 0.7
    label_logit = torch.linspace(-4, 4, count)
    others = label_logit + (DISTANCES.clamp(max=60) if kind == "k3" else DISTANCES)  # its exp would be infinite
    total, slope = torch.linspace(0.5, 1e9, count), torch.linspace(0.1, 1, count)
    weight, kl_weight = torch.linspace(0, 1, count), torch.linspace(0.6, 0, count)
    ref, mean = -torch.linspace(0, 9, count), torch.linspace(-1, 1, count)
    spread, rival = torch.linspace(0, 4, count), others - torch.linspace(0, 4, count)  # others are exp(spread) words
    made = launch_row_terms_fwd(
        label_logit, others, total, slope, spread, rival, mean if smoothing else None, torch.arange(count), weight,
        None if kind == "none" else kl_weight, None if kind == "none" else ref,
        vocab_size=words, kl_code=KINDS[kind], label_smoothing=smoothing, z_loss=z_loss, logit_scale=scale,
    )  # fmt: skip
    pair = torch.stack([label_logit, others], 1).double().requires_grad_()
    lse = pair.logsumexp(1)
    nll = torch.nn.functional.softplus(pair[:, 1] - pair[:, 0], threshold=800)
    ce = (1 - smoothing) * nll + smoothing * (lse - mean) + z_loss * lse**2
    kl = k(kind, -nll - ref.double())
    (of_pair,) = torch.autograd.grad((weight * ce + (kl_weight * kl if kind != "none" else 0)).sum(), pair)
    dead = (weight == 0) & (kl_weight == 0) if kind != "none" else weight == 0
    near = {"rtol": 2e-5, "atol": 1e-30}
    torch.testing.assert_close(made.ce.double(), ce.detach().masked_fill(dead, 0), **near)
    torch.testing.assert_close(made.weighted_ce.double(), (weight * ce).detach(), **near)
    if kind != "none":
        live = kl_weight > 0
        torch.testing.assert_close(made.kl[live].double(), kl.detach()[live], rtol=2e-5, atol=1e-5)
        torch.testing.assert_close(made.weighted_kl.double(), (kl_weight * kl).detach(), rtol=2e-5, atol=1e-5)
    # autograd's smoothing term at the label is C's, which the kernel keeps apart: the mean logit is constant here
    label = of_pair[:, 0] * scale * slope
    torch.testing.assert_close(
        made.label.double(), label.masked_fill(dead, 0), rtol=1e-4, atol=1e-5 * float(label.abs().max())
    )
    row = of_pair[:, 1] / total.double() * scale
    torch.testing.assert_close(made.row.double(), row.masked_fill(dead, 0), rtol=1e-4, atol=1e-15)
    p = pair.detach().softmax(1)
    entropy = torch.special.entr(p).sum(1) + p[:, 1] * spread
    torch.testing.assert_close(made.token_stats[0].double(), entropy.masked_fill(dead, 0), rtol=1e-4, atol=1e-30)
    assert torch.equal(made.token_stats[1] == 1, (label_logit > rival) & ~dead)
    if smoothing:
        torch.testing.assert_close(made.const.double(), -weight.double() * smoothing * scale / words, **near)


def test_first_terms_that_change_their_weight() -> None:
    """Times the label's own probability (dft), or bounded by the reference (csft). A label of probability 0 in fp32 is
    no row without weight: its cross-entropy is reported, and an infinite one counts 0 * inf = 0."""
    distance = torch.tensor([-30.0, -0.3, 2.0, 60.0, 3000.0, torch.inf])
    others, label_logit = distance.clamp(max=1e4), (-distance).clamp(max=0).where(distance.isinf(), torch.zeros(6))
    weight, ref, beta = torch.linspace(0.2, 1, 6), -torch.linspace(0, 9, 6), torch.linspace(0.05, 2, 6)
    given: dict[str, Any] = {"vocab_size": 9, "kl_code": 0, "label_smoothing": 0.0, "z_loss": 0.0, "logit_scale": 1.0}
    sums = label_logit, others, torch.ones(6), None, torch.zeros(6), others, None
    nll, miss = distance.double().clamp(min=0) + (-distance.double().abs()).exp().log1p(), distance.double().sigmoid()
    rows = torch.zeros(6, dtype=torch.int64), weight, None
    dft, plain = launch_row_terms_fwd(*sums, *rows, None, dft=True, **given), weight.double() * (-nll).exp()
    bounded = launch_row_terms_fwd(*sums, *rows, ref, beta, **given)
    below = beta.double() * (nll + ref.double())
    expected = [
        (plain * nll).nan_to_num(nan=0.0),
        2 / beta.double() * weight.double() * torch.logaddexp(below, torch.zeros_like(below)),
    ]
    slopes = [plain, weight.double() * 2 * below.sigmoid()]
    for made, value, slope in zip((dft, bounded), expected, slopes, strict=True):
        torch.testing.assert_close(made.ce.double(), nll, rtol=2e-6, atol=1e-30)
        torch.testing.assert_close(made.weighted_ce.double(), value, rtol=2e-5, atol=1e-30)
        torch.testing.assert_close(made.row.double(), slope * miss, rtol=2e-5, atol=1e-30)
        torch.testing.assert_close(made.label.double(), -slope * miss, rtol=2e-5, atol=1e-30)
    assert (dft.token_stats[1] == 1).tolist() == [True, True, False, False, False, False]


def test_a_certain_label_keeps_its_digits() -> None:
    """log(1 + 1e-9) is 1e-9, and fp32's 1 + 1e-9 is 1."""
    others = torch.tensor([-20.7, -10.0, -2.0, -1e-4])
    made = launch_row_terms_fwd(
        torch.zeros(4), others, torch.ones(4), None, None, None, None, torch.zeros(4, dtype=torch.int64),
        torch.ones(4), None, None,
        vocab_size=9, kl_code=0, label_smoothing=0.0, z_loss=0.0, logit_scale=1.0,
    )  # fmt: skip
    torch.testing.assert_close(made.ce.double(), torch.log1p(others.double().exp()), rtol=2e-6, atol=0)
    torch.testing.assert_close(-made.label.double(), others.double().sigmoid(), rtol=2e-6, atol=0)


def test_an_infinite_logit_of_the_label_is_no_certainty() -> None:
    """inf - inf is NaN; a label that is ruled out costs infinitely much."""
    made = launch_row_terms_fwd(
        torch.tensor([torch.inf, -torch.inf]), torch.zeros(2), torch.ones(2), None, None, None, None,
        torch.zeros(2, dtype=torch.int64), torch.ones(2), None, None,
        vocab_size=9, kl_code=0, label_smoothing=0.0, z_loss=0.0, logit_scale=1.0,
    )  # fmt: skip
    assert made.ce.isnan().tolist() == [True, False]
    assert made.ce[1].isposinf()
    assert made.row.isnan().tolist() == [True, False]


def test_a_small_difference_from_the_reference_keeps_its_digits() -> None:
    """k3's slope 1 - exp(-d) near d = 0, where 1 and exp(-d) have all but their last digits in common in fp32."""
    d = torch.tensor([1e-6, 1e-3, -0.02, 0.049, -0.049])
    others, labels = torch.full((5,), -20.0), torch.zeros(5, dtype=torch.int64)  # so that -log p is 2e-9, and -ref is d
    made = launch_row_terms_fwd(
        torch.zeros(5), others, torch.ones(5), None, None, None, None, labels, torch.zeros(5), torch.ones(5), -d,
        vocab_size=9, kl_code=KINDS["k3"], label_smoothing=0.0, z_loss=0.0, logit_scale=1.0,
    )  # fmt: skip
    exact = -torch.log1p(others.double().exp()) + d.double()
    slope = -torch.expm1(-exact) * others.double().sigmoid()
    torch.testing.assert_close(-made.row.double(), slope, rtol=2e-6, atol=0)


def test_rows_without_weight_and_labels_outside() -> None:
    nan, inf = torch.nan, torch.inf
    others = torch.tensor([nan, inf, 1.0, 1.0, -inf])
    made = launch_row_terms_fwd(
        torch.zeros(5), others, torch.tensor([nan, inf, 1.0, 1.0, 0.0]), None, torch.tensor([nan, inf, 0.0, 0.0, 0.0]),
        others, None, torch.tensor([0, 1, 9, -1, 3]),
        torch.tensor([0.0, 0.0, 1.0, 1.0, 1.0]), None, None,
        vocab_size=9, kl_code=0, label_smoothing=0.0, z_loss=0.0, logit_scale=1.0,
    )  # fmt: skip
    assert made.token_stats[1].tolist() == [0, 0, 0, 0, 1]
    for values in (made.ce, made.weighted_ce, made.row, made.label, made.token_stats[0]):
        assert not values[[0, 1]].any()
        assert bool(values[[2, 3]].isnan().all())
        assert values[4] == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("shape", [(1, 5), (7, 1024), (3, 1500)])
def test_rows_times_numbers(shape: tuple[int, int], dtype: torch.dtype) -> None:
    n, d = shape
    x, head, factor, label_factor, const = (torch.randn(*s) for s in (shape, (11, d), (n,), (n,), (n,)))
    labels = torch.arange(n) * 5 % 11
    given = x.to(dtype)
    got = launch_scaled_rows_bwd(given, factor, dtype)
    assert torch.equal(got, (given.float() * factor[:, None]).to(dtype))
    assert torch.equal(launch_scaled_rows_bwd(given.t().contiguous().t(), factor, dtype), got)
    for matrix in (head.to(dtype), head.to(dtype).t().contiguous().t()):
        out = torch.empty(shape, dtype=dtype)
        launch_hidden_rows_bwd(x, factor, matrix, label_factor, labels, const, out)
        wide = matrix.double()
        expected = x.double() * factor[:, None] + label_factor[:, None] * wide[labels] + const[:, None] * wide.sum(0)
        torch.testing.assert_close(out.double(), expected, rtol=2 * torch.finfo(dtype).eps, atol=2e-5)
    launch_hidden_rows_bwd(x, factor, head, label_factor, labels, None, x_copy := x.clone())
    launch_hidden_rows_bwd(x, factor, head, label_factor, labels, None, x)  # over itself
    assert torch.equal(x, x_copy)
