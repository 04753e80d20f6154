"""Fifty optimiser steps beside eager autograd: errors that each step hides must not add up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from fastdss import dss_loss
from tests.support.loss_cases import KLS, make_problem

Loss = Callable[..., Tensor]


def eager(hidden: Tensor, head: Tensor, labels: Tensor, star: Tensor, kl: str, reference: dict[str, Tensor]) -> Tensor:
    """The definition, with autograd through whole logits."""
    counts = labels != -100
    logp = log_softmax(hidden @ head.T, 1)
    at_label = logp.gather(1, labels.clamp(min=0)[:, None])[:, 0]
    ref = log_softmax(reference["ref_hidden"] @ reference["ref_lm_head"].T, 1)
    if kl in ("reverse", "forward"):
        first, second = (logp, ref) if kl == "reverse" else (ref, logp)
        token_kl = (first.exp() * (first - second)).sum(1)
    else:
        d = at_label - ref.gather(1, labels.clamp(min=0)[:, None])[:, 0]
        token_kl = {"k1": d, "k2": d**2 / 2, "k3": torch.exp(-d) - 1 + d}[kl]
    return ((star * -at_label + (1 - star) * 0.5 * token_kl) * counts).sum() / counts.sum()


def fused(hidden: Tensor, head: Tensor, labels: Tensor, star: Tensor, kl: Any, reference: dict[str, Tensor]) -> Tensor:
    return dss_loss(hidden, head, labels, star, kl=kl, chunk_bytes=20_000, **reference).loss


def trajectory(loss: Loss, kl: str, device: str, dtype: torch.dtype) -> Tensor:
    """The losses of 50 steps, and then the head and the states that they led to."""
    p = make_problem(33, 16, 130, dtype)
    states, head = (torch.nn.Parameter(tensor.to(device)) for tensor in (p.hidden, p.lm_head))
    ref_hidden, ref_head = p.ref_hidden.to(device), p.ref_lm_head.to(device)
    optimiser = torch.optim.SGD([states, head], lr=0.5, momentum=0.9)
    losses = []
    for step in range(50):
        rows = torch.arange(step % 3, 33, 1 + step % 2, device=device)
        reference = {"ref_hidden": ref_hidden[rows], "ref_lm_head": ref_head}
        value = loss(states[rows], head, p.labels.to(device)[rows], p.star.to(device, dtype)[rows], kl, reference)
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        losses.append(value.detach())
    return torch.cat([torch.stack(losses), head.detach().flatten(), states.detach().flatten()]).cpu()


@pytest.mark.parametrize("kl", KLS)
def test_fifty_steps_are_eagers(kl: str) -> None:
    expected = trajectory(eager, kl, "cpu", torch.float64)
    found = trajectory(fused, kl, "cpu", torch.float64)
    assert (expected[0] - expected[49]).abs() > 0.1, "it learns"
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA or ROCm device; there is none here")
@pytest.mark.parametrize("kl", KLS)
def test_fifty_steps_are_eagers_on_a_gpu(kl: str) -> None:
    expected = trajectory(eager, kl, "cuda", torch.float64)
    torch.testing.assert_close(trajectory(fused, kl, "cuda", torch.float32).double(), expected, rtol=1e-3, atol=1e-3)


def test_a_gradient_that_is_a_thousandth_off_leaves_the_path() -> None:
    def slightly_wrong(*given: Any) -> Tensor:
        value = fused(*given)
        return value + 1e-3 * (value - value.detach())

    expected = trajectory(eager, "k2", "cpu", torch.float64)
    found = trajectory(slightly_wrong, "k2", "cpu", torch.float64)
    assert (found - expected).abs().max() > 1e-4
