"""The kernels that finish a gradient compile for every chip, without stack, spills or narrow addresses."""

from __future__ import annotations

import pytest
from fastdss.kernels.label_rows import BLOCK_D, label_rows_bwd_kernel
from fastdss.kernels.scale import BLOCK, scale_fwd_kernel

from .aot import TARGETS, compile_kernel
from .test_offsets import narrow_products
from .test_row_pass_aot import _check


@pytest.mark.parametrize("chip", TARGETS)
@pytest.mark.parametrize("scatter", [False, True])
def test_label_rows(chip: str, scatter: bool) -> None:
    pointers: dict[str, str | None] = {"target_ptr": "*fp32", "source_ptr": "*bf16", "lost_ptr": "*fp32"}
    sizes = {"label_ptr": "*i64", "width": "i32", "stride_target": "i32", "stride_source": "i32"}
    constants = {"SCATTER": scatter, "BLOCK_D": BLOCK_D, "stride_target_d": 1, "stride_source_d": 1}
    made = compile_kernel(label_rows_bwd_kernel, chip, pointers | sizes, constants, num_warps=4)
    _check(made, chip)
    assert narrow_products(made.ir) == []


@pytest.mark.parametrize("chip", TARGETS)
def test_scale(chip: str) -> None:
    arguments: dict[str, str | None] = {"gradient_ptr": "*fp32", "factor_ptr": "*fp32", "out_ptr": "*bf16"}
    made = compile_kernel(scale_fwd_kernel, chip, arguments | {"count": "i64"}, {"BLOCK": BLOCK}, num_warps=8)
    _check(made, chip)
    assert narrow_products(made.ir) == []
