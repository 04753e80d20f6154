"""What the engine promises beyond numbers: memory, rows left out, chunks, reruns, ops."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fastdss import dss_loss, token_logprobs, weighted_ce
from fastdss.loss import chunked, exp_rows, gemm, ops
from fastdss.loss.functional import LiveRows, live_rows
from fastdss.loss.objective import Objective
from tests.support.loss_cases import KLS, make_problem, run, truth
from tests.support.numerics import assert_gradient_close, assert_tokens_close


class Largest(TorchDispatchMode):
    """The largest tensor that any operation made, inside our ops as well, and how many new ones of one shape."""

    def __init__(self, watched: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.elements, self.watched, self.made = 0, watched, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "fastdss":
            with self:
                return getattr(ops, func._opname)._init_fn(*args, **(kwargs or {}))
        result = func(*args, **(kwargs or {}))
        known = {
            a.untyped_storage().data_ptr() for a in (*args, *(kwargs or {}).values()) if isinstance(a, torch.Tensor)
        }
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
                self.made += tensor.shape == self.watched and tensor.untyped_storage().data_ptr() not in known
        return result


@pytest.mark.parametrize("kl", KLS)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_no_tensor_of_all_logits_exists(kl: str, reduction: str) -> None:
    n, d, v = 64, 8, 640
    problem = make_problem(n, d, v, torch.float32)
    upstream = torch.ones(n) if reduction == "none" else None
    with Largest() as seen:
        run(problem, kl, upstream, reduction=reduction, chunk_bytes=4 * 8 * v)
    assert 8 * v <= seen.elements < n * v / 2


def test_a_frozen_head_makes_no_weight_gradient() -> None:
    p = make_problem(64, 8, 640, torch.float32)
    # Kept exponentials meet the factor before the product; a sum over chunks has a scaled copy.
    chunks = 4 * 640 * 16
    for trained, factor, size, expected in ((False, 2.0, None, 0), (True, 2.0, None, 1), (True, 1.0, chunks, 1),
                                            (True, 2.0, chunks, 2)):  # fmt: skip
        hidden, head = p.hidden.clone().requires_grad_(), p.lm_head.clone().requires_grad_(trained)
        with Largest(watched=(640, 8)) as seen:
            weighted_ce(hidden, head, p.labels, chunk_bytes=size).backward(torch.tensor(factor))
        assert seen.made == expected
        assert hidden.grad is not None


def test_frozen_hidden_gives_the_head_its_gradient() -> None:
    p = make_problem(33, 48, 130, torch.float32)
    head = p.lm_head.clone().requires_grad_()
    dss_loss(p.hidden, head, p.labels, p.star, ref_logprobs=p.ref_logprobs, bias=p.bias).loss.backward()
    assert_gradient_close(head.grad, truth(p, "k2").d_head, precision=torch.float32)


@pytest.mark.parametrize("kl", ["k2", "reverse"])
def test_the_result_does_not_depend_on_the_chunk_size(kl: str) -> None:
    """16-bit parameters, few chunks against many: dW is one fp32 sum either way."""
    p = make_problem(160, 32, 500, torch.bfloat16)  # more rows than exponentials are kept of
    one, many = (run(p, kl, chunk_bytes=size) for size in (4 * 512 * 80, 4 * 512 * 4))
    assert (many.d_head != one.d_head).float().mean() < 0.01  # roundings that fell the other way
    assert (many.d_head - one.d_head).float().norm() < 2**-11 * one.d_head.float().norm()
    assert_tokens_close(many.loss.token_ce, one.loss.token_ce.double(), precision=torch.float32)


def _count_gemm_rows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    rows: list[int] = []
    real = gemm.project

    def counting(x: torch.Tensor, head: torch.Tensor, out: torch.Tensor) -> None:
        rows.append(x.shape[0])
        real(x, head, out)

    monkeypatch.setattr(chunked, "project", counting)
    monkeypatch.setattr(exp_rows, "project", counting)
    return rows


def test_rows_that_cannot_matter_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    p = make_problem(40, 16, 50, torch.float32)
    counts = p.labels != -100
    rows = _count_gemm_rows(monkeypatch)
    weighted_ce(p.hidden, p.lm_head, p.labels, p.star)
    assert rows == [int((counts & (p.star > 0)).sum())]
    rows.clear()
    run(p, "reverse")  # policy rows, then the reference's: only those with (1 - star) * kl_scale > 0
    assert rows == [int(counts.sum()), int((counts & (p.star < 1)).sum())]


@pytest.mark.parametrize("kl", ["k2", "reverse"])
@pytest.mark.parametrize("how", ["rows", "index", "not compact"])
@pytest.mark.parametrize("chunk_bytes", [None, 4 * 64 * 2 * 5])
def test_live_rows_and_no_compaction_agree_with_the_default(kl: str, how: str, chunk_bytes: int | None) -> None:
    p = make_problem(40, 16, 50, torch.float32)
    live = live_rows(p.labels, p.star, kl_scale=0.5)
    options = {"rows": {"rows": live}, "index": {"rows": live.index}, "not compact": {"compact": False}}[how]
    actual, expected = run(p, kl, chunk_bytes=chunk_bytes, **options), truth(p, kl)
    assert_tokens_close(actual.loss.token_kl, expected.loss.token_kl, precision=torch.float32)
    assert_tokens_close(actual.loss.token_ce, expected.loss.token_ce, precision=torch.float32)
    assert_gradient_close(actual.d_head, expected.d_head, precision=torch.float32)
    assert_gradient_close(actual.d_hidden, expected.d_hidden, precision=torch.float32)


@pytest.mark.parametrize("kl", ["k2", "reverse", "forward"])
@pytest.mark.parametrize("options", [{"rows": torch.arange(5)}, {"compact": False}], ids=["index", "not compact"])
def test_the_reference_says_nothing_where_its_weight_is_zero(kl: str, options: dict[str, Any]) -> None:
    """Rows without a KL weight meet the reference where nobody sorted them out; a NaN there must not get through."""
    p = make_problem(5, 8, 20, torch.float32)
    star = torch.tensor([1.0, 0.5, 0.0, 1.0, 0.3])
    results = []
    for fill in (0.0, torch.nan):
        hidden, head = (t.clone().requires_grad_() for t in (p.hidden, p.lm_head))
        ref_hidden = torch.where(star[:, None] == 1, fill, p.ref_hidden)
        loss = dss_loss(
            hidden, head, p.labels.clamp(min=0), star, kl=kl, ref_hidden=ref_hidden, ref_lm_head=p.ref_lm_head,
            **options,
        )  # fmt: skip
        results.append((loss.loss.detach(), *torch.autograd.grad(loss.loss, (hidden, head))))
    for clean, spoilt in zip(*results, strict=True):
        assert torch.equal(clean, spoilt)


def test_live_rows_puts_kl_rows_first() -> None:
    labels, star = torch.tensor([3, -100, 4, 5, 6]), torch.tensor([1.0, 0.5, 0.2, 0.0, 1.0])
    live = live_rows(labels, star, kl_scale=0.5)
    assert (live.index.tolist(), live.kl_rows) == ([2, 3, 0, 4], 2)
    assert live_rows(labels, star).index.tolist() == [0, 2, 4]
    assert isinstance(live.to("cpu"), LiveRows)


@pytest.mark.parametrize("shift", [False, True])
def test_shift_pairs_hidden_with_the_next_token(shift: bool) -> None:
    torch.manual_seed(0)
    hidden, head = torch.randn(2, 6, 8).double(), torch.randn(20, 8).double()
    labels, star, ref = torch.randint(0, 20, (2, 6)), torch.rand(2, 6).double(), -torch.rand(2, 6).double()
    got = dss_loss(hidden, head, labels, star, ref_logprobs=ref, shift=shift, reduction="none")
    at = slice(1, None) if shift else slice(None)
    held = hidden[:, :-1] if shift else hidden
    expected = dss_loss(held, head, labels[:, at], star[:, at], ref_logprobs=ref[:, at], reduction="none")
    assert_tokens_close(got.loss[:, : held.shape[1]], expected.loss, precision=torch.float64)
    assert not shift or not got.loss[:, -1].any()
    live = live_rows(labels, star, kl_scale=0.5, shift=shift)
    again = dss_loss(hidden, head, labels, star, ref_logprobs=ref, shift=shift, rows=live)
    assert_tokens_close(again.loss, (expected.loss.sum() / labels[:, at].numel()), precision=torch.float64)


def test_metamorphic() -> None:
    p = make_problem(33, 48, 130, torch.float64)
    weights = p.star.double()
    base = weighted_ce(p.hidden, p.lm_head, p.labels, weights)
    assert_tokens_close(weighted_ce(p.hidden, p.lm_head, p.labels, 3 * weights), 3 * base, precision=torch.float64)
    rows, columns = torch.randperm(33), torch.randperm(130)
    moved = weighted_ce(p.hidden[rows], p.lm_head, p.labels[rows], weights[rows])
    assert_tokens_close(moved, base, precision=torch.float64)
    inverse = columns.argsort()
    labels = torch.where(p.labels == -100, -100, inverse[p.labels.clamp(min=0)])
    assert_tokens_close(weighted_ce(p.hidden, p.lm_head[columns], labels, weights), base, precision=torch.float64)
    for kl in ("reverse", "forward"):
        same = dss_loss(p.hidden, p.lm_head, p.labels, weights, kl=kl, ref_hidden=p.hidden, ref_lm_head=p.lm_head)
        assert_tokens_close(same.kl, torch.zeros(()).double(), precision=torch.float64)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_second_backward_is_right_and_a_double_backward_refused(reduction: str) -> None:
    p = make_problem(9, 8, 20, torch.float64)
    head = p.lm_head.clone().requires_grad_()
    loss = weighted_ce(p.hidden, head, p.labels, reduction=reduction).sum()
    loss.backward(retain_graph=True)
    first = head.grad.clone()
    loss.backward()
    assert torch.equal(head.grad, 2 * first)
    loss = weighted_ce(p.hidden, head, p.labels, reduction=reduction).sum()
    with pytest.raises(RuntimeError, match="differentiated once"):
        torch.autograd.grad(loss, head, create_graph=True)


def test_a_gradient_changed_in_place_cannot_spoil_a_second_backward() -> None:
    """In full precision autograd could hand out the very tensor it saved; it does so where no backward will follow."""
    p = make_problem(9, 8, 20, torch.float32)
    head = p.lm_head.clone().requires_grad_()
    loss = weighted_ce(p.hidden, head, p.labels, chunk_bytes=8 * 32 * 3)
    loss.backward(retain_graph=True)
    once = head.grad.clone()
    head.grad.mul_(3)
    torch.autograd.grad(loss, head, retain_graph=True)[0].mul_(3)
    assert torch.equal(torch.autograd.grad(loss, head)[0], once)


def test_tied_embeddings_add_their_gradients() -> None:
    p = make_problem(9, 8, 20, torch.float64)
    tied = p.lm_head.clone().requires_grad_()
    ids = torch.randint(0, 20, (9,))
    weighted_ce(tied[ids], tied, p.labels).backward()
    ours, tied.grad = tied.grad, None
    torch.nn.functional.cross_entropy(tied[ids] @ tied.T, p.labels).backward()
    assert_gradient_close(ours, tied.grad, precision=torch.float64)


def test_accumulated_micro_batches_are_the_whole_batch() -> None:
    p = make_problem(33, 48, 130, torch.float64)
    head = p.lm_head.clone().requires_grad_()
    items = int((p.labels != -100).sum())
    for part in (slice(0, 10), slice(10, 33)):
        weighted_ce(p.hidden[part], head, p.labels[part], num_items_in_batch=items).backward()
    accumulated, head.grad = head.grad, None
    weighted_ce(p.hidden, head, p.labels).backward()
    assert_gradient_close(accumulated, head.grad, precision=torch.float64)


def test_autocast_takes_fp32_parameters_and_returns_fp32_gradients() -> None:
    p = make_problem(33, 48, 130, torch.float32)
    hidden, head = p.hidden.clone().requires_grad_(), p.lm_head.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = weighted_ce(hidden, head, p.labels)
    loss.backward()
    rounded = [t.bfloat16().double().requires_grad_() for t in (p.hidden, p.lm_head)]
    torch.nn.functional.cross_entropy(rounded[0] @ rounded[1].T, p.labels).backward()
    assert_tokens_close(loss.detach(), _ce(rounded, p.labels), precision=torch.bfloat16)
    assert (hidden.grad.dtype, head.grad.dtype) == (torch.float32, torch.float32)
    assert_gradient_close(head.grad, rounded[1].grad, precision=torch.float32)  # never rounded to 16 bit
    assert_gradient_close(hidden.grad, rounded[0].grad, precision=torch.bfloat16)


def _ce(leaves: list[torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(leaves[0] @ leaves[1].T, labels).detach()


def test_a_gradient_scaler_keeps_fp16_gradients_alive() -> None:
    """Without its factor these would be below fp16's smallest number: dZ is made before the factor is known."""
    p = make_problem(33, 48, 130, torch.float16)
    hidden, head = p.hidden.clone().requires_grad_(), p.lm_head.clone().requires_grad_()
    weights = torch.full((33,), 1e-6)
    (weighted_ce(hidden, head, p.labels, weights) * 2.0**16).backward()
    true = [t.double().requires_grad_() for t in (p.hidden, p.lm_head)]
    (torch.nn.functional.cross_entropy(true[0] @ true[1].T, p.labels) * 1e-6 * 2.0**16).backward()
    assert_gradient_close(head.grad, true[1].grad, precision=torch.float16)


