"""Whole losses, forward and backward, on the product that writes exponentials; and what takes the vendor's product."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdss import dss_loss, token_logprobs, weighted_ce
from fastdss.kernels import head_exponentials
from fastdss.loss import exp_rows
from tests.loss.test_vocab_parallel import spawn
from tests.support.loss_cases import Problem, check_values, make_problem, run, truth
from tests.support.numerics import assert_gradient_close, assert_tokens_close

CHUNKS = 4 * 160 * 20  # chunk_bytes: 20 rows of E
FP32 = torch.float32


class Products:
    """How many times rows were multiplied by the fused kernel and by the vendor."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fused = self.vendor = 0
        launch, project = head_exponentials.launch_head_exponentials_fwd, exp_rows.project

        def fused(*given: Any, **options: Any) -> None:
            self.fused += 1
            launch(*given, **options)

        def vendor(*given: Any, **options: Any) -> None:
            self.vendor += 1
            project(*given, **options)

        monkeypatch.setattr(head_exponentials, "launch_head_exponentials_fwd", fused)
        monkeypatch.setattr(exp_rows, "project", vendor)


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> Products:
    return Products(monkeypatch)


def check(p: Problem, kl: str, upstream: Tensor | None, *, options: dict[str, Any], how: dict[str, Any]) -> None:
    actual = run(p, kl, upstream, backend="fused", **options, **how)
    expected = truth(p, kl, upstream=upstream, **options)
    check_values(actual.loss, expected.loss, precision=FP32)
    for field in ("d_hidden", "d_head", "d_bias"):
        assert_gradient_close(getattr(actual, field), getattr(expected, field), precision=FP32, name=field)


