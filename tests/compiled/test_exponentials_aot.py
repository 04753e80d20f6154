"""The kernel that makes exponentials compiles for every chip without stack or spills; its rows are found in 64 bit."""

from __future__ import annotations

import re

import pytest
from fastdss.kernels.configs import row_pass_config
from fastdss.kernels.exponentials import exponentials_fwd_kernel

from .aot import TARGETS, Resources, compile_kernel
from .test_offsets import narrow_products
from .test_row_pass_aot import _check

# Dtype of the logits, of E (None: not stored), over its logits, everything switched on.
FORMS = [
    pytest.param("fp32", "bf16", False, False, id="bf16"),
    pytest.param("fp32", "bf16", False, True, id="bf16, all options"),
    pytest.param("fp32", None, False, True, id="sums alone"),
    pytest.param("fp32", "fp32", True, True, id="fp32 in place"),
    pytest.param("fp64", "fp64", True, False, id="fp64 in place"),
]


def build(chip: str, dtype: str, out: str | None, in_place: bool, everything: bool) -> Resources:
    arguments: dict[str, str | None] = {
        "logits_ptr": f"*{dtype}",
        "out_ptr": None if out is None else f"*{out}",
        "bias_ptr": "*bf16" if everything else None,
        "label_ptr": "*i64",
        **{f"{name}_ptr": f"*{dtype}" for name in ("label_logit", "others", "total")},
        **{f"{name}_ptr": f"*{dtype}" if everything else None for name in ("cap_slope", "entropy", "rival")},
        "width": "i32",
        "stride_logits": "i32",
        "stride_out": "i32",
    }
    config = row_pass_config(128256, 8 if dtype == "fp64" else 4, has_ref=False, backend=TARGETS[chip].backend)
    constants = {"SCALE": 0.5, "SOFTCAP": 30.0} if everything else {"SCALE": 1.0, "SOFTCAP": None}
    constants |= {"IN_PLACE": in_place, "BLOCK_V": config.block_v}
    return compile_kernel(exponentials_fwd_kernel, chip, arguments, constants, num_warps=config.num_warps)


@pytest.mark.parametrize("chip", TARGETS)
@pytest.mark.parametrize(("dtype", "out", "in_place", "everything"), FORMS)
def test_every_form(chip: str, dtype: str, out: str | None, in_place: bool, everything: bool) -> None:
    made = build(chip, dtype, out, in_place, everything)
    _check(made, chip)
    if chip.startswith("sm_"):
        assert re.search(r"ld\.global\.v(4\.b32|2\.b64)", made.assembly), "not 16 bytes at a time"


def test_rows_are_found_by_64_bit_addresses() -> None:
    for out, in_place in (("bf16", False), ("fp32", True)):
        ir = build("sm_90", "fp32", out, in_place, everything=True).ir
        assert "tt.get_program_id" in ir
        assert ir.count("arith.muli") >= 1
        assert narrow_products(ir) == []