def _call(kl: str, needs: bool) -> tuple[Any, ...]:
    p = make_problem(9, 8, 20, torch.float32)
    full = kl in ("reverse", "forward")
    counts = (p.labels != -100).float()
    leaves = [t.clone().requires_grad_(needs) for t in (p.hidden, p.lm_head, p.bias)]
    weights = (p.star * counts, (1 - p.star) * counts)
    reference = (None, None, None, p.ref_hidden, p.ref_lm_head, None) if full else (p.ref_logprobs, *[None] * 5)
    spec = Objective(kl).encode()
    return (
        *leaves,
        p.labels,
        *weights,
        *reference,
        None,
        -1,
        spec,
        torch.float32,
        "torch",
        "vendor",
        0,
        True,
        0.1,
        kl == "k3",
        "",
    )


@pytest.mark.parametrize("kl", ["k3", "reverse"])
def test_opcheck(kl: str) -> None:
    torch.library.opcheck(ops.summed_loss, (*_call(kl, True), [True, True, True]))
    torch.library.opcheck(ops.token_loss, _call(kl, True))
    upstream = torch.randn(9), *_call(kl, False)
    torch.library.opcheck(ops.token_loss_backward, (None, *upstream, [True, False, True]))
    main_grad = torch.randn_like(upstream[2])
    torch.library.opcheck(ops.token_loss_backward, (main_grad, *upstream, [True, True, True]))
    torch.library.opcheck(ops.scaled, (torch.randn(3, 4), torch.tensor(2.0), torch.bfloat16, "torch"))


