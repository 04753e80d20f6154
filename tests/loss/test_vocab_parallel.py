"""Two gloo ranks: a vocabulary split over ranks, and FSDP2's sharded head."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from fastdss import dss_loss, forward_reference, weighted_ce
from fastdss.loss import column_filter
from fastdss.loss.objective import RowStats
from fastdss.loss.vocab_shard import VocabShard
from tests.support.loss_cases import KLS, make_problem, truth
from tests.support.numerics import assert_gradient_close, assert_tokens_close
from tests.support.ranks import WORLD as RANKS
from tests.support.ranks import on_two_ranks

from .combinations import check, covering_cases

OPTIONS: dict[str, Any] = {"label_smoothing": 0.1, "z_loss": 1e-3, "softcap": 8.0, "logit_scale": 0.7}


def _split_vocabulary(rank: int, backend: str) -> None:
    """Every rank holds half of the head: the loss is whole on each, dX is reduced, dW and db are local."""
    dtype = torch.float32 if backend == "fused" else torch.float64  # sums are fp32 there, and no label is smoothed
    options = OPTIONS | {"label_smoothing": 0.0} if backend == "fused" else OPTIONS
    for kl in KLS if backend == "torch" else ("k3", "reverse"):
        for reduction in ("mean", "none") if backend == "torch" else ("mean",):
            p = make_problem(17, 24, 68, dtype)
            mine = slice(rank * 34, (rank + 1) * 34)
            leaves = [t.clone().requires_grad_() for t in (p.hidden, p.lm_head[mine], p.bias[mine])]
            reference: dict[str, Any] = {"ref_logprobs": p.ref_logprobs}
            if kl in ("reverse", "forward"):
                reference = {"ref_hidden": p.ref_hidden, "ref_lm_head": p.ref_lm_head[mine]}
            loss = dss_loss(
                *leaves[:2], p.labels, p.star.to(dtype), bias=leaves[2], kl=kl, reduction=reduction, backend=backend,
                group=dist.group.WORLD, chunk_bytes=8 * 64 * 8, **reference, **options,
            )  # fmt: skip
            upstream = torch.linspace(-1, 2, 17).to(dtype) if reduction == "none" else None
            gradients = torch.autograd.grad(loss.loss, leaves, upstream)
            expected = truth(p, kl, upstream=upstream, reduction=reduction, **options)
            assert_tokens_close(loss.loss.detach(), expected.loss.loss, precision=dtype)
            assert_tokens_close(loss.token_kl, expected.loss.token_kl, precision=dtype)
            assert_gradient_close(gradients[0], expected.d_hidden, precision=dtype)
            assert_gradient_close(gradients[1], expected.d_head[mine], precision=dtype)
            assert_gradient_close(gradients[2], expected.d_bias[mine], precision=dtype)


def _first_terms(rank: int, backend: str) -> None:
    """A label's own weight needs its probability in the whole vocabulary; whole calls are tested elsewhere."""
    p = make_problem(17, 24, 68, torch.float64)
    mine, star = slice(rank * 34, (rank + 1) * 34), p.star.double()
    for kl, own in (("k2", {"dft": True}), ("reverse", {"dft": True}), ("k2", {"csft_beta": 0.7})):
        results = []
        for part, group in ((mine, dist.group.WORLD), (slice(0, 68), None)):
            hidden, head = p.hidden.clone().requires_grad_(), p.lm_head[part].clone().requires_grad_()
            reference: dict[str, Any] = {"ref_logprobs": p.ref_logprobs.double()}
            if kl == "reverse":
                reference = {"ref_hidden": p.ref_hidden, "ref_lm_head": p.ref_lm_head[part]}
            loss = dss_loss(hidden, head, p.labels, star, kl=kl, backend=backend, group=group, **own, **reference).loss
            results.append([loss.detach(), *torch.autograd.grad(loss, (hidden, head))])
        (loss, d_hidden, d_head), (whole, d_hidden_whole, d_head_whole) = results
        assert_tokens_close(loss, whole, precision=torch.float64)
        assert_gradient_close(d_hidden, d_hidden_whole, precision=torch.float64)
        assert_gradient_close(d_head, d_head_whole[mine], precision=torch.float64)


