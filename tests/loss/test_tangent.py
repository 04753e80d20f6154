"""The forward KL from one vector a token, against the plain formula with both models' full logits in float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdss import dss_loss, forward_reference
from fastdss.loss.functional import DSSLossOutput, ForwardReference, live_rows
from tests.support.loss_cases import SHAPES, Problem, check_values, make_problem, truth
from tests.support.numerics import assert_gradient_close, assert_tokens_close

OPTIONS: list[dict[str, Any]] = [{}, {"label_smoothing": 0.1, "z_loss": 1e-3, "logit_scale": 0.7}]


def reference(p: Problem, dtype: torch.dtype | None = None, **options: Any) -> ForwardReference:
    return forward_reference(p.ref_hidden, p.lm_head, p.labels, bias=p.bias, dtype=dtype, **options)


def run(p: Problem, known: ForwardReference, upstream: Tensor | None = None, **options: Any) -> tuple[Any, Tensor]:
    hidden = p.hidden.detach().clone().requires_grad_()
    given = {"ref_slope": known.slope, "ref_offset": known.offset, "bias": p.bias} | options
    loss = dss_loss(hidden, p.lm_head, p.labels, p.star, kl="forward", **given)
    return loss, torch.autograd.grad(loss.loss, hidden, upstream)[0]


def shared_truth(p: Problem, **options: Any) -> Any:
    """The plain formula, the reference's head the policy's own; its bias as one more column of the head."""
    with_bias = {
        "ref_hidden": torch.cat([p.ref_hidden, torch.ones_like(p.ref_hidden[:, :1])], 1),
        "ref_lm_head": torch.cat([p.lm_head, p.bias[:, None]], 1),
    }
    return truth(replace(p, **with_bias), "forward", **options)


def assert_same(found: tuple[DSSLossOutput, Tensor], expected: Any, precision: torch.dtype, **margin: Any) -> None:
    loss, d_hidden = found
    check_values(loss, expected.loss, precision=precision)
    assert_gradient_close(d_hidden, expected.d_hidden, precision=precision, **margin)


@pytest.mark.parametrize("chunk_bytes", [None, 4 * 1024 * 3], ids=["kept", "chunks"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("options", OPTIONS, ids=["plain", "smoothed and scaled"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])
@pytest.mark.parametrize("shape", SHAPES)
def test_against_the_full_logits_of_both(
    shape: tuple[int, int, int], dtype: torch.dtype, options: dict[str, Any], reduction: str, chunk_bytes: int | None
) -> None:
    p = make_problem(*shape, dtype)
    upstream = torch.linspace(-1, 2, shape[0]).to(dtype) if reduction == "none" else torch.tensor(-1.5).to(dtype)
    scale = {name: value for name, value in options.items() if name == "logit_scale"}
    found = run(p, reference(p, **scale), upstream, reduction=reduction, chunk_bytes=chunk_bytes, **options)
    assert_same(found, shared_truth(p, upstream=upstream, reduction=reduction, **options), dtype)


@pytest.mark.parametrize("way", ["live rows", "all rows", "divided", "kl_scale", "grad_tol", "a row at a time"])
def test_other_ways(way: str) -> None:
    p = make_problem(33, 48, 130, torch.float64)
    options: dict[str, Any] = {
        "live rows": {"rows": live_rows(p.labels, p.star, kl_scale=0.5)},
        "all rows": {"compact": False},
        "divided": {"num_items_in_batch": 7},
        "kl_scale": {"kl_scale": 2.0},
        "grad_tol": {"grad_tol": 1e-12},
        "a row at a time": {"chunk_bytes": 1},
    }[way]
    same = {name: options[name] for name in ("num_items_in_batch", "kl_scale") if name in options}
    assert_same(run(p, reference(p), **options), shared_truth(p, **same), torch.float64)


def test_shifted_rows_of_a_batch() -> None:
    """[B, T] with shift: position t of the batch's columns belongs to the label there, predicted by hidden[t - 1]."""
    p = make_problem(12, 16, 40, torch.float64)
    flat_labels = p.labels.view(2, 6)
    known = forward_reference(p.ref_hidden.view(2, 6, 16), p.lm_head, flat_labels, bias=p.bias, shift=True)
    assert known.slope.shape == (2, 6, 16)
    moved = [torch.nn.functional.pad(t[:, :-1], (*(0, 0) * (t.dim() - 2), 1, 0)) for t in known]
    hidden = p.hidden.view(2, 6, 16).clone().requires_grad_()
    star = p.star.view(2, 6)
    loss = dss_loss(hidden, p.lm_head, flat_labels, star, kl="forward", bias=p.bias, shift=True,
                    ref_slope=moved[1], ref_offset=moved[2])  # fmt: skip
    loss.loss.backward()
    pairs = [(row * 6 + t, row * 6 + t + 1) for row in range(2) for t in range(5)]
    at, label = (torch.tensor(side) for side in zip(*pairs, strict=True))
    chosen = replace(p, hidden=p.hidden[at], ref_hidden=p.ref_hidden[at], labels=p.labels[label], star=p.star[label])
    expected = shared_truth(chosen)
    assert_tokens_close(loss.loss.detach(), expected.loss.loss, precision=torch.float64)
    assert_gradient_close(hidden.grad.view(12, 16)[at], expected.d_hidden, precision=torch.float64)


