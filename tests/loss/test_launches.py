"""How many kernels one call launches on a GPU: at N = 512 each costs as much as the row pass of a hundred tokens.

The device "meta" takes the code path of a GPU without computing anything, so its operations can be counted here; it
also shows that this path's 16-bit products, their ``out_dtype=`` and ``out=`` fit together.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch._dynamo  # keeps the functions of torch that it finds when it is imported: not those that stand in below
from fastdss.kernels.row_terms import RowTerms
from torch.utils._python_dispatch import TorchDispatchMode

from fastdss import dss_loss, weighted_ce
from fastdss.loss import chunked, inputs, ops
from fastdss.loss.functional import LiveRows

N, D, V = 512, 256, 1000
WITHOUT_KERNEL = {
    *("view", "_unsafe_view", "t", "transpose", "slice", "select", "expand", "unsqueeze", "squeeze", "detach", "alias"),
    *("as_strided", "split", "unbind", "new_empty", "empty_like", "empty"),
}


class Launches(TorchDispatchMode):
    """Counts operations that a GPU would run, inside our ops as well."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "fastdss":
            with self:
                return getattr(ops, func._opname)._init_fn(*args, **(kwargs or {}))
        if func is torch.ops.aten.addmm.dtype_out:  # whose shapes torch 2.11 does not know without a GPU
            self.count += 1
            return kwargs["out"]
        result = func(*args, **(kwargs or {}))
        same = any(result is a for a in args) and not func._schema.is_mutable  # to() of what is so already
        self.count += func._opname not in WITHOUT_KERNEL and not same
        return result


@pytest.fixture
def like_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def row_pass(call: Any, objective: Any, shard: Any, logits: torch.Tensor, *_: Any) -> tuple[torch.Tensor, ...]:
        return torch.zeros_like(logits[:, 0]), *logits.new_empty(2, logits.shape[0]).unbind()

    def exponentials(logits: torch.Tensor, *_: Any, **__: Any) -> None:
        logits.zero_()

    monkeypatch.setattr(chunked, "triton_row_pass", row_pass)  # one operation, as one kernel

    def row_terms(*given: Any, **_: Any) -> RowTerms:
        return RowTerms(*given[1].new_zeros((7, given[1].shape[0])).unbind(), None)

    def scaled(x: torch.Tensor, factor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return torch.zeros_like(x, dtype=dtype)

    def hidden(*given: Any) -> None:
        given[-1].zero_()

    monkeypatch.setattr("fastdss.kernels.exponentials.launch_exponentials_fwd", exponentials)
    monkeypatch.setattr("fastdss.kernels.row_terms.launch_row_terms_fwd", row_terms)
    monkeypatch.setattr("fastdss.kernels.scaled_rows.launch_scaled_rows_bwd", scaled)
    monkeypatch.setattr("fastdss.kernels.scaled_rows.launch_hidden_rows_bwd", hidden)
    monkeypatch.setattr(inputs, "choose_backend", lambda backend, device: "triton")
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: False)  # meta has none
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())


def launches(kl: str, rows: bool, chunk_bytes: int | None = None) -> int:
    def new(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(*shape, dtype=dtype, device="meta")

    hidden, head = (new(n, D, dtype=torch.bfloat16).requires_grad_() for n in (N, V))
    labels, star, index = new(N, dtype=torch.int64), new(N), new(400, dtype=torch.int64)
    options: dict[str, Any] = {"rows": LiveRows(index, 400)} if rows else {"compact": False}
    options["chunk_bytes"] = chunk_bytes
    with Launches() as seen:
        if kl == "none":
            loss = weighted_ce(hidden, head, labels, star, **options)
        elif kl == "reverse":
            reference = {"ref_hidden": hidden, "ref_lm_head": head}
            loss = dss_loss(hidden, head, labels, star, kl=kl, **reference, **options).loss
        else:
            loss = dss_loss(hidden, head, labels, star, kl=kl, ref_logprobs=star, **options).loss
        torch.autograd.grad(loss, (hidden, head))
    return seen.count


@pytest.mark.parametrize(
    ("kl", "rows", "most"), [("none", False, 37), ("none", True, 52), ("k2", True, 63), ("reverse", True, 82)]
)
def test_a_call_launches_no_more_than_it_did(like_a_gpu: None, kl: str, rows: bool, most: int) -> None:
    """Forward and backward with both gradients. One kernel follows the sums; what else works on [n] alone is checks,
    weights and, with rows=, gathering."""
    assert launches(kl, rows) <= most


@pytest.mark.parametrize(("kl", "most"), [("none", 52), ("k2", 73)])
def test_a_call_on_a_cpu_asks_for_no_more_operations_than_it_did(kl: str, most: int) -> None:
    """At N = 512 a small head's products take less time than these: each costs 2 to 5 microseconds beside them."""
    hidden, head = torch.randn(N, 8, requires_grad=True), torch.randn(16, 8, requires_grad=True)
    labels, star = torch.randint(16, (N,)), torch.rand(N)
    with Launches() as seen:
        if kl == "none":
            loss = weighted_ce(hidden, head, labels, star)
        else:
            loss = dss_loss(hidden, head, labels, star, kl=kl, ref_logprobs=-torch.rand(N)).loss
        torch.autograd.grad(loss, (hidden, head))
    assert seen.count <= most


def test_a_further_chunk_costs_few(like_a_gpu: None) -> None:
    two, four = (launches("k2", True, rows * 6 * 1024) for rows in (256, 128))
    assert 0 < four - two <= 2 * 22
