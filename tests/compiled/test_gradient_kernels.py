"""The kernels that finish a gradient compile for every chip, without stack, spills or narrow addresses."""

from __future__ import annotations

import pytest
from fastdss.kernels.label_rows import BLOCK_D, label_rows_bwd_kernel
from fastdss.kernels.row_terms import BLOCK_ROWS, row_terms_fwd_kernel
from fastdss.kernels.scale import BLOCK, scale_fwd_kernel
from fastdss.kernels.scaled_rows import BLOCK_D as ROWS_BLOCK
from fastdss.kernels.scaled_rows import scaled_rows_bwd_kernel

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


@pytest.mark.parametrize("chip", TARGETS)
@pytest.mark.parametrize("label", [False, True])
def test_scaled_rows(chip: str, label: bool) -> None:
    names = ("label_factor", "const", "head_sum")
    arguments: dict[str, str | None] = {"x_ptr": "*fp32", "factor_ptr": "*fp32", "out_ptr": "*bf16"}
    arguments |= {"head_ptr": "*bf16" if label else None, "label_ptr": "*i64" if label else None}
    arguments |= {f"{name}_ptr": "*fp32" if label else None for name in names}
    arguments |= dict.fromkeys(("width", "stride_x", "stride_out", "stride_head"), "i32")
    made = compile_kernel(
        scaled_rows_bwd_kernel, chip, arguments, {"BLOCK_D": ROWS_BLOCK, "stride_head_d": 1}, num_warps=4
    )
    _check(made, chip)
    assert narrow_products(made.ir) == []


@pytest.mark.parametrize("chip", TARGETS)
@pytest.mark.parametrize("kind", [0, 1, 2, 3])
def test_row_terms(chip: str, kind: int) -> None:
    given = (
        "label_logit",
        "others",
        "total",
        "cap_slope",
        "mean_logit",
        "entropy",
        "rival",
        "ce_weight",
        "term",
        "factor",
    )
    arguments: dict[str, str | None] = {f"{name}_ptr": "*fp32" for name in given}
    arguments |= {f"{name}_ptr": "*fp32" if kind else None for name in ("kl_weight", "ref_logprob")}
    arguments |= {"label_ptr": "*i64", "beta_ptr": "*fp32" if kind == 2 else None, "rows": "i32", "vocab_size": "i32"}
    constants = {"KL": kind, "DFT": kind == 3, "SMOOTHING": 0.1, "Z_LOSS": 1e-3, "SCALE": 0.5, "BLOCK_ROWS": BLOCK_ROWS}
    _check(compile_kernel(row_terms_fwd_kernel, chip, arguments, constants, num_warps=4), chip)
