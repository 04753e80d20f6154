"""The kernel that makes exponentials, in the interpreter: against float64, and rows whose guess was too low."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from fastdss.kernels.exponentials import launch_exponentials_fwd
from torch import Tensor

from fastdss import dss_loss, forward_reference
from tests.support.loss_cases import make_problem, run, truth
from tests.support.numerics import assert_gradient_close, assert_tokens_close

# One row; a width below a block; several blocks and a rest; a block more than the width.
SHAPES = [(1, 17, 16), (5, 60, 64), (7, 130, 32), (3, 1000, 256)]


def _run(logits: Tensor, labels: Tensor, out: Tensor | None, block: int, softcap: float | None = None,
         bias: Tensor | None = None, scale: float = 1.0) -> tuple[Tensor, ...]:  # fmt: skip
    sums = torch.full((6, logits.shape[0]), torch.nan, dtype=logits.dtype)
    launch_exponentials_fwd(
        logits, out, labels, *sums[:3], sums[3] if softcap else None, *sums[4:], bias=bias, scale=scale,
        softcap=softcap, config=(block, 4),
    )  # fmt: skip
    return tuple(sums)


def _check(raw: Tensor, labels: Tensor, out: Tensor | None, sums: tuple[Tensor, ...], tolerance: float) -> None:
    """raw: the logits in float64. p of what is not the label, from the stored matrix, and the sums."""
    mine = (labels >= 0) & (labels < raw.shape[1])
    without = raw.masked_fill(torch.arange(raw.shape[1]) == labels[:, None], -torch.inf)
    torch.testing.assert_close(sums[1].double(), without.logsumexp(1), rtol=1e-6, atol=2e-6)
    label_logit = raw.gather(1, labels.clamp(0, raw.shape[1] - 1)[:, None])[:, 0]
    torch.testing.assert_close(sums[0].double(), torch.where(mine, label_logit, 0), rtol=1e-6, atol=1e-6)
    entropy = torch.special.entr(without.softmax(1)).sum(1)
    torch.testing.assert_close(sums[4].double(), entropy, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sums[5].double(), without.amax(1), rtol=1e-6, atol=1e-6)
    if out is not None:
        got = out.double() / sums[2].double()[:, None]
        torch.testing.assert_close(got, without.softmax(1), rtol=tolerance, atol=1e-7)
        assert not out[mine, labels[mine]].any()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("where", ["apart", "in place", "nowhere"])
def test_shapes(shape: tuple[int, int, int], dtype: torch.dtype, where: str) -> None:
    """Ragged widths; labels of this rank, of others on both sides, and where the last block is padding."""
    rows, width, block = shape
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(rows, width, generator=generator) * 3).to(dtype)
    labels = torch.tensor([3, -1, width, width + 2, 0, width - 1, 5])[:rows]
    raw, out = logits.double().clone(), None
    if where != "nowhere":
        out = logits if where == "in place" else torch.full_like(logits, torch.nan)
    _check(raw, labels, out, _run(logits, labels, out, block), 1e-5 if dtype == torch.float32 else 1e-7)


@pytest.mark.parametrize("gap", [0.0, 40.0, 90.0, 3000.0])
def test_a_row_whose_guess_was_too_low_is_read_again(gap: float) -> None:
    """fp16 stands for bf16 as to the store; the gap is what the largest logit is above the label."""
    logits = torch.randn(4, 200)
    labels = torch.tensor([0, 150, 7, 199])
    logits[torch.arange(4), labels] -= gap
    out = torch.full_like(logits, torch.nan)
    sums = _run(logits.clone(), labels, out, 64)
    _check(logits.double(), labels, out, sums, 1e-4)
    assert bool((sums[2] <= 2.0**60).all())


def test_a_row_whose_guess_was_too_high_is_read_again() -> None:
    """Label 0 is above all other words by as much as fp32 has no digits for; the first block of row 1, whose label
    another rank holds, is ruled out, and nothing but words far below it is left."""
    logits = torch.randn(2, 200)
    labels = torch.tensor([20, -1])
    logits[0, 20], logits[1] = 100.0, logits[1] - 200
    logits[1, :64] = -torch.inf
    out = torch.full_like(logits, torch.nan)
    _check(logits.double(), labels, out, _run(logits.clone(), labels, out, 64), 1e-4)


def test_impossible_labels_and_tokens() -> None:
    logits = torch.randn(2, 50)
    bias = torch.zeros(50)
    bias[9] = -torch.inf
    out = torch.full_like(logits, torch.nan)
    label_logit, others, total, _, entropy, _ = _run(logits, torch.tensor([9, 3]), out, 16, bias=bias)
    assert label_logit[0] == -torch.inf
    without = (logits + bias).double()
    without[1, 3] = -torch.inf
    torch.testing.assert_close(others.double(), without.logsumexp(1), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(entropy.double(), torch.special.entr(without.softmax(1)).sum(1), rtol=1e-5, atol=1e-5)
    assert not out[:, 9].any()
    assert bool(total.isfinite().all())


def test_a_softcap_multiplies_what_is_stored_and_not_the_sum() -> None:
    raw = torch.randn(3, 70, dtype=torch.float64) * 4
    labels, out = torch.tensor([1, 69, 30]), torch.full((3, 70), torch.nan, dtype=torch.float64)
    _, others, total, slope, entropy, rival = _run(raw.clone(), labels, out, 32, softcap=5.0, scale=0.7)
    z = 5 * torch.tanh(raw * 0.7 / 5)
    without = z.masked_fill(torch.arange(70) == labels[:, None], -torch.inf)
    torch.testing.assert_close(others, without.logsumexp(1), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(entropy, torch.special.entr(without.softmax(1)).sum(1), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(rival, without.amax(1), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(out / total[:, None], without.softmax(1) * (1 - (z / 5) ** 2), rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(slope, (1 - (z / 5) ** 2).gather(1, labels[:, None])[:, 0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("softcap", [30.0, 1e3, 1e6])
def test_a_wide_softcap_keeps_the_digits_of_small_logits(softcap: float) -> None:
    """The logits are all but unchanged then: an error of the softcap's size would be one of many nats."""
    logits = torch.randn(4, 50) * 3
    z = softcap * torch.tanh(logits.double() / softcap)
    label_logit, others, *_ = _run(logits, torch.full((4,), 3), None, 16, softcap=softcap)
    without = z.masked_fill(torch.arange(50) == 3, -torch.inf)
    torch.testing.assert_close(label_logit.double(), z[:, 3], rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(others.double(), without.logsumexp(1), rtol=2e-6, atol=2e-6)


def test_a_nan_is_not_hidden() -> None:
    logits = torch.randn(2, 40)
    logits[0, 20] = torch.nan
    _, others, *_ = _run(logits, torch.tensor([1, 1]), torch.empty_like(logits), 16)
    assert others.isnan().tolist() == [True, False]


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_what_is_returned_may_be_written_to(reduction: str) -> None:
    """Backward needs none of it, also where no row is left out and nothing was copied."""
    p = make_problem(9, 16, 17, torch.float32)
    p = replace(p, labels=p.labels.clamp(min=0), star=p.star.clamp(0.1, 0.9))
    gradients = []
    for write in (False, True):
        leaves = [t.clone().requires_grad_() for t in (p.hidden, p.lm_head)]
        loss = dss_loss(
            *leaves, p.labels, p.star, ref_logprobs=p.ref_logprobs, backend="triton", reduction=reduction,
            token_stats=True,
        )  # fmt: skip
        for told in (loss.ce, loss.kl, loss.token_ce, loss.token_kl, loss.token_entropy):
            assert told is not None
            told.mul_(0 if write else 1)
        gradients.append(torch.autograd.grad(loss.loss.sum(), leaves))
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert all(gradient.any() for gradient in gradients[1])


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("chunk_bytes", [None, 4 * 1024 * 3], ids=["kept", "chunks"])
def test_the_loss_on_it(reduction: str, chunk_bytes: int | None) -> None:
    problem = make_problem(17, 24, 1000, torch.float32)
    upstream = torch.randn(17) if reduction == "none" else None
    options = {"reduction": reduction, "softcap": 8.0}
    actual = run(problem, "k3", upstream, backend="triton", chunk_bytes=chunk_bytes, **options)
    expected = truth(problem, "k3", upstream=upstream, **options)
    assert_tokens_close(actual.loss.token_kl, expected.loss.token_kl, precision=torch.float32)
    for field in ("d_hidden", "d_head", "d_bias"):
        assert_gradient_close(getattr(actual, field), getattr(expected, field), precision=torch.float32)


@pytest.mark.parametrize("chunk_bytes", [None, 4 * 160 * 3], ids=["kept", "chunks"])
def test_the_forward_kl_from_a_vector_a_token(chunk_bytes: int | None) -> None:
    p = make_problem(17, 48, 130, torch.float64)
    p = replace(p, ref_lm_head=p.lm_head)
    hidden = p.hidden.clone().requires_grad_()
    known = forward_reference(p.ref_hidden, p.lm_head, p.labels, backend="triton")
    loss = dss_loss(
        hidden, p.lm_head, p.labels, p.star, kl="forward", ref_slope=known.slope, ref_offset=known.offset,
        backend="triton", chunk_bytes=chunk_bytes,
    )  # fmt: skip
    loss.loss.backward()
    expected = truth(replace(p, bias=torch.zeros(130).double()), "forward")
    assert_tokens_close(loss.token_kl, expected.loss.token_kl, precision=torch.float64)
    assert_gradient_close(hidden.grad, expected.d_hidden, precision=torch.float64)
