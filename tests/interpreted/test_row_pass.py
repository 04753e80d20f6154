"""The Triton row pass in the interpreter: against float64 through the public functions, and its launchers directly."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fastdss.kernels.row_pass import launch_row_gradient_bwd, launch_row_pass_fwd
from hypothesis import given
from hypothesis import strategies as st

from fastdss import dss_loss, live_rows, weighted_ce
from fastdss.loss.objective import Objective, RowInputs, torch_row_pass
from fastdss.loss.rows import Slab
from tests.loss import test_first_terms as first_terms
from tests.support.loss_cases import (
    KLS,
    SHAPES,
    check_ruled_out_where_the_kl_does_not_count,
    check_values,
    make_problem,
    run,
    truth,
)
from tests.support.numerics import assert_gradient_close, assert_tokens_close
from tests.support.profiles import examples

ALL = {"label_smoothing": 0.1, "z_loss": 1e-3, "softcap": 8.0, "logit_scale": 0.7}
OPTIONS: list[dict[str, Any]] = [{}, ALL, {"logit_scale": 0.7, "ref_logit_scale": 1.3, "ref_softcap": 5.0}]


@pytest.fixture(autouse=True)
def poisoned_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that a kernel forgets to write must show."""
    real = torch.Tensor.new_empty

    def poisoned(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        made = real(self, *args, **kwargs)
        return made.fill_(torch.nan) if made.is_floating_point() else made

    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned)