@pytest.mark.parametrize(("reduction", "backend"), [("mean", "aot_eager"), ("none", "aot_eager"), ("mean", "inductor")])
def test_compile_without_a_graph_break(reduction: str, backend: str) -> None:
    p = make_problem(9, 8, 20, torch.float32)

    def step(hidden: torch.Tensor, head: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        options = {"ref_logprobs": p.ref_logprobs, "reduction": reduction, "token_stats": True}
        found = dss_loss(hidden * 2, head, p.labels, p.star, **options)
        return found.loss.sum(), torch.stack([found.token_entropy, found.token_correct.float()])

    results = []
    for function in (step, torch.compile(step, fullgraph=True, backend=backend)):
        leaves = [t.clone().requires_grad_() for t in (p.hidden, p.lm_head)]
        loss, told = function(*leaves)
        assert told.any()
        loss.backward()
        results.append([*(t.grad for t in leaves), told])
    for eager, compiled in zip(*results, strict=True):
        assert_gradient_close(compiled, eager.double(), precision=torch.float32)


def test_no_gradient_means_no_gradient_work() -> None:
    p = make_problem(64, 8, 640, torch.float32)
    with torch.no_grad(), Largest(watched=(640, 8)) as seen:
        token_logprobs(p.hidden, p.lm_head.requires_grad_(), p.labels)
        weighted_ce(p.hidden, p.lm_head, p.labels)
    assert seen.made == 0
