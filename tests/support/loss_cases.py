"""Random problems, and their truth: the definitions of oracle.py, differentiated in float64."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fastdss import dss_loss, weighted_ce
from fastdss.loss.functional import DSSLossOutput
from fastdss.loss.objective import Objective, RowInputs
from tests.support.numerics import assert_gradient_close, assert_tokens_close
from tests.support.oracle import oracle_stats, oracle_terms

# (N, D, V): one row, an odd width; a prime vocabulary; several chunks, no power of two; a vocabulary of several blocks.
SHAPES = [(1, 16, 17), (7, 24, 67), (33, 48, 130), (17, 96, 1000)]
KLS = ["k1", "k2", "k3", "reverse", "forward"]


@dataclass(frozen=True)
class Problem:
    hidden: Tensor  # [N, D]
    lm_head: Tensor  # [V, D]
    bias: Tensor  # [V]
    labels: Tensor  # [N], some ignored
    star: Tensor  # [N], some 0 and some 1
    ref_hidden: Tensor  # [N, D]
    ref_lm_head: Tensor  # [V, D]
    ref_logprobs: Tensor  # [N]

    def double(self) -> Problem:
        tensors = {k: v.detach().double() if v.is_floating_point() else v for k, v in vars(self).items()}
        return replace(self, **tensors)


def make_problem(n: int, d: int, v: int, dtype: torch.dtype, seed: int = 0) -> Problem:
    """Peaked logits like a trained model's (standard deviation 3), a reference that is close to the policy."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(*shape, generator=generator, dtype=torch.float64) * scale).to(dtype)

    hidden, lm_head = normal(n, d), normal(v, d, scale=3 / d**0.5)
    labels = torch.randint(0, v, (n,), generator=generator)
    labels[5::7] = -100
    star = torch.rand(n, generator=generator)
    star[1::6], star[2::6] = 0, 1
    return Problem(
        hidden,
        lm_head,
        normal(v, scale=0.3),
        labels,
        star,
        hidden + normal(n, d, scale=0.1),
        lm_head + normal(v, d, scale=0.02),
        -torch.rand(n, generator=generator) * 9,
    )


def reference_arguments(problem: Problem, kl: str) -> dict[str, Tensor]:
    if kl in ("reverse", "forward"):
        return {"ref_hidden": problem.ref_hidden, "ref_lm_head": problem.ref_lm_head}
    return {"ref_logprobs": problem.ref_logprobs}


@dataclass(frozen=True)
class Outcome:
    loss: DSSLossOutput
    d_hidden: Tensor
    d_head: Tensor
    d_bias: Tensor


def run(problem: Problem, kl: str, upstream: Tensor | None = None, **options: Any) -> Outcome:
    """fastdss on the problem; ``upstream`` goes with reduction="none"."""
    leaves = [t.detach().clone().requires_grad_() for t in (problem.hidden, problem.lm_head, problem.bias)]
    reference = reference_arguments(problem, kl)
    loss = dss_loss(*leaves[:2], problem.labels, problem.star, bias=leaves[2], kl=kl, **reference, **options)
    return Outcome(loss, *torch.autograd.grad(loss.loss, leaves, upstream))


def check_ruled_out_where_the_kl_does_not_count(**options: Any) -> None:
    """KL(p || q) is infinite in every row; times a weight of 0 it is 0, in the gradients too, not 0 * inf = NaN."""
    p = make_problem(17, 24, 67, torch.float64)
    ref_bias = torch.zeros(67).double()
    ref_bias[3] = -torch.inf
    leaves = [t.clone().requires_grad_() for t in (p.hidden, p.lm_head)]
    options |= {"kl": "reverse", "ref_hidden": p.ref_hidden, "ref_lm_head": p.ref_lm_head, "ref_bias": ref_bias}
    shaped = dss_loss(*leaves, p.labels, torch.ones(17), **options)
    plain = weighted_ce(*leaves, p.labels)
    assert_tokens_close(shaped.loss.detach(), plain.detach(), precision=torch.float64)
    for got, expected in zip(*(torch.autograd.grad(loss, leaves) for loss in (shaped.loss, plain)), strict=True):
        assert_gradient_close(got, expected, precision=torch.float64)
    assert dss_loss(*leaves, p.labels, torch.zeros(17), **options).loss.isposinf()


def truth(
    problem: Problem,
    kl: str,
    *,
    upstream: Tensor | None = None,
    kl_scale: float = 0.5,
    reduction: str = "mean",
    num_items_in_batch: float | None = None,
    **objective: Any,
) -> Outcome:
    """The same by the definitions, in float64."""
    p = problem.double()
    leaves = [t.clone().requires_grad_() for t in (p.hidden, p.lm_head, p.bias)]
    counts = p.labels != -100
    ce_weight = torch.where(counts, p.star, 0)
    kl_weight = torch.where(counts, (1 - p.star) * kl_scale, 0)
    scale, cap = objective.get("logit_scale", 1.0), objective.get("softcap")
    spec = Objective(kl, **({"ref_logit_scale": scale, "ref_softcap": cap} | objective))
    rows = RowInputs(p.labels, ce_weight, kl_weight, p.ref_logprobs)
    raw = leaves[0] @ leaves[1].T + leaves[2]
    ce, kl_term = oracle_terms(raw, rows, spec, raw_ref=p.ref_hidden @ p.ref_lm_head.T)
    parts = [ce_weight * ce, kl_weight * kl_term]
    if reduction != "none":
        items = 1.0 if reduction == "sum" else num_items_in_batch or max(int(counts.sum()), 1)
        parts = [part.sum() / items for part in parts]
    loss = parts[0] + parts[1]
    gradients = torch.autograd.grad(loss, leaves, None if upstream is None else upstream.double())
    told = oracle_stats(raw.detach(), rows, spec)
    return Outcome(DSSLossOutput(loss.detach(), *(t.detach() for t in (*parts, ce, kl_term)), *told), *gradients)


def check_values(actual: DSSLossOutput, expected: DSSLossOutput, *, precision: torch.dtype) -> None:
    """Every field of a loss, where it is given: what was not asked for is None."""
    assert (actual.token_entropy is None) == (actual.token_correct is None)
    for field, got in actual._asdict().items():
        if field == "token_correct" and got is not None:
            assert got.dtype == torch.bool
            assert torch.equal(got, expected.token_correct)
        elif got is not None:
            assert_tokens_close(got.detach(), getattr(expected, field), precision=precision, name=field)
        else:
            assert field in ("token_entropy", "token_correct")