def _tangent(rank: int, backend: str) -> None:
    """The forward KL from a vector a token, which every rank takes off the whole gradient once."""
    p = make_problem(17, 24, 68, torch.float64)
    mine = slice(rank * 34, (rank + 1) * 34)
    here: dict[str, Any] = {"bias": p.bias[mine], "group": dist.group.WORLD, "backend": backend}
    known = forward_reference(p.ref_hidden, p.lm_head[mine], p.labels, **here)
    reference = {"ref_slope": known.slope, "ref_offset": known.offset}
    for chunk_bytes in (None, 8 * 64 * 3):
        hidden = p.hidden.clone().requires_grad_()
        loss = dss_loss(hidden, p.lm_head[mine], p.labels, p.star.double(), kl="forward", chunk_bytes=chunk_bytes,
                        **here, **reference)  # fmt: skip
        loss.loss.backward()
        columns = {"ref_hidden": torch.cat([p.ref_hidden, torch.ones(17, 1).double()], 1),
                   "ref_lm_head": torch.cat([p.lm_head, p.bias[:, None]], 1)}  # fmt: skip
        expected = truth(replace(p, **columns), "forward")
        assert_tokens_close(loss.token_kl, expected.loss.token_kl, precision=torch.float64)
        assert_gradient_close(hidden.grad, expected.d_hidden, precision=torch.float64)


def _masked_slice(rank: int, backend: str) -> None:
    """The last rank holds nothing but padding, which a bias of -inf rules out, in policy and reference."""
    dtype = torch.float32 if backend == "fused" else torch.float64
    p = make_problem(17, 24, 68, dtype)
    labels = p.labels.where(p.labels < 34, 0)
    padding = torch.zeros(68).to(dtype)
    padding[34:] = -torch.inf
    mine, words = slice(rank * 34, (rank + 1) * 34), slice(0, 34)
    for kl in ("k2", "reverse", "forward"):
        results = []
        for part, bias, group in ((mine, padding[mine], dist.group.WORLD), (words, None, None)):
            leaves = [t.clone().requires_grad_() for t in (p.hidden, p.lm_head[part])]
            reference: dict[str, Any] = {"ref_logprobs": p.ref_logprobs}
            if kl != "k2":
                reference = {"ref_hidden": p.ref_hidden, "ref_lm_head": p.ref_lm_head[part], "ref_bias": bias}
            loss = dss_loss(
                *leaves, labels, p.star.to(dtype), bias=bias, kl=kl, backend=backend, group=group, **reference
            ).loss
            results.append([loss.detach(), *torch.autograd.grad(loss, leaves)])
        (loss, d_hidden, d_head), expected = results
        assert_tokens_close(loss, expected[0].double(), precision=dtype)
        assert_gradient_close(d_hidden, expected[1].double(), precision=dtype)
        if rank:
            assert torch.equal(d_head, torch.zeros_like(d_head))
        else:
            assert_gradient_close(d_head, expected[2].double(), precision=dtype)


def _nothing_but_the_label(rank: int, backend: str) -> None:
    """A bias of -inf leaves one word, which is every label: no other word has a share, and 0 times it is 0."""
    p = make_problem(17, 24, 68, torch.float64)
    alone = torch.full((68,), -torch.inf).double()
    alone[40] = 0
    mine = slice(rank * 34, (rank + 1) * 34)
    leaves = [t.clone().requires_grad_() for t in (p.hidden, p.lm_head[mine])]
    here: dict[str, Any] = {"bias": alone[mine], "backend": backend, "group": dist.group.WORLD}
    loss = weighted_ce(*leaves, torch.full((17,), 40), z_loss=1e-3, **here)
    hidden, word = p.hidden.double().requires_grad_(), p.lm_head[40].double().requires_grad_()
    plain = 1e-3 * (hidden @ word).square().mean()  # the log-partition is the one logit
    d_hidden, d_word = torch.autograd.grad(plain, (hidden, word))
    expected = torch.zeros(68, 24).double().index_copy_(0, torch.tensor([40]), d_word[None])
    assert_tokens_close(loss.detach(), plain.detach(), precision=torch.float64)
    got = torch.autograd.grad(loss, leaves)
    assert_gradient_close(got[0], d_hidden, precision=torch.float64)
    torch.testing.assert_close(got[1], expected[mine], rtol=1e-10, atol=1e-12)


