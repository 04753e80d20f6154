"""How the losses stand with the rest of torch.autograd: kept graphs, checkpoints, transforms, symbolic shapes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fastdss import dss_loss, token_logprobs, weighted_ce
from tests.support.loss_cases import make_problem, reference_arguments
from tests.support.numerics import assert_gradient_close

P = make_problem(9, 6, 11, torch.float32)
FORMS = ["k2", "reverse"]  # an autograd Function that keeps exponentials, and ops that hold finished gradients


def leaves() -> list[Tensor]:
    return [P.hidden.clone().requires_grad_(), P.lm_head.clone().requires_grad_()]


def loss_of(hidden: Tensor, head: Tensor, kl: str, **options: Any) -> Tensor:
    return dss_loss(hidden, head, P.labels, P.star, kl=kl, **reference_arguments(P, kl), **options).loss


@pytest.mark.parametrize("kl", FORMS)
def test_backward_again_after_the_gradients_were_written_to(kl: str) -> None:
    """A gradient that autograd puts into ``.grad`` belongs to the user: clipping it must not change the next one."""
    given = leaves()
    loss = loss_of(*given, kl)
    expected = torch.autograd.grad(loss, given, retain_graph=True)
    for _ in range(2):
        loss.backward(retain_graph=True)
        for leaf in given:
            assert leaf.grad is not None
            leaf.grad.mul_(0)
    loss.backward()
    for leaf, true in zip(given, expected, strict=True):
        assert_gradient_close(leaf.grad, true.double(), precision=torch.float32)


@pytest.mark.parametrize("kl", FORMS)
@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("buffered", [True, False])
def test_within_a_checkpoint(kl: str, reentrant: bool, buffered: bool) -> None:
    results = []
    for within in (False, True):
        given = leaves()
        main_grad = torch.zeros(11, 6) if buffered else None
        step = partial(loss_of, kl=kl, main_grad=main_grad)
        (checkpoint(step, *given, use_reentrant=reentrant) if within else step(*given)).backward()
        results.append([given[0].grad, given[1].grad if main_grad is None else main_grad])
    for got, true in zip(*results, strict=True):
        assert torch.equal(got, true)


@pytest.mark.parametrize("kl", FORMS)
def test_transforms_are_refused(kl: str) -> None:
    """jvp would find a derivative of 0, in silence: torch does not ask an op for one."""

    def of_hidden(hidden: Tensor) -> Tensor:
        return loss_of(hidden, P.lm_head, kl)

    calls: list[Callable[[], Any]] = [
        lambda: torch.func.grad(of_hidden)(P.hidden),
        lambda: torch.func.vmap(of_hidden)(P.hidden[None]),
        lambda: torch.func.jvp(of_hidden, (P.hidden,), (P.hidden,)),
        lambda: torch.func.jacfwd(of_hidden)(P.hidden),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"neither transforms of torch\.func"):
            call()
    with torch.autograd.forward_ad.dual_level(), pytest.raises(ValueError, match="nor forward mode"):
        of_hidden(torch.autograd.forward_ad.make_dual(P.hidden, P.hidden))


def test_compiled_with_symbolic_shapes_and_numbers() -> None:
    """dynamic=True makes the default values of options symbolic too, and a number that changes becomes so."""

    def step(hidden: Tensor, labels: Tensor, scale: float, cap: float | None) -> Tensor:
        return (
            weighted_ce(hidden, P.lm_head, labels, logit_scale=scale, softcap=cap, z_loss=0.1)
            + token_logprobs(hidden, P.lm_head, labels, logit_scale=scale).sum()
        )

    for dynamic in (True, None):
        torch._dynamo.reset()
        compiled = torch.compile(step, fullgraph=True, backend="eager", dynamic=dynamic)
        for count, scale, cap in ((5, 0.5, 8.0), (9, 0.1, 0.3), (3, 1 / 3, None)):
            given = P.hidden[:count], P.labels[:count], scale, cap
            assert torch.equal(compiled(*given), step(*given))