@pytest.mark.parametrize("kl", KLS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(shape: tuple[int, int, int], kl: str) -> None:
    check(shape, kl, ALL, torch.float32)


@pytest.mark.parametrize("options", OPTIONS, ids=["plain", "all", "reference differs"])
@pytest.mark.parametrize("kl", KLS)
def test_options(kl: str, options: dict[str, Any]) -> None:
    check((7, 24, 67), kl, options, torch.float64)


def check(shape: tuple[int, int, int], kl: str, options: dict[str, Any], dtype: torch.dtype) -> None:
    problem = make_problem(*shape, dtype)
    actual = run(problem, kl, backend="triton", token_stats=True, **options)
    expected = truth(problem, kl, **options)
    check_values(actual.loss, expected.loss, precision=dtype)
    for field in ("d_hidden", "d_head", "d_bias"):
        assert_gradient_close(getattr(actual, field), getattr(expected, field), precision=dtype, name=field)


@pytest.mark.parametrize("kl", ["k3", "reverse"])
def test_upstream_gradients_per_token(kl: str) -> None:
    problem, upstream = make_problem(17, 24, 130, torch.float32), torch.randn(17)
    actual = run(problem, kl, upstream, reduction="none", backend="triton")
    expected = truth(problem, kl, upstream=upstream, reduction="none")
    assert_gradient_close(actual.d_hidden, expected.d_hidden, precision=torch.float32)
    assert_gradient_close(actual.d_head, expected.d_head, precision=torch.float32)


@pytest.mark.parametrize(
    ("first", "kl"),
    [*((first_terms.dft, kl) for kl in ("k2", "reverse", "forward")), (first_terms.constrained, "k2")],
)
def test_first_terms_of_a_weight_of_their_own(first: Any, kl: str) -> None:
    """Of the row pass where the KL is full, else of the kernel that follows the sums."""
    p = make_problem(17, 24, 130, torch.float32)
    first_terms.check(p, kl, first, torch.linspace(0.1, 2, 17).double(), "mean", None, torch.float32, backend="triton")


@pytest.mark.parametrize("compact", [True, False])
def test_a_reference_may_rule_out_tokens_where_the_kl_does_not_count(compact: bool) -> None:
    check_ruled_out_where_the_kl_does_not_count(backend="triton", compact=compact)


def _direct(kl: str, dtype: torch.dtype, block: int, width: int = 300) -> tuple[torch.Tensor, ...]:
    """Kernel and torch twin on the same logits, several blocks per row: (dz, lost, twin's dz, labels)."""
    torch.manual_seed(1)
    count = 5
    memory = Slab(torch.empty(0), count, width, torch.float32)
    slab = memory.logits(count).copy_(torch.randn(count, width) * 3)
    ref = (slab + torch.randn(count, width) * 0.1) if kl in ("reverse", "forward") else None
    rows = RowInputs(torch.randint(0, width, (count,)), torch.rand(count), torch.rand(count), -torch.rand(count))
    twin, twin_ref = slab.clone(), None if ref is None else ref.clone()
    shape = {"bias": None, "ref_bias": None}
    ce, token_kl = torch_row_pass(
        twin, twin_ref, rows, Objective(kl), vocab_start=0, vocab_size=width, combine=None, grad=True, **shape
    )
    out = slab if dtype == slab.dtype else memory.narrow(count, dtype)
    got_ce, got_kl, lost = launch_row_pass_fwd(
        slab, ref, out, *rows[:4], kl_code=Objective(kl).kl_code, label_smoothing=0.0, z_loss=0.0,
        scales=(1.0, None, 1.0, None), grad=True,
        config=(block, 4), **shape,
    )  # fmt: skip
    assert_tokens_close(got_ce, ce.double(), precision=torch.float32)
    assert_tokens_close(got_kl, token_kl.double(), precision=torch.float32)
    return out, lost, twin, rows.labels


@pytest.mark.parametrize("kl", ["none", "k2", "reverse", "forward"])
@pytest.mark.parametrize("block", [16, 64, 512])
def test_a_narrower_gradient_lies_over_its_own_logits(kl: str, block: int) -> None:
    """No store may meet a later read. fp16 stands for bf16, which the interpreter computes wrongly."""
    out, lost, twin, labels = _direct(kl, torch.float16, block)
    assert out.dtype == torch.float16
    torch.testing.assert_close(out.float(), twin, rtol=2**-10, atol=1e-7)
    entry = out.gather(1, labels[:, None])[:, 0].float() + lost
    torch.testing.assert_close(entry, twin.gather(1, labels[:, None])[:, 0], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("block", [16, 64, 512])
def test_entropies_follow_a_peak_that_moves_from_block_to_block(block: int) -> None:
    torch.manual_seed(2)
    count, width = 5, 300
    slab = Slab(torch.empty(0), count, width, torch.float32).logits(count)
    slab.copy_(torch.randn(count, width) * 3 + torch.linspace(-4, 4, width))  # each block's peak above the last one's
    labels = slab.argmax(1)
    labels[1] = (labels[1] + 1) % width
    log_p = slab.double().log_softmax(1)
    told = torch.empty(2, count)
    launch_row_pass_fwd(
        slab, None, slab, labels, torch.ones(count), None, None, bias=None, ref_bias=None, kl_code=0, dft=False,
        label_smoothing=0.0, z_loss=0.0, scales=(1.0, None, 1.0, None), grad=False, token_stats=told, config=(block, 4),
    )  # fmt: skip
    torch.testing.assert_close(told[0].double(), -(log_p.exp() * log_p).sum(1), rtol=1e-5, atol=1e-6)
    assert told[1].tolist() == [1, 0, 1, 1, 1]


@pytest.mark.parametrize("label", [40, 63, 64, -1])
def test_a_label_of_another_rank_loses_nothing(label: int) -> None:
    """The first labels of the next rank lie where the last block of this slice is padding."""
    memory = Slab(torch.empty(0), 1, 40, torch.float32)  # 64 columns wide
    slab = memory.logits(1).copy_(torch.randn(1, 40))
    factors = torch.tensor([slab.logsumexp(1).item(), 0, 0, 0.3, -0.3001, 0, 0])[:, None]
    lost = launch_row_gradient_bwd(
        slab, None, memory.narrow(1, torch.float16), torch.tensor([label]), factors, bias=None, ref_bias=None,
        vocab_start=0, kl_code=0, scales=(1.0, None, 1.0, None), config=(64, 4),
    )  # fmt: skip
    assert not lost.any()


def test_strided_vectors_are_read_as_they_lie() -> None:
    p = make_problem(8, 8, 20, torch.float32)
    twice = {name: getattr(p, name).repeat_interleave(2)[::2] for name in ("labels", "star", "ref_logprobs", "bias")}
    losses = []
    for vectors in (twice, {name: vector.contiguous() for name, vector in twice.items()}):
        loss = dss_loss(
            p.hidden, p.lm_head, vectors["labels"].clamp(min=0), vectors["star"] * 0.9, bias=vectors["bias"],
            ref_logprobs=vectors["ref_logprobs"], backend="triton", label_smoothing=0.1, softcap=8.0,
        )  # fmt: skip
        losses.append(loss.loss)
    assert torch.equal(*losses)
    ignored = twice["labels"][:1].expand(8)  # stride 0
    once = weighted_ce(p.hidden, p.lm_head, ignored.contiguous(), backend="triton")
    assert torch.equal(weighted_ce(p.hidden, p.lm_head, ignored, backend="triton"), once)


def test_ignored_tokens_have_no_kl_whatever_rows_hold() -> None:
    p = make_problem(8, 8, 20, torch.float32)
    options: dict[str, Any] = {"kl": "reverse", "ref_hidden": p.ref_hidden, "ref_lm_head": p.ref_lm_head}
    live = live_rows(p.labels, p.star, kl_scale=0.5)
    rows = live._replace(index=torch.cat([live.index, torch.tensor([5])]))
    assert p.labels[5] == -100
    got = dss_loss(p.hidden, p.lm_head, p.labels, p.star, rows=rows, backend="triton", **options)
    expected = dss_loss(p.hidden, p.lm_head, p.labels, p.star, backend="torch", **options)
    assert_tokens_close(got.token_kl, expected.token_kl.double(), precision=torch.float32)


@pytest.mark.parametrize("kl", ["none", "k1", "forward"])
def test_nothing_is_lost_in_full_precision(kl: str) -> None:
    out, lost, twin, _ = _direct(kl, torch.float32, 64)
    assert_gradient_close(out, twin.double(), precision=torch.float32)
    assert torch.equal(lost, torch.zeros_like(lost))


@examples(15)
@given(
    n=st.integers(1, 9),
    v=st.integers(2, 140),
    kl=st.sampled_from(KLS),
    smoothing=st.sampled_from([0.0, 0.3]),
    softcap=st.sampled_from([None, 4.0]),
    seed=st.integers(0, 1000),
)
def test_both_row_passes_agree(n: int, v: int, kl: str, smoothing: float, softcap: float | None, seed: int) -> None:
    problem = make_problem(n, 8, v, torch.float64, seed)
    options = {"label_smoothing": smoothing, "softcap": softcap}
    ours, twin = (run(problem, kl, backend=backend, **options) for backend in ("triton", "torch"))
    assert_tokens_close(ours.loss.token_ce, twin.loss.token_ce, precision=torch.float64)
    assert_tokens_close(ours.loss.token_kl, twin.loss.token_kl, precision=torch.float64)
    assert_gradient_close(ours.d_hidden, twin.d_hidden, precision=torch.float64)
    assert_gradient_close(ours.d_head, twin.d_head, precision=torch.float64)


def test_a_label_outside_the_vocabulary_gives_nan() -> None:
    """On a GPU nothing waits for a check, so the loss must tell."""
    logits = torch.randn(2, 40)
    ce, _, _ = launch_row_pass_fwd(
        logits, None, logits, torch.tensor([40, 3]), torch.ones(2), None, None, bias=None, ref_bias=None, kl_code=0,
        label_smoothing=0.0, z_loss=0.0, scales=(1.0, None, 1.0, None), grad=True,
    )  # fmt: skip
    assert ce.isnan().tolist() == [True, False]