def _unequal_shares(rank: int) -> None:
    """As DTensor splits a vocabulary that the ranks do not divide: label 40 would mean another word on each rank."""
    p = make_problem(17, 24, 67, torch.float64)
    mine = slice(0, 34) if rank == 0 else slice(34, 67)
    with pytest.raises(ValueError, match="every rank must hold equally many rows of lm_head, got 33 to 34"):
        weighted_ce(p.hidden, p.lm_head[mine], p.labels.clamp(max=60), group=dist.group.WORLD)
    flaw = torch.tensor(torch.nan if rank else 0.0)  # on a GPU one rank's flaw reaches every rank's loss
    stats = RowStats(torch.zeros(3), torch.zeros(3), None, None, None)
    assert VocabShard(0, 67, 67, dist.group.WORLD, flaw).combine(stats, reverse=False).lse.isnan().all()


class _Head(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj = torch.nn.Linear(24, 68, bias=False)

    def forward(self, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return weighted_ce(hidden, self.proj.weight, labels)


def _fsdp2(rank: int) -> None:
    """In the forward of the unit that owns it the head is whole; outside it is a DTensor, and the error says so."""
    from torch.distributed.fsdp import fully_shard

    p = make_problem(20, 24, 68, torch.float32)
    module = _Head()
    with torch.no_grad():
        module.proj.weight.copy_(p.lm_head)
    fully_shard(module)
    mine = slice(rank * 10, rank * 10 + 10)
    module(p.hidden[mine], p.labels[mine]).backward()
    whole = module.proj.weight.grad.full_tensor()
    head = p.lm_head.double().requires_grad_()
    parts = [torch.nn.functional.cross_entropy(p.hidden[i].double() @ head.T, p.labels[i])
             for i in (slice(0, 10), slice(10, 20))]  # fmt: skip
    (sum(parts) / RANKS).backward()
    assert_gradient_close(whole, head.grad, precision=torch.float32)
    with pytest.raises(TypeError, match=r"lm_head is a DTensor: gather it first, with lm_head.full_tensor\(\)"):
        weighted_ce(p.hidden, module.proj.weight, p.labels)


def vocabulary(rank: int, backend: str) -> None:
    _split_vocabulary(rank, backend)
    _masked_slice(rank, backend)
    _nothing_but_the_label(rank, backend)
    _tangent(rank, backend)
    _first_terms(rank, backend)
    here: dict[str, Any] = {"backend": backend, "group": dist.group.WORLD, "rank": rank, "ranks": RANKS}
    for case in covering_cases():
        check(case, **here)
    column_filter._DENSE = 2.0  # gathers all columns: this process ends here
    check(covering_cases()[0] | {"rows": "found"}, grad_tol=1e-13, **here)


def fused_vocabulary(rank: int, backend: str) -> None:
    _split_vocabulary(rank, backend)
    _masked_slice(rank, backend)


def _both(rank: int, backend: str) -> None:
    vocabulary(rank, backend)
    _unequal_shares(rank)
    _fsdp2(rank)


def work(_: str, name: str, backend: str) -> None:
    globals()[name](dist.get_rank(), backend)


def spawn(folder: Path, name: str, backend: str = "torch") -> None:
    on_two_ranks(work, folder, name, backend)


def test_a_split_vocabulary_and_fsdp2_on_two_ranks(tmp_path: Path) -> None:
    """One spawn: starting two interpreters costs more than what they do."""
    spawn(tmp_path, "_both")
