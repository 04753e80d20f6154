"""The head's gradient added straight to a buffer, as users of gradient accumulation keep it (``lm_head.main_grad``)."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fastdss import dss_loss, weighted_ce
from tests.support.loss_cases import KLS, Problem, make_problem, reference_arguments, truth
from tests.support.numerics import assert_gradient_close, assert_tokens_close

from .test_engine import Largest, _count_gemm_rows

PARTS = (slice(0, 7), slice(7, 20), slice(20, 33))  # three micro-batches of unequal size


def accumulate(p: Problem, kl: str, main_grad: torch.Tensor, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """(loss, hidden's gradient) of the problem in three micro-batches, whose backwards come after all forwards."""
    hidden, head = p.hidden.clone().requires_grad_(), p.lm_head.clone().requires_grad_()
    options |= {"num_items_in_batch": int((p.labels != -100).sum())} if options.get("reduction") is None else {}
    losses = []
    for part in PARTS:
        known = {k: v[part] if v.shape[0] == 33 else v for k, v in reference_arguments(p, kl).items()}
        arguments = (hidden[part], head, p.labels[part], p.star[part])
        losses.append(dss_loss(*arguments, bias=p.bias, kl=kl, main_grad=main_grad, **known, **options).loss)
    for loss in losses:
        loss.sum().backward()
    assert head.grad is None
    return torch.stack([loss.detach().sum() for loss in losses]).sum(), hidden.grad


@pytest.mark.parametrize("kl", KLS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_micro_batches_add_up_to_the_batch(kl: str, dtype: torch.dtype) -> None:
    """16-bit parameters too: the sum is never rounded, so it is held to fp32's tolerance."""
    p = make_problem(33, 48, 130, dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    before = torch.linspace(-1e-3, 1e-3, 130 * 48, dtype=wide).view(130, 48)
    main_grad = before.clone()
    loss, d_hidden = accumulate(p, kl, main_grad, chunk_bytes=8 * 130 * 8)
    expected = truth(p, kl)
    assert_tokens_close(loss, expected.loss.loss, precision=wide)
    assert_gradient_close(main_grad - before, expected.d_head, precision=wide)
    assert_gradient_close(d_hidden, expected.d_hidden, precision=dtype, cast_margin=1.6)  # the CPU's: see test_exact


def test_any_upstream_factor_counts() -> None:
    """A loss scale, or a trainer that divides by its accumulation steps: known in backward only."""
    p = make_problem(33, 48, 130, torch.float64)
    head, main_grad = p.lm_head.clone().requires_grad_(), torch.zeros_like(p.lm_head)
    for reduction, upstream in (("mean", torch.tensor(-3.0).double()), ("none", torch.linspace(-1, 2, 33).double())):
        main_grad.zero_()
        loss = weighted_ce(p.hidden, head, p.labels, p.star, bias=p.bias, reduction=reduction, main_grad=main_grad)
        loss.backward(upstream)
        expected = truth(p, "k2", kl_scale=0.0, reduction=reduction, upstream=upstream)
        assert_gradient_close(main_grad, expected.d_head, precision=torch.float64)


@pytest.mark.parametrize(("reduction", "others", "gemms"), [("mean", 1, 1), ("none", 0, 2)])
def test_what_it_costs(reduction: str, others: int, gemms: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sum keeps its gradient until the factor is known; tokens compute the logits again and need no such tensor."""
    p = make_problem(33, 8, 640, torch.float32)
    main_grad, rows = torch.zeros(640, 8), _count_gemm_rows(monkeypatch)
    with Largest(watched=(640, 8)) as seen:
        hidden, head = p.hidden.requires_grad_(), p.lm_head.requires_grad_()
        options = {"reduction": reduction, "chunk_bytes": 4 * 8 * 640, "main_grad": main_grad}
        weighted_ce(hidden, head, p.labels, **options).sum().backward()
    assert seen.made == others
    assert sum(rows) == gemms * int((p.labels != -100).sum())
    assert main_grad.any()


def test_a_second_backward_adds_once_more() -> None:
    p = make_problem(9, 8, 20, torch.float64)
    main_grad = torch.zeros_like(p.lm_head)
    loss = weighted_ce(p.hidden, p.lm_head.requires_grad_(), p.labels, main_grad=main_grad)
    loss.backward(retain_graph=True)
    once = main_grad.clone()
    loss.backward()
    assert_gradient_close(main_grad, 2 * once, precision=torch.float64)


def test_a_forward_without_gradients_leaves_the_buffer_alone() -> None:
    p = make_problem(9, 8, 20, torch.float32)
    main_grad = torch.zeros(20, 8)
    with torch.no_grad(), Largest(watched=(20, 8)) as seen:
        weighted_ce(p.hidden, p.lm_head.requires_grad_(), p.labels, main_grad=main_grad)
    assert seen.made == 0  # nor is a gradient computed for nothing
    weighted_ce(p.hidden, p.lm_head.requires_grad_(), p.labels, main_grad=main_grad)
    assert not main_grad.any()


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_compiled_it_adds_the_same(reduction: str) -> None:
    p = make_problem(9, 8, 20, torch.float32)
    buffers = [torch.zeros(20, 8), torch.zeros(20, 8)]

    def step(hidden: torch.Tensor, head: torch.Tensor, main_grad: torch.Tensor) -> torch.Tensor:
        return weighted_ce(hidden * 2, head, p.labels, main_grad=main_grad, reduction=reduction).sum()

    gradients = []
    for function, buffer in zip((step, torch.compile(step, fullgraph=True, backend="aot_eager")), buffers, strict=True):
        hidden = p.hidden.clone().requires_grad_()
        function(hidden, p.lm_head.clone().requires_grad_(), buffer).backward()
        gradients.append(hidden.grad)
    assert_gradient_close(buffers[1], buffers[0].double(), precision=torch.float32)
    assert_gradient_close(gradients[1], gradients[0].double(), precision=torch.float32)


@pytest.mark.parametrize(
    ("main_grad", "frozen", "error", "words"),
    [
        (torch.zeros(8, 20), False, ValueError, r"main_grad: expected \[20, 8\] like lm_head, got \[8, 20\]"),
        (torch.zeros(20, 8).bfloat16(), False, TypeError, "main_grad: expected torch.float32, got torch.bfloat16"),
        (torch.zeros(20, 8, requires_grad=True), False, ValueError, "main_grad requires a gradient"),
        (torch.zeros(20, 8), True, ValueError, "main_grad was given, but lm_head is frozen"),
    ],
)
def test_buffers_that_cannot_hold_the_gradient(
    main_grad: torch.Tensor, frozen: bool, error: type[Exception], words: str
) -> None:
    p = make_problem(9, 8, 20, torch.float32)
    with pytest.raises(error, match=words):
        weighted_ce(p.hidden, p.lm_head.requires_grad_(not frozen), p.labels, main_grad=main_grad)
