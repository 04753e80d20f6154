"""Batches by length: each row once, within the caps, and the order that was asked for."""

import hashlib
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastdss.models.batching import add_tensor, length_batches, padded_rows

SIZES = st.lists(st.integers(1, 40), max_size=30)
CAPS = st.one_of(st.just(float("inf")), st.integers(1, 80))


@given(sizes=SIZES, padded=CAPS, total=CAPS, rows=CAPS, longest_first=st.booleans())
def test_every_row_once_within_the_caps(sizes, padded, total, rows, longest_first):
    batches = list(length_batches(sizes, padded=padded, total=total, rows=rows, longest_first=longest_first))
    order = list(itertools.chain.from_iterable(batches))
    assert order == sorted(range(len(sizes)), key=lambda i: -sizes[i] if longest_first else sizes[i])
    for batch in batches:
        inside = [sizes[i] for i in batch]
        assert len(batch) == 1 or len(batch) <= rows
        assert len(batch) == 1 or len(batch) * max(inside) <= padded
        assert len(batch) == 1 or sum(inside) <= total
    for batch, following in itertools.pairwise(batches):  # none is smaller than it has to be
        inside = [sizes[i] for i in [*batch, following[0]]]
        assert len(inside) > rows or len(inside) * max(inside) > padded or sum(inside) > total


@pytest.mark.parametrize(("left", "expected"), [(False, [[1, 2, 9], [3, 9, 9]]), (True, [[9, 1, 2], [9, 9, 3]])])
def test_padding_stands_where_it_was_asked_for(left, expected):
    assert padded_rows([[1, 2], [3]], 9, 3, left=left) == expected


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("b", torch.arange(6.0)),
        ("a", torch.arange(6.0).double()),
        ("a", torch.arange(6.0).reshape(2, 3)),
        ("a", torch.arange(6.0).flip(0)),
    ],
)
def test_whatever_differs_changes_the_digest(name, tensor):
    def digest(name, tensor):
        found = hashlib.sha256()
        add_tensor(found, name, tensor)
        return found.hexdigest()

    own = torch.arange(6.0)
    assert digest("a", own) == digest("a", own.clone()) == digest("a", torch.arange(12.0)[:6].requires_grad_())
    assert digest("a", own) != digest(name, tensor)
