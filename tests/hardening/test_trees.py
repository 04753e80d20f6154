"""Prefix trees of random token lists against one forward each: no tokenizer decides what shapes there are."""

from __future__ import annotations

import functools
from itertools import accumulate
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastdss.prefix.engine import reference_logits, tree_logits
from fastdss.prefix.tree import build_tree
from tests.support.builders import ARCHITECTURES, make_model
from tests.support.profiles import examples

VERDICTS = [3, 5, 7]
Lists = list[list[int]]


@functools.cache
def model(architecture: str) -> Any:
    return make_model(architecture, 64)


def check(architecture: str, trees: list[Lists], prompts: list[int], **options: Any) -> None:
    """Logits of every list of every tree, against the untouched model's."""
    expected = reference_logits(model(architecture), VERDICTS, [ids for lists in trees for ids in lists])
    built = [build_tree(lists) for lists in trees]
    found = tree_logits(model(architecture), VERDICTS, built, prompts, gemm="default", **options)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_rendering_that_ends_inside_another(architecture: str) -> None:
    """Verdicts on the trunk, before and after the point to which two trees of one prompt share their tokens."""
    first = [[1, 2, 3], [1, 2, 3, 4, 5, 6, 7], [1, 2, 3, 4, 5]]
    second = [[1, 2, 3, 4, 5, 6, 9], [1, 2, 3, 4], [1, 2, 8]]
    check(architecture, [first, second], [0, 0])
    check(architecture, [first, second, second], [0, 1, 0], budget=2)
    check(architecture, [[[1, 2, 3, 4, 5]], [[1, 2, 3, 4, 5]]], [0, 0])  # equal to the last token
    check(architecture, [[[1], [1, 2]], [[1]]], [0, 0])


tokens = st.lists(st.integers(1, 3), min_size=1, max_size=14)  # three tokens: beginnings agree often
forests = st.lists(st.lists(tokens, min_size=1, max_size=6), min_size=1, max_size=4)


@examples(60)
@given(forests=forests, seed=st.integers(0, 3), budget=st.integers(1, 40), store=st.integers(1, 60),
       architecture=st.sampled_from(sorted(ARCHITECTURES)))  # fmt: skip
def test_any_forest(forests: list[Lists], seed: int, budget: int, store: int, architecture: str) -> None:
    """Any lists, in any order, longest anywhere; equal prompts or not; any budget and store."""
    prompts = [(seed >> i) & 1 for i in range(len(forests))]
    check(architecture, forests, prompts, budget=budget, store_tokens=store)


def test_the_check_sees_another_order_of_scores() -> None:
    """The comparison itself: two prefixes exchanged must fail."""
    lists = [[1, 2, 3], [1, 2, 3, 4, 5]]
    expected = reference_logits(model("llama"), VERDICTS, lists)
    found = tree_logits(model("llama"), VERDICTS, [build_tree(lists[::-1])], [0])
    assert list(accumulate(map(len, lists))) == [3, 8]
    assert not torch.allclose(found, expected, rtol=0, atol=2e-5)