@pytest.mark.parametrize("chunk_bytes", [None, 4 * 160 * 3], ids=["kept", "chunks"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_sixteen_bit(dtype: torch.dtype, chunk_bytes: int | None) -> None:
    """Values as exact as in fp32. The gradient errs by the rounding of E (of dZ in fp16) and of the CPU's product with
    the head, a share of the cross-entropy's gradient, not of the KL's, and once more by its own, which is of the sum:
    the slope is taken off before. Independent errors, so their squares add up; shares measured for 12 seeds: 1.14e-3
    (at most 1.28e-3) and 2.3e-4 (2.5e-4). A sum that was rounded before the slope is taken off errs by 1.9e-3."""
    p = make_problem(65, 48, 130, dtype)
    noise = torch.randn(65, 48, generator=torch.Generator().manual_seed(1)).double()
    p = replace(p, ref_hidden=(p.hidden.double() + 0.02 * noise).to(dtype))
    loss, d_hidden = run(p, reference(p), chunk_bytes=chunk_bytes)
    expected = shared_truth(p)
    check_values(loss, expected.loss, precision=torch.float32)
    plain = truth(replace(p, star=p.star + (1 - p.star) * 0.5), "k1", kl_scale=0.0)
    cast = (expected.d_hidden.to(dtype).double() - expected.d_hidden).norm()
    share = 1.35e-3 if dtype == torch.bfloat16 else 2.6e-4
    assert (d_hidden.double() - expected.d_hidden).norm() < torch.hypot(cast, share * plain.d_hidden.norm())


def test_under_autocast_the_hidden_states_count_as_the_products_read_them() -> None:
    p = make_problem(33, 48, 130, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, d_hidden = run(p, reference(p))
    rounded = replace(p, **{n: getattr(p, n).bfloat16().float() for n in ("hidden", "ref_hidden", "lm_head")})
    expected = shared_truth(rounded)
    assert_tokens_close(loss.token_kl, expected.loss.token_kl, precision=torch.float32)
    assert (d_hidden.double() - expected.d_hidden).norm() < 4e-3 * expected.d_hidden.norm()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_rounded_slope_leaves_the_kl_zero_where_the_policy_is_the_reference(dtype: torch.dtype) -> None:
    p = make_problem(33, 48, 130, torch.float32)
    p = replace(p, ref_hidden=p.hidden)
    known = reference(p, dtype)
    assert known.slope.dtype == dtype
    loss, _ = run(p, known)
    assert loss.token_kl.abs().max() < 1e-5
    assert not torch.equal(known.slope.float(), reference(p).slope)


def test_micro_batches_add_up() -> None:
    p = make_problem(34, 48, 130, torch.float64)
    known = reference(p)
    _, whole = run(p, known, num_items_in_batch=9)
    halves = []
    for part in (slice(0, 17), slice(17, 34)):
        rows = replace(p, **{n: getattr(p, n)[part] for n in ("hidden", "labels", "star", "ref_hidden")})
        halves.append(run(rows, ForwardReference(*(t[part] for t in known)), num_items_in_batch=9)[1])
    assert torch.allclose(torch.cat(halves), whole, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_compiled(reduction: str) -> None:
    p = make_problem(17, 16, 40, torch.float64)
    known = reference(p)

    @torch.compile(backend="aot_eager", fullgraph=True)
    def compiled(hidden: Tensor) -> Tensor:
        loss: Tensor = dss_loss(
            hidden, p.lm_head, p.labels, p.star, kl="forward", bias=p.bias, reduction=reduction,
            ref_slope=known.slope, ref_offset=known.offset,
        ).loss  # fmt: skip
        return loss

    hidden = p.hidden.clone().requires_grad_()
    upstream = torch.linspace(-1, 2, 17).double() if reduction == "none" else None
    found = torch.autograd.grad(compiled(hidden), hidden, upstream)[0]
    expected = shared_truth(p, upstream=upstream, reduction=reduction)
    assert_gradient_close(found, expected.d_hidden, precision=torch.float64)


def test_nan_where_nothing_counts_has_no_effect() -> None:
    p = make_problem(33, 48, 130, torch.float64)
    known = reference(p)
    expected = run(p, known)
    unused = (p.labels == -100) | (p.star == 1)
    known = ForwardReference(known.logprobs, *(t.clone() for t in known[1:]))
    known.slope[unused], known.offset[unused] = torch.nan, torch.nan
    for compact in (True, False):
        loss, d_hidden = run(p, known, compact=compact)
        assert loss.loss.item() == pytest.approx(expected[0].loss.item(), abs=1e-12)
        assert torch.allclose(d_hidden, expected[1], rtol=1e-12, atol=1e-15)
    ref_hidden = p.ref_hidden.masked_fill((p.labels == -100).unsqueeze(1), torch.nan)
    assert torch.equal(reference(replace(p, ref_hidden=ref_hidden)).slope, reference(p).slope)


def test_another_head_is_told_by_a_kl_below_zero() -> None:
    p = make_problem(33, 48, 130, torch.float32)
    known = reference(p)
    other = replace(p, lm_head=p.lm_head.flip(0).contiguous())
    with pytest.raises(ValueError, match=r"ref_slope\[\d+\].* below 0, .* make the reference anew"):
        run(other, known)

    @torch.compile(backend="aot_eager")
    def compiled(hidden: Tensor) -> Tensor:
        given = {"ref_slope": known.slope, "ref_offset": known.offset, "bias": p.bias}
        loss: Tensor = dss_loss(hidden, other.lm_head, p.labels, p.star, kl="forward", **given).loss
        return loss

    assert compiled(p.hidden).isnan(), "where no check can wait, the loss tells"


def test_what_is_refused() -> None:
    p = make_problem(9, 8, 24, torch.float32)
    known = reference(p)
    given: dict[str, Any] = {"kl": "forward", "ref_slope": known.slope, "ref_offset": known.offset}

    def loss(head: Tensor = p.lm_head, **changed: Any) -> None:
        dss_loss(p.hidden, head, p.labels, p.star, **(given | changed))

    with pytest.raises(ValueError, match=r"lm_head requires a gradient, .* freeze it .* or .* ref_hidden"):
        loss(p.lm_head.clone().requires_grad_())
    with pytest.raises(ValueError, match="bias requires a gradient"):
        loss(bias=p.bias.clone().requires_grad_())
    with pytest.raises(ValueError, match=r"softcap=30\.0: .* linear in the hidden states"):
        loss(softcap=30.0)
    with pytest.raises(ValueError, match=r"softcap=30\.0: .* linear in the hidden states"):
        reference(p, softcap=30.0)
    with pytest.raises(ValueError, match="kl='k2': ref_slope serves the forward KL alone"):
        loss(kl="k2")
    with pytest.raises(ValueError, match="ref_slope needs ref_offset"):
        loss(ref_offset=None)
    with pytest.raises(ValueError, match="either as ref_logprobs, or as ref_hidden"):
        loss(ref_logprobs=p.ref_logprobs)
    with pytest.raises(ValueError, match=r"ref_slope: expected \[9, 8\] with ref_offset \[9\], got \[9, 7\]"):
        loss(ref_slope=known.slope[:, 1:])
    with pytest.raises(ValueError, match="ref_logit_scale and ref_softcap: expected none"):
        loss(ref_logit_scale=2.0)
    with pytest.raises(TypeError, match=r"ref_slope: expected a floating dtype, got torch\.int64"):
        loss(ref_slope=known.slope.long())
