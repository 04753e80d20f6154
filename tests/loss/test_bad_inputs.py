"""The catalogue of bad and odd inputs: each gets an error that names argument, index and value, or the right answer."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

from fastdss import dss_loss, token_logprobs, weighted_ce
from fastdss.loss import exp_rows
from fastdss.loss.functional import live_rows
from tests.support.loss_cases import make_problem, run
from tests.support.numerics import assert_gradient_close, assert_tokens_close

P = make_problem(9, 6, 11, torch.float32)
H, W, Y, S, R = P.hidden, P.lm_head, P.labels, P.star, P.ref_logprobs


def at(tensor: torch.Tensor, index: int, value: float) -> torch.Tensor:
    changed = tensor.clone()
    changed[index] = value
    return changed


def ce(**changes: Any) -> torch.Tensor:
    return weighted_ce(**({"hidden": H, "lm_head": W, "labels": Y, "weights": S} | changes))


def dss(**changes: Any) -> Any:
    return dss_loss(**({"hidden": H, "lm_head": W, "labels": Y, "token_weights": S, "ref_logprobs": R} | changes))


def found_rows(**changes: Any) -> Any:
    return live_rows(**({"labels": Y, "weights": S} | changes))


LEARNT = torch.nn.Parameter(torch.tensor(0.7))  # as an option it would be taken as a constant, in silence


class FakeShard(torch.nn.Parameter):
    """What deepspeed leaves behind outside its gathering context."""

    ds_id = 0


BAD: list[tuple[Callable[..., Any], dict[str, Any], type[Exception], str]] = [
    # Liger's order
    (
        ce,
        {"hidden": W, "lm_head": H},
        ValueError,
        r"\[9\], got \[11, 6\]; it comes before lm_head",
    ),
    (ce, {"labels": at(Y, 3, 11)}, ValueError, r"labels\[3\]: expected a label in \[0, 11\) or -100, got 11"),
    (ce, {"labels": at(Y, 4, -1)}, ValueError, r"labels\[4\]: expected .*got -1"),
    (ce, {"weights": at(S, 2, float("nan"))}, ValueError, r"weights\[2\]: expected a finite number >= 0, got nan"),
    (ce, {"weights": at(S, 2, float("inf"))}, ValueError, r"weights\[2\]: expected .*got inf"),
    (ce, {"weights": at(S, 2, -0.5)}, ValueError, r"weights\[2\]: expected .*got -0.5"),
    (dss, {"token_weights": at(S, 6, 1.5)}, ValueError, r"token_weights\[6\]: expected a number in \[0, 1\], got 1.5"),
    (dss, {"token_weights": at(S, 6, float("nan"))}, ValueError, r"token_weights\[6\]: expected .*got nan"),
    (
        ce,
        {"hidden": H[:, :0], "lm_head": W[:, :0]},
        ValueError,
        r"lm_head: expected a weight that is not empty, got \[11, 0\]",
    ),
    (ce, {"rows": [0, 1]}, TypeError, "rows: expected a Tensor, got list"),
    (ce, {"num_items_in_batch": "9"}, TypeError, "num_items_in_batch: expected a number, got str"),
    (ce, {"num_items_in_batch": [9]}, TypeError, "num_items_in_batch: expected a number, got list"),
    (dss, {"ref_logprobs": R.tolist()}, TypeError, "ref_logprobs: expected a Tensor, got list"),
    (found_rows, {"labels": Y.tolist()}, TypeError, "labels: expected a Tensor, got list"),
    (found_rows, {"weights": S.tolist()}, TypeError, "weights: expected a Tensor, got list"),
    (
        dss,
        {"ref_logprobs": None, "kl": "forward", "ref_slope": H.tolist(), "ref_offset": R},
        TypeError,
        "ref_slope: expected a Tensor, got list",
    ),
    (ce, {"lm_head": W[:0]}, ValueError, r"lm_head: expected a weight that is not empty, got \[0, 6\]"),
    (ce, {"lm_head": W[:, :5]}, ValueError, r"lm_head: expected \[V, 6\], got \[11, 5\]"),
    (ce, {"lm_head": W.bfloat16()}, TypeError, "hidden is torch.float32, lm_head torch.bfloat16"),
    (ce, {"hidden": H.int(), "lm_head": W.int()}, TypeError, "hidden: expected float64, .* got torch.int32"),
    (ce, {"labels": Y.float()}, TypeError, "labels: expected integers, got torch.float32"),
    (ce, {"weights": S > 0}, TypeError, "weights: expected a floating dtype, got torch.bool"),
    (ce, {"weights": S.clone().requires_grad_()}, ValueError, r"weights: expected a constant.*weights.detach\(\)"),
    (ce, {"weights": S[1:]}, ValueError, r"weights: expected the shape of labels, \[9\], got \[8\]"),
    (ce, {"labels": Y[1:], "weights": S[1:]}, ValueError, r"hidden: expected \[..., D\] .*\[8\], got \[9, 6\]"),
    (ce, {"labels": Y.to("meta")}, ValueError, "labels is on meta, hidden on cpu"),
    (ce, {"bias": torch.zeros(10)}, ValueError, r"bias: expected \[11\], got \[10\]"),
    (ce, {"bias": torch.zeros(11).int()}, TypeError, "bias: expected a floating dtype, got torch.int32"),
    (ce, {"reduction": "avg"}, ValueError, "reduction: expected .* got 'avg'"),
    (
        ce,
        {"reduction": "sum", "num_items_in_batch": 3},
        ValueError,
        "num_items_in_batch goes with reduction='mean', got .*'sum'",
    ),
    (ce, {"num_items_in_batch": 0}, ValueError, "num_items_in_batch: expected a positive number, got 0"),
    (
        ce,
        {"num_items_in_batch": torch.tensor(3.0, requires_grad=True)},
        ValueError,
        r"num_items_in_batch: expected a constant.*detach\(\)",
    ),
    (ce, {"num_items_in_batch": torch.ones(9)}, ValueError, r"num_items_in_batch: expected one number, got \[9\]"),
    (ce, {"hidden": H[0], "labels": Y[0], "weights": S[0], "shift": True}, ValueError, "shift=True needs a token axis"),
    (ce, {"backend": "cuda"}, ValueError, "backend: expected .* got 'cuda'"),
    (ce, {"backend": "triton"}, ValueError, "backend='triton' needs a CUDA or ROCm device, but hidden is on cpu"),
    (ce, {"chunk_bytes": 0}, ValueError, "chunk_bytes: expected a positive number, got 0"),
    (ce, {"grad_tol": 0.0}, ValueError, r"grad_tol: expected None or a number in \(0, 1\), got 0.0"),
    (dss, {"grad_tol": float("nan")}, ValueError, r"grad_tol: expected None or a number in \(0, 1\), got nan"),
    (ce, {"grad_tol": 0.1, "compact": False}, ValueError, "grad_tol counts columns on the host, .*compact=False"),
    (ce, {"label_smoothing": 1.0}, ValueError, r"label_smoothing: expected a number in \[0, 1\), got 1.0"),
    (ce, {"z_loss": -1.0}, ValueError, "z_loss: expected a finite number >= 0, got -1.0"),
    (ce, {"softcap": 0.0}, ValueError, "softcap: expected None or a positive number, got 0.0"),
    (ce, {"logit_scale": float("nan")}, ValueError, "logit_scale: expected a finite number, got nan"),
    (ce, {"rows": torch.tensor([0, 9])}, ValueError, r"rows: expected positions in \[0, 9\), got 0 to 9"),
    (ce, {"rows": torch.tensor([1, 1])}, ValueError, "rows: expected each position once, got one twice"),
    (ce, {"rows": torch.tensor([1.0])}, TypeError, r"rows: expected \[n\] int64, got \[1\] torch.float32"),
    (ce, {"lm_head": FakeShard(torch.zeros(0, 6))}, ValueError, "lm_head is an ungathered ZeRO-3 shard.*GatheredParam"),
    (ce, {"hidden": [1.0]}, TypeError, "hidden: expected a Tensor, got list"),
    (ce, {"labels": [1] * 9}, TypeError, "labels: expected a Tensor, got list"),
    (ce, {"weights": [1.0] * 9}, TypeError, "weights: expected a Tensor, got list"),
    (ce, {"bias": [0.0] * 11}, TypeError, "bias: expected a Tensor, got list"),
    (ce, {"ignore_index": None}, TypeError, "ignore_index: expected an integer, got NoneType"),
    (ce, {"ignore_index": 1.5}, TypeError, "ignore_index: expected an integer, got float"),
    (ce, {"chunk_bytes": 1e6}, TypeError, "chunk_bytes: expected an integer, got float"),
    (ce, {"softcap": "30"}, TypeError, "softcap: expected a number, got str"),
    (ce, {"label_smoothing": "0"}, TypeError, "label_smoothing: expected a number, got str"),
    (ce, {"grad_tol": "1"}, TypeError, "grad_tol: expected a number, got str"),
    (ce, {"logit_scale": LEARNT}, TypeError, r"logit_scale: expected a number, got Parameter: pass its .item\(\)"),
    (ce, {"softcap": LEARNT}, TypeError, "softcap: expected a number, got Parameter"),
    (dss, {"kl_scale": LEARNT}, TypeError, "kl_scale: expected a number, got Parameter"),
    (dss, {"csft_beta": LEARNT.expand(9)}, ValueError, r"csft_beta: expected a constant.*detach\(\)"),
    (ce, {"labels": Y.clamp(min=0).to(torch.uint8).masked_fill(Y < 0, 156)}, ValueError, r"got 156"),
    (ce, {"labels": Y.clamp(min=0).to(torch.int8).masked_fill(Y < 0, -56), "ignore_index": 200}, ValueError, "got -56"),
    (dss, {"kl": "k4"}, ValueError, "kl: expected one of .* got 'k4'"),
    (dss, {"kl_scale": -1.0}, ValueError, "kl_scale: expected a finite number >= 0, got -1.0"),
    (dss, {"ref_logprobs": None}, ValueError, "either as ref_logprobs, or as ref_hidden"),
    (dss, {"ref_hidden": H, "ref_lm_head": W}, ValueError, "either as ref_logprobs, or as ref_hidden"),
    (dss, {"ref_logprobs": None, "ref_hidden": H}, ValueError, "ref_hidden needs ref_lm_head"),
    (dss, {"ref_lm_head": W}, ValueError, "ref_lm_head is of no use without ref_hidden"),
    (dss, {"ref_offset": R}, ValueError, "ref_offset is of no use without ref_slope"),
    (dss, {"kl": "reverse"}, ValueError, "kl='reverse' sums over the vocabulary"),
    (dss, {"ref_logprobs": R[1:]}, ValueError, r"ref_logprobs: expected the shape of labels, \[9\], got \[8\]"),
    (dss, {"ref_logprobs": R.int()}, TypeError, "ref_logprobs: expected a floating dtype, got torch.int32"),
    (
        dss,
        {"ref_logprobs": None, "ref_hidden": H, "ref_lm_head": W[1:]},
        ValueError,
        "vocabulary of 10, lm_head one of 11",
    ),
    (
        dss,
        {"ref_logprobs": None, "ref_hidden": H[1:], "ref_lm_head": W},
        ValueError,
        r"ref_hidden: expected .*got \[8, 6\]",
    ),
    (
        dss,
        {"ref_logprobs": None, "ref_hidden": H[:, 1:], "ref_lm_head": W},
        ValueError,
        r"ref_lm_head: expected \[V, 5\]",
    ),
    (dss, {"ref_logprobs": None, "ref_hidden": H.double(), "ref_lm_head": W.double()}, TypeError, "both be float64"),
]


@pytest.mark.parametrize(("function", "changes", "error", "message"), BAD, ids=[str(i) for i in range(len(BAD))])
def test_bad_input(function: Callable[..., Any], changes: dict[str, Any], error: type[Exception], message: str) -> None:
    function()  # the same call without the fault works
    with pytest.raises(error, match=message):
        function(**changes)


def test_live_rows_checks_on_the_host() -> None:
    with pytest.raises(ValueError, match=r"weights\[0\]: expected .*got -1.0"):
        live_rows(Y, at(S, 0, -1.0))
    with pytest.raises(ValueError, match=r"labels\[0\]: expected .*got 11"):
        live_rows(at(Y, 0, 11), S, vocab_size=11)
    with pytest.raises(TypeError, match="labels: expected integers"):
        live_rows(Y.float(), S)


def _gradients(loss: torch.Tensor, *leaves: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, leaves))


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1, "z_loss": 0.1}], ids=["plain", "smoothed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("case", ["all ignored", "zero weights", "no tokens"])
def test_nothing_to_learn_gives_zero(
    case: str, reduction: str, dtype: torch.dtype, options: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """bf16 keeps exponentials where a CPU multiplies it, and always on a GPU."""
    monkeypatch.setattr(exp_rows, "multiplies_bf16", lambda: True)
    hidden, head = (t.to(dtype, copy=True).requires_grad_() for t in (H, W))
    labels, weights, x = Y, S, hidden
    if case == "all ignored":
        labels = torch.full_like(Y, -100)
    elif case == "zero weights":
        weights = torch.zeros_like(S)
    else:
        x, labels, weights = hidden[:0], Y[:0], S[:0]
    bias = torch.zeros(11, requires_grad=True)
    loss = weighted_ce(x, head, labels, weights, bias=bias, reduction=reduction, **options).sum()
    assert loss == 0
    for gradient in _gradients(loss, hidden, head, bias):
        assert torch.equal(gradient, torch.zeros_like(gradient))
    main_grad = torch.ones(11, 6)
    weighted_ce(x, head, labels, weights, reduction=reduction, main_grad=main_grad, **options).sum().backward()
    assert torch.equal(main_grad, torch.ones(11, 6))


@pytest.mark.parametrize("options", [{}, {"compact": False}, {"rows": torch.arange(9)}], ids=["", "dense", "rows"])
def test_nan_counts_at_live_rows_and_nowhere_else(options: dict[str, Any]) -> None:
    labels, star = at(Y, 0, -100), at(at(S, 1, 0.0), 3, 1.0)
    clean = _with_gradients(H, labels, star, R, **options)
    dead = at(H, 0, float("nan"))  # ignored
    same = _with_gradients(dead, labels, star, at(at(R, 0, float("nan")), 3, float("nan")), **options)
    for a, b in zip(clean, same, strict=True):
        assert torch.equal(a, b)
    poisoned = weighted_ce(at(H, 1, float("nan")), W, labels, star, **options)  # zero weight
    assert torch.equal(poisoned, weighted_ce(H, W, labels, star, **options))
    assert weighted_ce(at(H, 2, float("nan")), W, labels, star, **options).isnan()
    assert dss_loss(at(H, 2, float("nan")), W, labels, star, ref_logprobs=R, **options).loss.isnan()


def test_an_infinite_logit_is_not_taken_for_certainty() -> None:
    """inf - inf is NaN, at the label too, where it would make its probability 1; -inf there is an infinite loss."""
    for dtype in (torch.float32, torch.float16):  # by exponentials, and by the row pass
        hidden, head = torch.ones(1, 1, dtype=dtype), torch.tensor([[1.0], [-1.0]], dtype=dtype)
        for big, expected in ((float("inf"), float("nan")), (-float("inf"), float("inf"))):
            got = weighted_ce(hidden, head, torch.tensor([0]), bias=torch.tensor([big, 0.0]))
            assert torch.equal(got, torch.tensor(expected)) or (got.isnan() and expected != expected)


def _with_gradients(
    hidden: torch.Tensor, labels: torch.Tensor, star: torch.Tensor, ref: torch.Tensor, **options: Any
) -> list[torch.Tensor]:
    leaves = [hidden.clone().requires_grad_(), W.clone().requires_grad_()]
    loss = dss_loss(*leaves, labels, star, ref_logprobs=ref, **options).loss
    return [loss.detach(), *_gradients(loss, *leaves)]


def test_a_weight_on_an_ignored_token_has_no_effect() -> None:
    ignored = int((Y == -100).nonzero()[0])
    for value in (7.0, float("nan"), -1.0):
        assert torch.equal(ce(weights=at(S, ignored, value)), ce())


def test_memory_layout_does_not_matter() -> None:
    hidden, head = H.double(), W.double()
    expected = weighted_ce(hidden, head, Y, S)
    transposed = hidden.T.contiguous().T
    strided = torch.stack([head, head], dim=2)[..., 0]
    same = torch.ones(()).double().expand(9)
    assert_tokens_close(weighted_ce(transposed, strided, Y, S), expected, precision=torch.float64)
    assert torch.equal(weighted_ce(hidden, head, Y, same), weighted_ce(hidden, head, Y))
    one = hidden[:1].expand(9, 6).detach().requires_grad_()
    copied = hidden[:1].repeat(9, 1).requires_grad_()
    ours, theirs = (_gradients(weighted_ce(x, head, Y, S), x)[0] for x in (one, copied))
    assert_gradient_close(ours, theirs, precision=torch.float64)


def test_leading_dimensions_are_free() -> None:
    flat = token_logprobs(H, W, Y)
    assert torch.equal(token_logprobs(H.view(3, 3, 6), W, Y.view(3, 3)), flat.view(3, 3))
    single = token_logprobs(H[0], W, Y[0])
    assert single.shape == ()
    assert_tokens_close(single, flat[0].double(), precision=torch.float32)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8])
def test_labels_of_any_integer_type(dtype: torch.dtype) -> None:
    labels = Y.clamp(min=0)
    for shift in (False, True):  # an unsigned type cannot hold what fills the end
        assert torch.equal(ce(labels=labels.to(dtype), shift=shift), ce(labels=labels, shift=shift))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_num_items_as_a_tensor_of_any_kind_leaves_a_scalar(dtype: torch.dtype) -> None:
    expected = ce(hidden=H.to(dtype), lm_head=W.to(dtype), num_items_in_batch=7)
    for items in (torch.tensor([7]), torch.tensor([7.0], dtype=torch.float64), torch.tensor(7.0, dtype=torch.float64)):
        got = ce(hidden=H.to(dtype), lm_head=W.to(dtype), num_items_in_batch=items)
        assert (got.shape, got.dtype) == ((), torch.float32)
        assert torch.equal(got, expected)


@pytest.mark.parametrize("kl", ["k2", "reverse"])
def test_rows_made_without_kl_scale_are_refused(kl: str) -> None:
    """They hold every position, but say that the reference counts at none: its log-probabilities would all be 0."""
    rows = live_rows(Y, S.clamp(0.1, 0.9))
    with pytest.raises(ValueError, match="kl_rows leave out position 0"):
        dss(token_weights=S.clamp(0.1, 0.9), rows=rows, kl=kl, ref_logprobs=None, ref_hidden=H, ref_lm_head=W)


def test_impossible_values_under_compile_make_the_loss_nan() -> None:
    """Where a check would be a graph break, or a wait on a GPU, the loss itself tells."""
    compiled = torch.compile(weighted_ce, fullgraph=True, backend="eager")
    assert not compiled(H, W, Y, S).isnan()
    assert compiled(H, W, at(Y, 0, 11), S + 0.1).isnan()
    assert compiled(H, W, Y, at(S, 0, -0.5)).isnan()
    assert compiled(H, W, Y, at(S, 0, float("inf"))).isnan()
    everything = torch.arange(9)
    assert not compiled(H, W, Y, S, rows=everything.flip(0)).isnan()
    assert compiled(H, W, Y, S, rows=everything[1:]).isnan()
    assert compiled(H, W, Y, S, rows=torch.cat([everything, everything[:1]])).isnan()


def test_kl_scale_zero_needs_no_reference_work() -> None:
    loss = dss(kl_scale=0.0, ref_logprobs=torch.full((9,), float("nan")))
    assert torch.equal(loss.loss, ce())
    assert torch.equal(loss.kl, torch.zeros(()))


def test_reruns_are_bitwise_equal() -> None:
    first, second = (run(P, "reverse", chunk_bytes=1024) for _ in range(2))
    for a, b in ((first.d_head, second.d_head), (first.d_hidden, second.d_hidden), (first.loss.loss, second.loss.loss)):
        assert torch.equal(a, b)


@pytest.mark.parametrize("backend", ["triton", "fused"])
def test_a_backend_whose_package_is_missing(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "triton" or "fastdss.kernels." in name]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(ValueError, match=f"backend='{backend}' needs triton .*: install it, or use backend='torch'"):
        ce(backend=backend)
