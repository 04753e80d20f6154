"""Quantised guards through transformers' own configuration, on a CPU: exact to the quantised model, near the whole one.

``make test-guards`` installs torchao. The built-in guard is small, so its scores move more than a large one's would.
"""

from __future__ import annotations

import pytest
import torch
from transformers import TorchAoConfig

from fastdss import Guard, star_scores
from fastdss.guards.known import TINY, TINY_FOLDER
from training import held_out

torchao = pytest.importorskip("torchao.quantization", reason="make test-guards installs torchao")


def load(**how) -> Guard:
    return Guard.from_pretrained(str(TINY_FOLDER), spec=TINY, **how)


@pytest.fixture(scope="module")
def batch() -> dict:
    rows = [make(7, i) for i in range(8) for make in (held_out.poisoned, held_out.benign)]
    return {"messages": [row.messages() for row in rows]}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_eight_bit_weights(batch: dict, dtype: torch.dtype) -> None:
    """In single precision too, where a CPU's prepacked layers must leave quantised weights alone."""
    config = TorchAoConfig(torchao.Int8WeightOnlyConfig())
    guard = load(dtype=dtype, quantization_config=config)
    assert type(guard.model.model.layers[0].mlp.up_proj.weight).__name__ != "Parameter"
    tree, apart = (torch.cat(star_scores(guard, batch, method=m).scores) for m in ("tree", "per_prefix"))
    whole = torch.cat(star_scores(load(dtype=torch.float32), batch).scores)
    rounded = torch.cat(star_scores(load(dtype=torch.bfloat16), batch).scores)
    noise = (rounded - whole).abs().max()
    assert (tree - apart).abs().max() <= (1e-5 if dtype == torch.float32 else noise)
    assert 1e-6 < (tree - whole).abs().max() <= 5 * noise
    assert ((tree < 0.5) != (whole < 0.5)).sum() == 0
