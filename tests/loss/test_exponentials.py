"""Exponentials instead of logits: exact where they are kept and where not, on what only they could get wrong."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fastdss import dss_loss, token_logprobs, weighted_ce
from fastdss.loss import exp_rows, gemm, kept
from fastdss.loss.exponentials import LocalSums, torch_exponentials
from fastdss.loss.objective import Objective
from fastdss.loss.vocab_shard import VocabShard
from tests.support.loss_cases import check_values, make_problem, reference_arguments, run, truth
from tests.support.numerics import CAST_MARGIN, assert_gradient_close, assert_tokens_close

from .test_engine import Largest, _count_gemm_rows

ALL = {"label_smoothing": 0.1, "z_loss": 1e-3, "logit_scale": 0.7}
CAPPED = {"softcap": 8.0, "z_loss": 1e-3, "logit_scale": 0.7}
MANY = 4 * 160 * 3  # chunk_bytes: three rows of fp32 logits, so that nothing is kept


@pytest.mark.parametrize("chunk_bytes", [None, MANY], ids=["kept", "chunks"])
@pytest.mark.parametrize("options", [{}, ALL, CAPPED], ids=["plain", "smoothed", "capped"])
@pytest.mark.parametrize("kl", ["k1", "k2", "k3"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_kept_and_in_chunks(kl: str, options: dict[str, Any], chunk_bytes: int | None, reduction: str) -> None:
    for dtype in (torch.float64, torch.float32):
        p = make_problem(33, 48, 130, dtype)
        upstream = torch.linspace(-1, 2, 33).to(dtype) if reduction == "none" else torch.tensor(-1.5).to(dtype)
        actual = run(p, kl, upstream, reduction=reduction, chunk_bytes=chunk_bytes, token_stats=True, **options)
        expected = truth(p, kl, upstream=upstream, reduction=reduction, **options)
        check_values(actual.loss, expected.loss, precision=dtype)
        for field in ("d_hidden", "d_head", "d_bias"):
            assert_gradient_close(getattr(actual, field), getattr(expected, field), precision=dtype, name=field)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_no_logits_are_computed_twice(reduction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = _count_gemm_rows(monkeypatch)
    p = make_problem(33, 48, 130, torch.float32)
    run(p, "k2", torch.randn(33) if reduction == "none" else None, reduction=reduction)
    assert sum(rows) == int((p.labels != -100).sum())


def test_a_frozen_head_keeps_one_vector_a_row_however_many_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = _count_gemm_rows(monkeypatch)
    p = make_problem(64, 8, 640, torch.float32)
    hidden, upstream = p.hidden.clone().requires_grad_(), torch.linspace(-1, 2, 64)
    with Largest() as seen:
        loss = weighted_ce(hidden, p.lm_head, p.labels, p.star, reduction="none", chunk_bytes=4 * 8 * 640)
        loss.backward(upstream)
    assert seen.elements <= 8 * 640
    assert sum(rows) == int(((p.labels != -100) & (p.star > 0)).sum())
    true = p.hidden.double().requires_grad_()
    token = torch.nn.functional.cross_entropy(true @ p.lm_head.double().T, p.labels, reduction="none")
    (token * p.star.double() * upstream.double()).sum().backward()
    assert_gradient_close(hidden.grad, true.grad, precision=torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("gap", [0.0, 60.0, 120.0, 3000.0])
def test_a_label_far_below_or_above_the_others(gap: float, dtype: torch.dtype) -> None:
    """exp of the gap would overflow at 88; the offset follows the largest logit."""
    generator = torch.Generator().manual_seed(0)
    head = torch.randn(50, 16, generator=generator).to(dtype)
    hidden = torch.randn(12, 16, generator=generator)
    labels = torch.arange(12)
    hidden[::3] -= gap * head[labels[::3]].float() / 16
    hidden[1::3] += gap * head[labels[1::3]].float() / 16
    leaves = [hidden.to(dtype).requires_grad_(), head.requires_grad_()]
    true = [t.detach().double().requires_grad_() for t in leaves]
    got = weighted_ce(*leaves, labels, reduction="none")
    expected = torch.nn.functional.cross_entropy(true[0] @ true[1].T, labels, reduction="none")
    assert_tokens_close(got.detach(), expected.detach(), precision=torch.float32)
    got.sum().backward()
    expected.sum().backward()
    for ours, exact in zip(leaves, true, strict=True):
        assert_gradient_close(ours.grad, exact.grad, precision=dtype, cast_margin=1.6)


def test_a_certain_label_loses_nothing_to_cancellation() -> None:
    """1 - p_y is 1e-9 here, which 1 - softmax in fp32 rounds to 0 or 6e-8."""
    head = torch.eye(8)
    hidden = torch.zeros(1, 8)
    hidden[0, 3] = 22.7
    leaf, true = hidden.clone().requires_grad_(), hidden.double().requires_grad_()
    loss = weighted_ce(leaf, head, torch.tensor([3]))
    exact = torch.nn.functional.cross_entropy(true @ head.double().T, torch.tensor([3]))
    loss.backward()
    exact.backward()
    assert abs(float(loss) / float(exact) - 1) < 1e-5
    assert_gradient_close(leaf.grad, true.grad, precision=torch.float32)


def test_the_z_loss_of_a_certain_label() -> None:
    """Where the label's logit is the largest, and by far, the log-sum-exp is read off it."""
    head, labels = torch.eye(8).double(), torch.tensor([3, 5])
    hidden = torch.zeros(2, 8).double()
    hidden[0, 3], hidden[1, 5] = 22.7, 3.0
    leaf, true = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()
    weighted_ce(leaf, head, labels, z_loss=0.1).backward()
    logits = true @ head.T
    (torch.nn.functional.cross_entropy(logits, labels) + 0.1 * (logits.logsumexp(1) ** 2).mean()).backward()
    assert_gradient_close(leaf.grad, true.grad, precision=torch.float64)


