"""Per-token entropy and whether the label was the likeliest word, against log-softmax in float64.

The grids of combinations.py, test_exact.py and test_exponentials.py ask for both too; here stands what is theirs alone.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastdss import WeightedCEOutput, dss_loss, weighted_ce, weighted_ce_stats
from fastdss.loss.functional import live_rows
from tests.support.loss_cases import check_values, make_problem, reference_arguments, run, truth
from tests.support.numerics import assert_gradient_close, assert_tokens_close

from .test_engine import Largest

CHUNKS = 4 * 160 * 3  # chunk_bytes: three rows of fp32 logits


def told(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    log_p = torch.log_softmax(logits.double(), -1)
    return torch.special.entr(log_p.exp()).sum(-1), log_p.argmax(-1) == labels


def agree(found: WeightedCEOutput, logits: Tensor, labels: Tensor, dtype: torch.dtype = torch.float64) -> None:
    entropy, correct = told(logits, labels)
    live = labels != -100
    assert_tokens_close(found.token_entropy, torch.where(live, entropy, 0), precision=dtype)
    assert torch.equal(found.token_correct, correct & live)


@pytest.mark.parametrize("chunk_bytes", [None, CHUNKS], ids=["kept", "chunks"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_any_dtype(dtype: torch.dtype, chunk_bytes: int | None) -> None:
    """fp16 takes the row pass. The loss and its gradients are what they are without."""
    p = make_problem(33, 48, 130, dtype)
    p.labels[:8] = (p.hidden[:8].double() @ p.lm_head.double().T).argmax(1)
    p.labels[5] = -100
    leaves = [p.hidden.requires_grad_(), p.lm_head.requires_grad_()]
    found = weighted_ce_stats(*leaves, p.labels, chunk_bytes=chunk_bytes)
    agree(found, p.hidden.detach().double() @ p.lm_head.detach().double().T, p.labels, dtype)
    assert 0 < int(found.token_correct.sum()) < 28
    assert not found.token_ce.requires_grad
    assert not found.token_entropy.requires_grad
    plain = weighted_ce(*leaves, p.labels, chunk_bytes=chunk_bytes)
    assert torch.equal(found.loss, plain)
    for one, other in zip(torch.autograd.grad(found.loss, leaves), torch.autograd.grad(plain, leaves), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("kl", ["k2", "reverse"])
@pytest.mark.parametrize("gap", [0.0, 12.0, 60.0, 120.0, 3000.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_labels_far_above_and_below_the_others(kl: str, gap: float, dtype: torch.dtype) -> None:
    """Entropies of 1e-50 and 0, and of the others alone where the label is impossible."""
    p = make_problem(12, 16, 50, dtype)
    bias = torch.zeros(12, 50, dtype=dtype)
    labels = torch.arange(12)
    bias[labels[::3], labels[::3]], bias[labels[1::3], labels[1::3]] = -gap, gap
    hidden = torch.cat([p.hidden, torch.eye(12, dtype=dtype)], 1)
    head = torch.cat([p.lm_head, bias.T], 1)
    reference = reference_arguments(p, kl)
    if kl == "reverse":
        reference = {"ref_hidden": p.ref_hidden, "ref_lm_head": p.ref_lm_head}
    found = dss_loss(hidden, head, labels, p.star.to(dtype), kl=kl, token_stats=True, **reference)
    entropy, correct = told(hidden.double() @ head.double().T, labels)
    assert_tokens_close(found.token_entropy, entropy, precision=dtype)
    assert torch.equal(found.token_correct, correct)


def test_small_entropies_keep_their_digits() -> None:
    """The exponential form adds what is not negative; a log-sum-exp less a mean would leave 1e-7 of rounding."""
    head, hidden = torch.eye(8), torch.zeros(3, 8)
    hidden[:, 3] = torch.tensor([12.0, 17.0, 21.0])
    found = weighted_ce_stats(hidden, head, torch.full((3,), 3))
    entropy, _ = told(hidden.double() @ head.double().T, torch.full((3,), 3))
    torch.testing.assert_close(found.token_entropy.double(), entropy, rtol=1e-5, atol=0)
    assert found.token_correct.tolist() == [True] * 3


@pytest.mark.parametrize("kl", ["k2", "forward"])
@pytest.mark.parametrize("words", [1, 2])
def test_impossible_words_and_vocabularies_of_one(kl: str, words: int) -> None:
    """All other words impossible; the label impossible; and one word, which is always right."""
    hidden, head = torch.randn(4, 6).double(), torch.randn(5, 6).double()
    bias = torch.full((5,), -torch.inf).double()
    bias[:words] = 0
    labels = torch.tensor([0, 1, 2, 0]) if words > 1 else torch.zeros(4, dtype=torch.int64)
    star = torch.full((4,), 0.5).double()
    reference = {"ref_logprobs": star} if kl == "k2" else {"ref_hidden": hidden, "ref_lm_head": head, "ref_bias": bias}
    found = dss_loss(hidden, head, labels, star, bias=bias, kl=kl, token_stats=True, **reference)
    log_p = torch.log_softmax(hidden @ head.T + bias, 1)
    assert_tokens_close(found.token_entropy, torch.special.entr(log_p.exp()).sum(1), precision=torch.float64)
    assert torch.equal(found.token_correct, (log_p.argmax(1) == labels) & (labels < words))


@pytest.mark.parametrize("backend_of", ["exponentials", "row pass"])
def test_a_tie_is_not_correct(backend_of: str) -> None:
    dtype = torch.float32 if backend_of == "exponentials" else torch.float16
    found = weighted_ce_stats(torch.zeros(5, 4, dtype=dtype), torch.zeros(7, 4, dtype=dtype), torch.arange(5))
    assert not found.token_correct.any()
    torch.testing.assert_close(found.token_entropy, torch.full((5,), 7.0).log(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("how", ["kept", "chunks", "main_grad", "filtered", "rows", "all rows"])
def test_every_way_through(how: str, reduction: str) -> None:
    """Tokens without weight tell nothing, whatever computes the others; a shifted batch speaks of the next token."""
    p = make_problem(33, 48, 130, torch.float32)
    hidden, labels, weights = p.hidden.view(3, 11, 48), p.labels.view(3, 11), p.star.view(3, 11)
    head = p.lm_head.clone().requires_grad_()
    options: dict[str, Any] = {
        "chunks": {"chunk_bytes": CHUNKS},
        "main_grad": {"main_grad": torch.zeros(130, 48)},
        "filtered": {"grad_tol": 1e-6},
        "rows": {"rows": live_rows(labels, weights, shift=True)},
        "all rows": {"compact": False},
    }.get(how, {})
    found = weighted_ce_stats(hidden, head, labels, weights, shift=True, reduction=reduction, **options)
    entropy, correct = told(hidden.double() @ p.lm_head.double().T, F.pad(labels[:, 1:], (0, 1), value=-100))
    live = F.pad((labels[:, 1:] != -100) & (weights[:, 1:] > 0), (0, 1))
    assert 0 < int(live.sum()) < 25
    assert_tokens_close(found.token_entropy, torch.where(live, entropy, 0), precision=torch.float32)
    assert torch.equal(found.token_correct, correct & live)
    upstream = torch.ones(3, 11) if reduction == "none" else None
    (gradient,) = torch.autograd.grad(found.loss, head, upstream, allow_unused=True)
    plain = weighted_ce(hidden, head, labels, weights, shift=True, reduction=reduction)
    (expected,) = torch.autograd.grad(plain, head, upstream)
    got = options["main_grad"] if how == "main_grad" else gradient
    assert_gradient_close(got, expected.double(), precision=torch.float32)


def test_what_a_row_without_weight_holds_has_no_effect() -> None:
    p = make_problem(17, 24, 67, torch.float32)
    p.hidden[(p.labels == -100) | (p.star == 0)] = torch.nan
    found = weighted_ce_stats(p.hidden, p.lm_head, p.labels, p.star, compact=False)
    assert found.token_entropy.isfinite().all()
    p.hidden[0] = torch.nan
    found = weighted_ce_stats(p.hidden, p.lm_head, p.labels.clamp(min=0), reduction="none")
    assert bool(found.token_entropy[0].isnan())
    assert not found.token_correct[0]


@pytest.mark.parametrize("kl", ["k2", "reverse", "forward"])
def test_blocks_that_fit_into_the_caches(kl: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few rows at a time, the last block with fewer, say what all rows in one say."""
    p = make_problem(33, 48, 130, torch.float64)
    results = []
    for elements in (1 << 18, 130 * 4 + 1):
        monkeypatch.setattr("fastdss.loss.softmax._CACHED", elements // torch.get_num_threads())
        actual = run(p, kl, token_stats=True)
        results.append([*actual.loss, actual.d_hidden, actual.d_head])
    for one, many in zip(*results, strict=True):
        torch.testing.assert_close(one, many, rtol=1e-12, atol=1e-15)
    check_values(actual.loss, truth(p, kl).loss, precision=torch.float64)


def test_what_is_not_asked_for_takes_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """One block of scratch where it is asked for, none where not."""
    p = make_problem(64, 8, 640, torch.float32)
    made = []
    for function in (weighted_ce, weighted_ce_stats):
        with torch.no_grad(), Largest(watched=(64, 640)) as seen:
            function(p.hidden, p.lm_head, p.labels.clamp(min=0))
        made.append(seen.made)
    assert made == [made[0], made[0] + 1]
