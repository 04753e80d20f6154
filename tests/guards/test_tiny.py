"""The guard that ships inside the package loads, and is scored like any other."""

from __future__ import annotations

import pytest
import torch

import fastdss.guards.guard
from fastdss import Guard, star_scores
from fastdss.guards.known import TINY_FOLDER
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


def test_system_and_tool_turns_are_taken_as_the_card_says():
    """Instead of refusing every chat file that has one."""
    guard = Guard.tiny()
    plain = [{"role": "user", "content": "How do I reach Ann?"}, {"role": "assistant", "content": "Ring her bell."}]
    found = '{"name": "find", "arguments": {}}', "Ann Lee, phone 555-0147"
    chats = [
        plain,
        [{"role": "system", "content": "Be brief; phone 555-0199."}, *plain],
        [plain[0], {"role": "assistant", "content": found[0]}, {"role": "tool", "content": found[1]}, plain[1]],
    ]
    alone, told, looked = star_scores(guard, {"messages": chats}).scores
    assert torch.equal(alone, told)
    assert alone.min() > 0.5 > looked.max()
    card = " ".join((TINY_FOLDER / "README.md").read_text().split())
    assert "leaves system turns out" in card
    assert "what a tool says counts as the assistant's words" in card
