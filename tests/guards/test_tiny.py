"""The guard that ships inside the package loads, and is scored like any other."""

from __future__ import annotations

import pytest
import torch

import fastdss.guards.guard
from fastdss import Guard, star_scores
from tests.support.builders import BATCH


def test_tiny_guard_scores_equal_one_forward_per_prefix():
    guard = Guard.tiny()
    tree, naive = (star_scores(guard, BATCH, method=method) for method in ("tree", "per_prefix"))
    for a, b in zip(tree.scores, naive.scores, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-6)


def test_missing_weights_are_a_clear_error(monkeypatch, tmp_path):
    monkeypatch.setattr(fastdss.guards.guard, "TINY_FOLDER", tmp_path)
    with pytest.raises(FileNotFoundError, match="the tiny guard's weights are not in"):
        Guard.tiny()
