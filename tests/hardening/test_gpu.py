"""Kernels on a GPU under other circumstances: types, strides, streams, devices, and the same again a thousand times."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdss import dss_loss
from fastdss.prefix.packed_attention import attend_by_kernel
from tests.star.test_gpu import attended
from tests.support.loss_cases import Problem, make_problem, reference_arguments

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA or ROCm device; there is none here"),
]
DEVICE = "cuda"


def on(device: str, problem: Problem) -> Problem:
    return replace(problem, **{name: tensor.to(device) for name, tensor in vars(problem).items()})


def gradients(p: Problem, kl: Any) -> list[Tensor]:
    """The loss and its three gradients, from the tensors as they lie in memory."""
    leaves = [tensor.detach().requires_grad_() for tensor in (p.hidden, p.lm_head, p.bias)]
    loss = dss_loss(*leaves[:2], p.labels, p.star, bias=leaves[2], kl=kl, **reference_arguments(p, kl)).loss
    return [loss.detach(), *torch.autograd.grad(loss, leaves)]


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def case(dtype: torch.dtype = torch.bfloat16) -> Problem:
    """Each label once: two rows of one label would add to dW in no fixed order."""
    problem = make_problem(33, 24, 1031, dtype)
    return on(DEVICE, replace(problem, labels=torch.arange(33) * 31))


def spread(x: Tensor) -> Tensor:
    """Every other element of a tensor twice as wide whose gaps are NaN."""
    wide = torch.full((*x.shape[:-1], 2 * x.shape[-1]), torch.nan).to(x) if x.is_floating_point() else x.repeat(2)
    wide[..., ::2] = x
    return wide[..., ::2]


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda x: x.mT.contiguous().mT if x.dim() > 1 else x,
    "strided": spread,
    "offset": lambda x: torch.cat([x[:1], x])[1:],
}


@pytest.mark.parametrize("kl", ["k2", "reverse", "forward"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_strides_do_not_matter(layout: str, dtype: torch.dtype, kl: str) -> None:
    """Within the roundings of a GEMM that reads the other way round; a gap that is read is NaN."""
    problem = case(dtype)
    moved = replace(problem, **{name: LAYOUTS[layout](tensor) for name, tensor in vars(problem).items()})
    rtol = 1e-5 if dtype == torch.float32 else 1e-2
    for found, expected in zip(gradients(moved, kl), gradients(problem, kl), strict=True):
        assert (found - expected).norm() <= rtol * expected.norm()


@pytest.mark.parametrize("kl", ["k2", "reverse"])
def test_a_stream_of_its_own(kl: str) -> None:
    """Inputs that arrive late on that stream: a kernel launched on another would read what is not there yet."""
    problem = case()
    expected = gradients(problem, kl)
    late = replace(problem, hidden=torch.full_like(problem.hidden, torch.nan))
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(100_000_000)
        late.hidden.copy_(problem.hidden)
        found = gradients(late, kl)
    torch.cuda.synchronize()
    assert same(found, expected)


def test_attention_on_a_stream_of_its_own() -> None:
    expected = attended(attend_by_kernel, torch.bfloat16)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(100_000_000)
        found = attended(attend_by_kernel, torch.bfloat16)
    torch.cuda.synchronize()
    assert torch.equal(found, expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two devices")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_device_of_the_tensors_not_the_current_one(layout: str, dtype: torch.dtype) -> None:
    problem = case(dtype)
    expected = gradients(problem, "reverse")
    there = on("cuda:1", problem)
    there = replace(there, **{name: LAYOUTS[layout](tensor) for name, tensor in vars(there).items()})
    assert torch.cuda.current_device() == 0
    found = gradients(there, "reverse")
    assert {tensor.device.index for tensor in found} == {1}
    for a, b in zip(found, expected, strict=True):
        assert (a.to(DEVICE) - b).norm() <= (1e-5 if dtype == torch.float32 else 1e-2) * b.norm()


@pytest.mark.parametrize("kl", ["reverse", "forward"])
def test_a_thousand_reruns_of_the_full_kl(kl: str) -> None:
    problem = case()
    first = gradients(problem, kl)
    assert all(same(gradients(problem, kl), first) for _ in range(1000))


def test_a_thousand_reruns_of_the_attention() -> None:
    first = attended(attend_by_kernel, torch.bfloat16)
    assert all(torch.equal(attended(attend_by_kernel, torch.bfloat16), first) for _ in range(1000))
