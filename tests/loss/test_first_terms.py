"""First terms with a weight of the label's own: dynamic fine-tuning, and constrained fine-tuning's bounded slope.

Against their published formulas, differentiated by autograd in float64.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastdss import dss_loss, forward_reference, weighted_ce, weighted_ce_stats
from fastdss.loss.functional import live_rows
from tests.support.loss_cases import KLS, Problem, make_problem, reference_arguments
from tests.support.numerics import assert_gradient_close, assert_tokens_close

CHUNKS = 8 * 160 * 3  # chunk_bytes: three rows of fp64 logits


def dft(logp: Tensor, _: Problem, __: Tensor) -> Tensor:
    return logp.exp().detach() * -logp


def constrained(logp: Tensor, p: Problem, beta: Tensor) -> Tensor:
    """Qi et al., "Safety Alignment Should Be Made More Than Just a Few Tokens Deep"."""
    return -(2 / beta) * F.logsigmoid(beta * (logp - p.ref_logprobs))


def kl_term(kind: str, log_p: Tensor, logp: Tensor, p: Problem) -> Tensor:
    d = logp - p.ref_logprobs
    log_q = torch.log_softmax(p.ref_hidden @ p.ref_lm_head.T, 1)
    return {
        "k1": lambda: d,
        "k2": lambda: d**2 / 2,
        "k3": lambda: (-d).exp() - 1 + d,
        "reverse": lambda: (log_p.exp() * (log_p - log_q)).sum(1),
        "forward": lambda: (log_q.exp() * (log_q - log_p)).sum(1),
    }[kind]()


def check(
    p: Problem, kl: str, first: Any, beta: Tensor, reduction: str, softcap: float | None, dtype: torch.dtype,
    **options: Any,
) -> None:  # fmt: skip
    leaves = [t.clone().requires_grad_() for t in (p.hidden, p.lm_head)]
    upstream = torch.linspace(-1, 2, len(p.labels)).to(dtype) if reduction == "none" else torch.tensor(1.5).to(dtype)
    own = {"dft": True} if first is dft else {"csft_beta": beta.to(dtype)}
    got = dss_loss(
        *leaves, p.labels, p.star.to(dtype), kl=kl, reduction=reduction, softcap=softcap, **own,
        **reference_arguments(p, kl), **options,
    )  # fmt: skip
    got.loss.backward(upstream)
    wide = p.double()
    exact = [t.clone().requires_grad_() for t in (wide.hidden, wide.lm_head)]
    z = exact[0] @ exact[1].T
    z = z if softcap is None else softcap * torch.tanh(z / softcap)
    log_p = torch.log_softmax(z, 1)
    counts = p.labels != -100
    logp = log_p.gather(1, p.labels.clamp(min=0)[:, None])[:, 0]
    parts = [
        torch.where(counts, wide.star * first(logp, wide, beta.where(counts, 1)), 0),
        torch.where(counts, (1 - wide.star) * 0.5 * kl_term(kl, log_p, logp, wide), 0),
    ]
    if reduction != "none":
        parts = [part.sum() / (counts.sum() if reduction == "mean" else 1) for part in parts]
    (parts[0] + parts[1]).backward(upstream.double())
    for found, true in ((got.loss, sum(parts)), (got.ce, parts[0]), (got.kl, parts[1])):
        assert_tokens_close(found.detach(), true.detach(), precision=dtype)
    assert_tokens_close(got.token_ce, torch.where(counts, -logp, 0).detach(), precision=dtype)
    for leaf, true in zip(leaves, exact, strict=True):
        assert_gradient_close(leaf.grad, true.grad, precision=dtype)


@pytest.mark.parametrize("chunk_bytes", [None, CHUNKS], ids=["kept", "chunks"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("softcap", [None, 8.0])
@pytest.mark.parametrize("kl", KLS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_dft(kl: str, softcap: float | None, reduction: str, chunk_bytes: int | None, dtype: torch.dtype) -> None:
    """With a full KL (as ASFT has one) it takes the row pass."""
    p = make_problem(33, 48, 130, dtype)
    same = {"ref_softcap": None} if kl in ("reverse", "forward") else {}
    check(p, kl, dft, torch.ones(33), reduction, softcap, dtype, chunk_bytes=chunk_bytes, **same)


@pytest.mark.parametrize("chunk_bytes", [None, CHUNKS], ids=["kept", "chunks"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("kl", ["k1", "k2", "k3"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_constrained(kl: str, reduction: str, chunk_bytes: int | None, dtype: torch.dtype) -> None:
    """Every token its own beta: 0.1 deep in a response, 2 at its beginning."""
    p = make_problem(33, 48, 130, dtype)
    beta = torch.linspace(0.1, 2, 33).double()
    beta[p.labels == -100] = 0  # of no label: not looked at
    check(p, kl, constrained, beta, reduction, 8.0, dtype, chunk_bytes=chunk_bytes)


def test_the_published_loss_alone() -> None:
    """All weights 1 and no KL term: the sum over tokens that the paper writes down, with one beta for all."""
    p = make_problem(20, 16, 50, torch.float64)
    labels, logprobs = p.labels.clamp(min=0), p.ref_logprobs.double()
    found = dss_loss(
        p.hidden, p.lm_head, labels, torch.ones(20), ref_logprobs=logprobs, csft_beta=2.0, kl_scale=0.0, reduction="sum"
    )
    logp = torch.log_softmax(p.hidden @ p.lm_head.T, 1).gather(1, labels[:, None])[:, 0]
    assert_tokens_close(found.loss, -F.logsigmoid(2 * (logp - logprobs)).sum(), precision=torch.float64)


@pytest.mark.parametrize("with_rows", [True, False])
@pytest.mark.parametrize("kl_scale", [0.5, 0.0])
def test_a_reference_given_by_its_hidden_states(kl_scale: float, with_rows: bool) -> None:
    """The bounded term reads it at every label with a weight, not only where the KL does."""
    p = make_problem(33, 48, 130, torch.float64)
    counts = p.labels != -100
    log_q = torch.log_softmax(p.ref_hidden @ p.ref_lm_head.T, 1).gather(1, p.labels.clamp(min=0)[:, None])[:, 0]
    rows = live_rows(p.labels, p.star, kl_scale=kl_scale) if with_rows else None
    leaf, exact = p.hidden.clone().requires_grad_(), p.hidden.clone().requires_grad_()
    found = dss_loss(
        leaf, p.lm_head, p.labels, p.star.double(), ref_hidden=p.ref_hidden, ref_lm_head=p.ref_lm_head,
        csft_beta=0.7, kl_scale=kl_scale, rows=rows,
    ).loss  # fmt: skip
    found.backward()
    d = torch.log_softmax(exact @ p.lm_head.T, 1).gather(1, p.labels.clamp(min=0)[:, None])[:, 0] - log_q
    star = p.star.double()
    token = star * -(2 / 0.7) * F.logsigmoid(0.7 * d) + (1 - star) * kl_scale * d**2 / 2
    expected = token[counts].mean()
    expected.backward()
    assert_tokens_close(found.detach(), expected.detach(), precision=torch.float64)
    assert_gradient_close(leaf.grad, exact.grad, precision=torch.float64)


def test_a_reference_given_by_its_tangent_has_no_log_probabilities() -> None:
    p = make_problem(7, 24, 67, torch.float32)
    known = forward_reference(p.ref_hidden, p.lm_head, p.labels)
    with pytest.raises(ValueError, match=r"expected kl to be one of k1, k2, k3, got 'forward'"):
        dss_loss(p.hidden, p.lm_head, p.labels, p.star, kl="forward", csft_beta=1.0, ref_slope=known.slope,
                 ref_offset=known.offset)  # fmt: skip


def test_a_shifted_batch_takes_the_betas_of_its_labels() -> None:
    p = make_problem(12, 16, 50, torch.float64)
    hidden, labels = p.hidden.view(2, 6, 16), p.labels.clamp(min=0).view(2, 6)
    given = {"ref_logprobs": p.ref_logprobs.double().view(2, 6), "csft_beta": torch.linspace(0.1, 2, 12).view(2, 6)}
    found = dss_loss(hidden, p.lm_head, labels, torch.ones(2, 6), kl_scale=0.0, shift=True, reduction="sum", **given)
    cut = {name: value[:, 1:] for name, value in given.items()}
    plain = dss_loss(hidden[:, :-1], p.lm_head, labels[:, 1:], torch.ones(2, 5), kl_scale=0.0, reduction="sum", **cut)
    assert_tokens_close(found.loss, plain.loss, precision=torch.float64)


@pytest.mark.parametrize("gap", [90.0, -90.0])
def test_certain_and_impossible_labels(gap: float) -> None:
    """A weight of 1e-39 and of 1; the bounded slope at its bound, 2, and at 0."""
    head, hidden = torch.eye(8), torch.zeros(2, 8)
    hidden[:, 3] = gap
    labels, logprobs = torch.tensor([3, 3]), torch.tensor([-5.0, -5.0])
    results = []
    for dtype in (torch.float32, torch.float64):
        leaf = hidden.to(dtype).requires_grad_()
        plain = weighted_ce(leaf, head.to(dtype), labels, dft=True)
        bounded = dss_loss(leaf, head.to(dtype), labels, torch.ones(2).to(dtype), kl_scale=0.0, csft_beta=2.0,
                           ref_logprobs=logprobs.to(dtype)).loss  # fmt: skip
        results.append([plain.detach(), bounded.detach(), *torch.autograd.grad(plain + bounded, leaf)])
    for one, true in zip(*results, strict=True):
        assert one.isfinite().all()
        torch.testing.assert_close(one.double(), true, rtol=1e-4, atol=1e-30)


@pytest.mark.parametrize("grad_tol", [None, 1e-9])  # the latter takes the ops, which keep no exponentials
def test_a_label_that_a_bias_rules_out_weighs_nothing(grad_tol: float | None) -> None:
    """p log p goes to 0 with p, where 0 times infinity is NaN."""
    p = make_problem(7, 8, 11, torch.float64)
    bias, labels = torch.zeros(11).double(), torch.tensor([4, 1, 4, 2, 3, 5, 6])
    bias[4] = -torch.inf
    hidden = p.hidden.clone().requires_grad_()
    loss = weighted_ce(hidden, p.lm_head, labels, bias=bias, dft=True, reduction="sum", grad_tol=grad_tol)
    counted = labels != 4
    plain = weighted_ce(hidden[counted], p.lm_head, labels[counted], bias=bias, dft=True, reduction="sum")
    assert_tokens_close(loss.detach(), plain.detach(), precision=torch.float64)
    (got,), (expected,) = (torch.autograd.grad(value, hidden) for value in (loss, plain))
    assert_gradient_close(got, expected, precision=torch.float64)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_other_ways(reduction: str) -> None:
    """main_grad, columns left out, all rows, bf16 that is kept, torch.compile, and what is told of tokens."""
    p = make_problem(33, 48, 130, torch.float32)
    expected = None
    for options in ({}, {"main_grad": torch.zeros(130, 48)}, {"grad_tol": 1e-6}, {"compact": False}):
        head = p.lm_head.clone().requires_grad_()
        loss = weighted_ce_stats(p.hidden, head, p.labels, p.star, dft=True, reduction=reduction, **options).loss
        loss.sum().backward()
        got = options.get("main_grad", head.grad)
        expected = got.double() if expected is None else expected
        assert_gradient_close(got, expected, precision=torch.float32)
    head = p.lm_head.clone().requires_grad_()

    def step(head: Tensor) -> Tensor:
        return weighted_ce(p.hidden, head, p.labels, p.star, dft=True, reduction=reduction).sum()

    torch.compile(step, backend="aot_eager", fullgraph=True)(head).backward()
    assert_gradient_close(head.grad, expected, precision=torch.float32)


def test_rows_without_weight_have_no_effect() -> None:
    p = make_problem(17, 24, 67, torch.float32)
    p.hidden[(p.labels == -100) | (p.star == 0)] = torch.nan
    assert weighted_ce(p.hidden, p.lm_head, p.labels, p.star, dft=True, compact=False).isfinite()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"dft": True, "z_loss": 0.1}, ValueError, "dft weighs -log p alone by p"),
        ({"dft": True, "label_smoothing": 0.1}, ValueError, "dft weighs -log p alone by p"),
        ({"dft": True, "csft_beta": 1.0}, ValueError, "csft_beta makes another first term"),
        ({"csft_beta": 1.0, "label_smoothing": 0.1}, ValueError, "csft_beta makes another first term"),
        ({"csft_beta": 0.0}, ValueError, r"csft_beta\[0\]: expected a positive, finite number, got 0"),
        ({"csft_beta": torch.ones(3)}, ValueError, r"csft_beta: expected a number or floats of the shape"),
        (
            {"csft_beta": 1.0, "kl": "reverse"},
            ValueError,
            r"expected kl to be one of k1, k2, k3, got 'reverse'",
        ),
        ({"csft_beta": 1.0, "half": True}, TypeError, "csft_beta: expected float64, float32 or bfloat16, got float16"),
    ],
    ids=str,
)
def test_what_does_not_go_together(options: dict[str, Any], error: type[Exception], message: str) -> None:
    dtype = torch.float16 if options.pop("half", False) else torch.float32
    p = make_problem(7, 24, 67, dtype)
    reference = reference_arguments(p, options.get("kl", "k2"))
    with pytest.raises(error, match=message):
        dss_loss(p.hidden, p.lm_head, p.labels, p.star, **reference, **options)