def _keeps(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    seen: list[bool] = []
    real = exp_rows.plan_exponentials

    def watched(*given: Any, **options: Any) -> exp_rows.ExpPlan:
        seen.append(real(*given, **options).kept)
        return real(*given, **options)

    monkeypatch.setattr(kept, "plan_exponentials", watched)
    return seen


@pytest.fixture
def bf16_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a CPU that multiplies bf16; torch's own bf16 product is right, if slow, on any."""
    monkeypatch.setattr(exp_rows, "multiplies_bf16", lambda: True)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("repeated", [False, True])
def test_sixteen_bit_gradients_are_rounded_once(
    reduction: str, repeated: bool, bf16_products: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any upstream gradient, and labels that many rows share: their sums are not added up in 16 bit."""
    seen = _keeps(monkeypatch)
    p = make_problem(90, 64, 500, torch.bfloat16)
    if repeated:
        p.labels[p.labels >= 0] %= 3
    upstream = torch.linspace(0.1, 1.1, 90) if reduction == "none" else torch.tensor(1 / 3)
    actual = run(p, "k2", upstream, reduction=reduction)
    expected = truth(p, "k2", upstream=upstream, reduction=reduction)
    assert seen == [True]
    # dX: the CPU's product is rounded too; 1.17 casts for 160 problems together, 1.27 at most (dW 1.14 and 1.25).
    for field, margin in (("d_hidden", 1.3), ("d_head", CAST_MARGIN), ("d_bias", CAST_MARGIN)):
        got, true = getattr(actual, field), getattr(expected, field)
        assert_gradient_close(got, true, precision=torch.bfloat16, name=field, cast_margin=margin)
    assert_tokens_close(actual.loss.token_ce, expected.loss.token_ce, precision=torch.float32)


def test_a_bias_is_rounded_where_e_is_and_at_the_end(bf16_products: None) -> None:
    """Of one row, nothing averages E's rounding out: two independent roundings are 2 ** 0.5 casts, at the words that
    are no label. The label's share is exact until the end: the rule above holds where labels carry the norm."""
    p = make_problem(1, 16, 4000, torch.bfloat16)
    p.labels[:] = 7
    actual, expected = run(p, "k2"), truth(p, "k2")
    words = torch.arange(4000) != 7
    cast = (expected.d_bias.bfloat16().double() - expected.d_bias)[words].norm()
    assert 1.3 * cast < (actual.d_bias.double() - expected.d_bias)[words].norm() < 1.5 * cast
    assert_gradient_close(actual.d_bias[7:8], expected.d_bias[7:8], precision=torch.bfloat16, cast_margin=1.01)


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ({"n": 256}, True),  # 4 D
        ({"n": 257}, False),
        ({"n": 64, "chunk_bytes": 2 * 2 * 64 * 512}, True),
        ({"n": 64, "chunk_bytes": 2 * 2 * 64 * 512 - 1}, False),
        ({"n": 64, "label_smoothing": 0.1}, False),
        ({"n": 64, "main_grad": True}, False),
        ({"n": 64, "autocast": True}, False),
        ({"n": 500, "frozen": True}, True),
    ],
    ids=str,
)
def test_what_is_kept_in_sixteen_bit(
    case: dict[str, Any], expected: bool, bf16_products: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = _keeps(monkeypatch)
    dtype = torch.float32 if case.get("autocast") else torch.bfloat16
    p = make_problem(case["n"], 64, 500, dtype)
    head = p.lm_head.requires_grad_(not case.get("frozen"))
    options = {name: case[name] for name in ("chunk_bytes", "label_smoothing") if name in case}
    if case.get("main_grad"):
        options["main_grad"] = torch.zeros(500, 64)
    with torch.autocast("cpu", torch.bfloat16, enabled=case.get("autocast", False)):
        weighted_ce(p.hidden.requires_grad_(), head, p.labels.clamp(min=0), **options)
    assert seen == [expected]


def test_one_matrix_takes_two_bytes_a_logit(bf16_products: None) -> None:
    """Beyond inputs and gradients: E in 16 bit and one slab of logits; no fp32 sum of the head's gradient."""
    n, d, v = 128, 64, 6400
    p = make_problem(n, d, v, torch.bfloat16)
    leaves = [p.hidden.requires_grad_(), p.lm_head.requires_grad_()]
    budget = 2 * 2 * n * v
    with Largest(watched=(v, d)) as seen:
        weighted_ce(*leaves, p.labels.clamp(min=0), chunk_bytes=budget).backward()
    assert seen.elements == n * v
    assert seen.made == 1  # the gradient itself, in 16 bit
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        gradients = torch.autograd.grad(weighted_ce(*leaves, p.labels.clamp(min=0), chunk_bytes=budget), leaves)
    now = peak = 0
    for event in sorted(profile.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    beyond = peak - sum(g.numel() * g.element_size() for g in gradients)
    assert 2 * n * v < beyond < 1.1 * (budget + 4 * d * min(v, gemm.UPCAST_ROWS))


def test_the_setting_of_bf16_factors_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = torch.backends.mkldnn.matmul
    before = settings.fp32_precision
    monkeypatch.setattr(gemm, "multiplies_bf16", lambda: True)
    with gemm.bf16_factors(torch.bfloat16):
        assert settings.fp32_precision == "bf16"
    assert settings.fp32_precision == before
    with pytest.raises(KeyError), gemm.bf16_factors(torch.bfloat16):
        raise KeyError
    assert settings.fp32_precision == before
    first, second = (gemm.bf16_factors(torch.bfloat16) for _ in range(2))  # of two threads, neither within the other
    for context in (first, second):
        context.__enter__()
    first.__exit__(None, None, None)
    assert settings.fp32_precision == "bf16"
    second.__exit__(None, None, None)
    assert settings.fp32_precision == before
    for dtype in (torch.float16, torch.float32, torch.float64):
        with gemm.bf16_factors(dtype):
            assert settings.fp32_precision == before
    monkeypatch.setattr(gemm, "multiplies_bf16", lambda: False)
    with gemm.bf16_factors(torch.bfloat16):
        assert settings.fp32_precision == before


def test_bf16_factors_lose_nothing() -> None:
    """Log-probabilities of bf16 parameters, whatever instructions this CPU has for their products."""
    p = make_problem(40, 64, 5000, torch.bfloat16)
    got = token_logprobs(p.hidden, p.lm_head, p.labels)
    log_p = torch.log_softmax(p.hidden.double() @ p.lm_head.double().T, 1)
    expected = log_p.gather(1, p.labels.clamp(min=0)[:, None])[:, 0] * (p.labels != -100)
    assert_tokens_close(got, expected, precision=torch.float32)


@pytest.mark.parametrize(
    "changed",
    [{"kl": "reverse"}, {"label_smoothing": 0.1, "softcap": 8.0}, {"dtype": torch.float16}],
    ids=str,
)
def test_what_takes_the_row_pass(changed: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Tensor] = []
    real = exp_rows.torch_exponentials

    def watched(logits: Tensor, *rest: Any) -> None:
        made.append(logits)
        real(logits, *rest)

    monkeypatch.setattr(exp_rows, "torch_exponentials", watched)
    run(make_problem(33, 48, 130, torch.float32), "k2")
    assert made
    made.clear()
    changed = dict(changed)
    run(make_problem(33, 48, 130, changed.pop("dtype", torch.float32)), changed.pop("kl", "k2"), **changed)
    assert not made


def test_saved_tensor_hooks_see_all_that_is_large() -> None:
    """Offloading and its like move what a Function saves; what it hid from them would stay."""
    p = make_problem(33, 48, 130, torch.float32)
    seen: list[tuple[int, ...]] = []

    def pack(tensor: Tensor) -> Tensor:
        seen.append(tuple(tensor.shape))
        return tensor.clone()

    hidden, head = p.hidden.clone().requires_grad_(), p.lm_head.clone().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = weighted_ce(hidden, head, p.labels, p.star)
    loss.backward()
    live = int(((p.labels != -100) & (p.star > 0)).sum())
    assert {(live, 130), (live, 48), (130, 48)} <= set(seen)
    plain = p.lm_head.clone().requires_grad_()
    weighted_ce(p.hidden, plain, p.labels, p.star).backward()
    assert torch.equal(head.grad, plain.grad)


def test_parameters_changed_before_backward_are_noticed() -> None:
    p = make_problem(9, 8, 20, torch.float32)
    head = p.lm_head.clone().requires_grad_()
    loss = weighted_ce(p.hidden, head, p.labels)
    with torch.no_grad():
        head.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_blocks_of_one_pass_agree_with_one_block(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(7, 40, dtype=torch.float64)
    labels = torch.tensor([0, 39, 5, -3, 40, 7, 7])  # two of another rank
    results = []
    for elements in (1 << 22, 80):
        monkeypatch.setattr("fastdss.loss.exponentials.BLOCK_ELEMENTS", elements)
        e, sums = logits.clone(), LocalSums.empty(logits, 7, torch.float64, Objective("none"), True)
        columns = VocabShard(0, 40, 40, None, None).columns_of(labels)
        torch_exponentials(e, columns, Objective("none"), None, sums, None)
        results.append((e, *sums[:3], *sums[4:]))
    for one, many in zip(*results, strict=True):
        assert torch.equal(one, many)
    e, label_logit, others, total, entropy, rival = results[0]
    mine = (labels >= 0) & (labels < 40)
    without = logits.masked_fill(torch.arange(40) == labels[:, None], -torch.inf)
    torch.testing.assert_close(others, without.logsumexp(1), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(e / total[:, None], without.softmax(1), rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(entropy, torch.special.entr(without.softmax(1)).sum(1), rtol=1e-12, atol=1e-12)
    assert torch.equal(rival, without.amax(1))
    assert not label_logit[~mine].any()


def test_dss_parts_are_the_losses_parts() -> None:
    p = make_problem(33, 48, 130, torch.float64)
    loss = dss_loss(p.hidden, p.lm_head, p.labels, p.star.double(), ref_logprobs=p.ref_logprobs)
    assert_tokens_close(loss.ce + loss.kl, loss.loss, precision=torch.float64)
    assert not loss.ce.requires_grad


@pytest.mark.parametrize("form", ["ce", "k2", "forward"])
def test_hooks_on_the_loss_run_after_it_was_scaled_in_place(form: str) -> None:
    """As Trainer scales it; FSDP2's hooks on it gather the weights for backward, and ranks wait for each other."""
    p = make_problem(24, 16, 50, torch.float32)
    hidden = p.hidden.requires_grad_()
    if form == "ce":
        loss = weighted_ce(hidden, p.lm_head, p.labels, p.star)
    else:
        loss = dss_loss(hidden, p.lm_head, p.labels, p.star, kl=form, **reference_arguments(p, form)).loss
    ran: list[Tensor] = []
    loss.register_hook(ran.append)
    loss *= 2
    loss.backward()
    assert len(ran) == 1


@pytest.mark.parametrize("reference", ["ref_logprobs", None])
def test_one_token_without_a_batch_has_a_loss_of_its_labels_shape(reference: str | None) -> None:
    p = make_problem(1, 16, 50, torch.float32)
    hidden, label, weight = p.hidden[0], p.labels[0], torch.tensor(0.5)
    if reference is None:
        parts = [weighted_ce(hidden, p.lm_head, label, weight, reduction="none")]
    else:
        parts = list(dss_loss(hidden, p.lm_head, label, weight, ref_logprobs=torch.tensor(-1.0), reduction="none",
                              token_stats=True))  # fmt: skip
    assert [part.shape for part in parts] == [()] * len(parts)
