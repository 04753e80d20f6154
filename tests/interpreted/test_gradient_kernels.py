"""What finishes a gradient: the scaling of backward, and what rounding took from the labels' entries."""

from __future__ import annotations

import pytest
import torch
from fastdss.kernels.label_rows import BLOCK_D, launch_label_rows_bwd
from fastdss.kernels.scale import BLOCK, launch_scale_fwd


@pytest.mark.parametrize(("wide", "dtype"), [(torch.float32, torch.float16), (torch.float64, torch.float32)])
@pytest.mark.parametrize("count", [0, 1, BLOCK, BLOCK + 1])
def test_scaling_rounds_once(count: int, wide: torch.dtype, dtype: torch.dtype) -> None:
    gradient, factor = torch.randn(count, dtype=wide), torch.tensor(1 / 3, dtype=wide)
    found = launch_scale_fwd(gradient, factor, dtype)
    assert torch.equal(found, (gradient * factor).to(dtype))


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("width", [5, BLOCK_D, BLOCK_D + 3])
@pytest.mark.parametrize("scatter", [False, True])
def test_label_rows(scatter: bool, width: int, transposed: bool) -> None:
    """Two rows have label 3; nothing is added where nothing was lost."""
    labels, lost = torch.tensor([3, 0, 6, 3]), torch.tensor([0.5, 0.0, -2.0, 0.25])
    rows, head = torch.randn(4, width), torch.randn(7, width)
    target, source = (head, rows) if scatter else (rows, head)
    if transposed:
        target, source = target.T.contiguous().T, source.T.contiguous().T
    expected = target.double()
    if scatter:
        expected.index_add_(0, labels, source.double() * lost[:, None])
    else:
        expected += source[labels].double() * lost[:, None]
    launch_label_rows_bwd(target, source, lost, labels, scatter=scatter)
    torch.testing.assert_close(target.double(), expected, rtol=1e-6, atol=1e-6)