@pytest.mark.parametrize("how", [{}, {"chunk_bytes": CHUNKS}], ids=["kept", "chunks"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize(
    ("kl", "options"),
    [
        ("k1", {}),
        ("k2", {"softcap": 8.0, "z_loss": 1e-3, "logit_scale": 0.7}),
        ("k3", {"label_smoothing": 0.1, "z_loss": 1e-3, "logit_scale": 0.7}),
    ],
    ids=str,
)
def test_label_forms(kl: str, options: dict[str, Any], reduction: str, how: dict[str, Any], products: Products) -> None:
    upstream = torch.linspace(-1, 2, 33) if reduction == "none" else torch.tensor(-1.5)
    how = how | {"token_stats": True}
    check(make_problem(33, 48, 130, FP32), kl, upstream, options=options | {"reduction": reduction}, how=how)
    assert products.vendor == 0
    assert products.fused >= (2 if "chunk_bytes" in how else 1)


@pytest.mark.parametrize("compact", [True, False])
@pytest.mark.parametrize("frozen", ["head", "hidden"])
def test_cross_entropy_without_a_bias(frozen: str, compact: bool, products: Products) -> None:
    """By descriptors, and with one gradient alone; all rows where nothing may be counted, as in a CUDA graph."""
    p = make_problem(33, 48, 130, FP32)
    hidden, head = p.hidden.requires_grad_(frozen != "hidden"), p.lm_head.requires_grad_(frozen != "head")
    leaf = hidden if frozen == "head" else head
    upstream = torch.linspace(-1, 2, 33)
    loss = weighted_ce(hidden, head, p.labels, p.star, reduction="none", backend="fused", compact=compact)
    (got,) = torch.autograd.grad(loss, leaf, upstream)
    exact = leaf.detach().double().requires_grad_()
    logits = exact @ head.double().T if frozen == "head" else hidden.double() @ exact.T
    token = torch.nn.functional.cross_entropy(logits, p.labels, reduction="none") * p.star
    (expected,) = torch.autograd.grad(token, exact, upstream.double())
    assert_tokens_close(loss.detach(), token.detach(), precision=FP32)
    assert_gradient_close(got, expected, precision=FP32)
    assert (products.fused, products.vendor) == (1, 0)


@pytest.mark.parametrize("gap", [60.0, 3000.0])
def test_labels_far_below_the_others(gap: float, products: Products) -> None:
    p = make_problem(33, 48, 130, FP32)
    low = torch.arange(33) % 16 == 3
    rows = p.lm_head[p.labels.clamp(min=0)]
    hidden = p.hidden - low[:, None] * gap * rows / rows.square().sum(1, keepdim=True)
    p = Problem(**vars(p) | {"hidden": hidden})
    leaves = [t.clone().requires_grad_() for t in (p.hidden, p.lm_head)]
    loss = weighted_ce(*leaves, p.labels, reduction="none", backend="fused")
    exact = [t.detach().double().requires_grad_() for t in leaves]
    token = torch.nn.functional.cross_entropy(exact[0] @ exact[1].T, p.labels, reduction="none")
    assert_tokens_close(loss.detach(), token.detach(), precision=FP32)
    got, expected = torch.autograd.grad(loss.sum(), leaves), torch.autograd.grad(token.sum(), exact)
    for one, other in zip(got, expected, strict=True):
        assert_gradient_close(one, other, precision=FP32)
    assert (products.fused, products.vendor) == (1, 0)


def test_log_probabilities_need_no_exponentials(products: Products) -> None:
    p = make_problem(33, 48, 130, FP32)
    with torch.no_grad():
        got = token_logprobs(p.hidden, p.lm_head, p.labels, backend="fused")
    log_p = torch.log_softmax(p.hidden.double() @ p.lm_head.double().T, 1)
    expected = log_p.gather(1, p.labels.clamp(min=0)[:, None])[:, 0] * (p.labels != -100)
    assert_tokens_close(got, expected, precision=FP32)
    assert (products.fused, products.vendor) == (1, 0)


def test_a_promise_of_what_may_be_left_out(products: Products) -> None:
    p = make_problem(33, 48, 130, FP32)
    options = {"options": {}, "how": {"grad_tol": 1e-6}}
    check(p, "k2", None, **options)
    assert (products.fused > 0, products.vendor) == (True, 0)


def test_under_torch_compile(products: Products) -> None:
    p = make_problem(33, 48, 130, FP32)
    leaves = [t.clone().requires_grad_() for t in (p.hidden, p.lm_head)]

    def step(hidden: Tensor, head: Tensor) -> Tensor:
        return dss_loss(hidden, head, p.labels, p.star, ref_logprobs=p.ref_logprobs, backend="fused").loss

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    got = torch.autograd.grad(compiled(*leaves), leaves)
    expected = torch.autograd.grad(step(*leaves), leaves)
    for one, other in zip(got, expected, strict=True):
        assert_gradient_close(one, other.double(), precision=FP32)
    assert (products.fused, products.vendor) == (2, 0)


@pytest.mark.parametrize("backend", ["triton", "auto"])
def test_others_take_the_vendors_product(backend: str, products: Products) -> None:
    p = make_problem(33, 48, 130, FP32)
    weighted_ce(p.hidden, p.lm_head, p.labels, backend=backend)
    assert (products.fused, products.vendor) == (0, 1)


def test_what_does_not_fit_takes_the_vendors_product(products: Products) -> None:
    """fp64, and a head that is a transposed view; the full KL and fp16 take the row pass."""
    p = make_problem(33, 48, 130, FP32)
    exact = torch.nn.functional.cross_entropy(p.hidden.double() @ p.lm_head.double().T, p.labels)
    double = weighted_ce(p.hidden.double(), p.lm_head.double(), p.labels, backend="fused")
    transposed = weighted_ce(p.hidden, p.lm_head.t().contiguous().t(), p.labels, backend="fused")
    assert products.vendor == 2
    assert_tokens_close(double, exact, precision=torch.float64)
    assert_tokens_close(transposed, exact, precision=FP32)
    check(p, "reverse", None, options={}, how={})
    weighted_ce(p.hidden.half(), p.lm_head.half(), p.labels, backend="fused")
    assert (products.fused, products.vendor) == (0, 2)


def test_a_chip_without_a_configuration_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_exponentials, "head_architecture", lambda device: "sm_89")
    p = make_problem(7, 24, 67, FP32)
    with pytest.raises(ValueError, match=r"'fused' has configurations for sm_80, .* got sm_89"):
        weighted_ce(p.hidden, p.lm_head, p.labels, backend="fused")


def test_a_vocabulary_split_over_two_ranks(tmp_path: Path) -> None:
    spawn(tmp_path, "fused_vocabulary", "fused")
