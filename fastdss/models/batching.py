"""Rows of several lengths as batches: which go together, how they become equally long, and what a tensor is hashed by.

One place for what scoring, reference values and the demo need alike.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor


def length_batches(
    sizes: Sequence[int],
    *,
    padded: float = math.inf,
    total: float = math.inf,
    rows: float = math.inf,
    longest_first: bool = False,
) -> Iterator[list[int]]:
    """Indices of rows of similar size, so that little is padding: each batch within the caps, or a single row.

    Args:
        padded: cap of a batch's number of rows times its largest size.
        total: cap of the sum of its sizes.
        rows: cap of its number of rows.
        longest_first: the batch that needs most memory comes first, so that too little of it shows at once.
    """
    batch: list[int] = []
    used = 0
    for index in sorted(range(len(sizes)), key=sizes.__getitem__, reverse=longest_first):
        count, used = len(batch) + 1, used + sizes[index]
        largest = sizes[batch[0] if batch and longest_first else index]
        if batch and (count > rows or count * largest > padded or used > total):
            yield batch
            batch, used = [], sizes[index]
        batch.append(index)
    if batch:
        yield batch


def padded_rows(rows: Sequence[Sequence[Any]], fill: Any, width: int, *, left: bool = False) -> list[list[Any]]:
    """The rows lengthened to ``width`` by ``fill``, on the right or, with ``left``, on the left."""
    return [[*[fill] * (width - len(row)), *row] if left else [*row, *[fill] * (width - len(row))] for row in rows]


def add_tensor(digest: Any, name: str, tensor: Tensor) -> None:
    """Feed the tensor's name, dtype, shape and every byte of it to a digest of hashlib."""
    digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
    digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
