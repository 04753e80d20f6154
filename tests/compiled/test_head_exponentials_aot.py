"""The product with exponentials compiles for its chips as pinned: by tensor cores, without stack or spills."""

from __future__ import annotations

import re

import pytest
from fastdss.kernels.configs import (
    HEAD_EXPONENTIALS,
    HEAD_EXPONENTIALS_BY_DEFAULT,
    HEAD_EXPONENTIALS_CANDIDATES,
    HEAD_EXPONENTIALS_TOLD,
    HeadConfig,
)
from fastdss.kernels.head_exponentials import (
    BLOCK_D,
    BLOCK_ROWS,
    BLOCK_TILES,
    head_exponentials_fwd_kernel,
    label_logits_fwd_kernel,
    row_sums_fwd_kernel,
)

from .aot import SHARED_LIMIT, STACK, TARGETS, Resources, compile_kernel
from .test_offsets import narrow_products
from .test_row_pass_aot import _check

CHIPS = list(HEAD_EXPONENTIALS_BY_DEFAULT)
PRODUCT = {"sm_80": "mma.sync", "sm_90": "wgmma.mma_async", "sm_100": "tcgen05.mma", "gfx942": "v_mfma_f32"}
VECTORS: dict[str, str | None] = {
    "label_ptr": "*i64",
    **{f"{name}_ptr": "*fp32" for name in ("label_logit", "offset", "cap_slope", "sum", "peak", "spread")},
    **{f"{name}_ptr": "*fp32" for name in ("others", "total", "entropy", "rival")},
    "again_ptr": "*i32",
}
SIZES: dict[str, str | None] = dict.fromkeys(
    ("rows", "width", "depth", "tiles", "stride_x", "stride_head", "stride_out"), "i32"
)


def build(
    chip: str,
    config: HeadConfig,
    *,
    finished: bool = False,
    store: bool = True,
    again: bool = False,
    even: bool = True,
    told: bool = False,
) -> Resources:
    def matrix(rows: int, columns: int) -> str:
        return f"tensordesc<bf16[{rows}, {columns}]>" if config.descriptors else "*bf16"

    stored_n = config.block_n // 2 if config.halves else config.block_n
    matrices: dict[str, str | None] = {
        "x": matrix(config.block_m, config.block_k),
        "head": matrix(config.block_n, config.block_k),
        "out": matrix(config.block_m, stored_n) if store else None,
        "bias_ptr": "*bf16" if finished else None,
    }
    arguments = matrices | VECTORS | SIZES | {"spread_ptr": "*fp32" if told else None}
    arguments = {name: kind for name, kind in arguments.items() if name in head_exponentials_fwd_kernel.arg_names}
    constants = {"SCALE": 0.5 if finished else 1.0, "SOFTCAP": 30.0 if finished else None}
    constants |= {"STORE": store, "AGAIN": again, "EVEN_K": even}
    constants |= {"DESCRIPTORS": config.descriptors, "HALVES": config.halves, "GROUP_M": config.group_m}
    constants |= {"BLOCK_M": config.block_m, "BLOCK_N": config.block_n, "BLOCK_K": config.block_k}
    return compile_kernel(
        head_exponentials_fwd_kernel, chip, arguments, constants, num_warps=config.num_warps, stages=config.num_stages
    )


def check_product(made: Resources, chip: str) -> None:
    if chip.startswith("gfx"):
        # Masks of whole waves overflow into lanes of vector registers there, which is no memory traffic.
        vector_spills = re.search(r"\.vgpr_spill_count:\s*(\d+)", made.assembly)
        assert vector_spills
        assert max(made.stack, int(vector_spills[1])) <= STACK
        assert made.shared <= SHARED_LIMIT[chip]
    else:
        _check(made, chip)
    assert PRODUCT[chip] in made.assembly


FORMS = [
    pytest.param({}, id="plain"),
    pytest.param({"finished": True}, id="softcap, bias, scale"),
    pytest.param({"store": False}, id="sums alone"),
    pytest.param({"again": True}, id="again"),
    pytest.param({"finished": True, "again": True, "even": False}, id="everything, ragged"),
    pytest.param({"told": True}, id="entropies"),
    pytest.param({"told": True, "finished": True, "even": False}, id="everything and entropies"),
]


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("form", FORMS)
def test_every_form(chip: str, form: dict[str, bool]) -> None:
    config = HEAD_EXPONENTIALS[chip, form.get("finished", False)]
    if form.get("finished") and form.get("told"):
        config = HEAD_EXPONENTIALS_TOLD.get(chip, config)
    made = build(chip, config, **form)
    check_product(made, chip)
    if chip == "sm_90":
        assert "tf32" not in made.assembly


@pytest.mark.parametrize("config", HEAD_EXPONENTIALS_CANDIDATES, ids=str)
def test_what_the_benchmark_tries(config: HeadConfig) -> None:
    check_product(build("sm_90", config), "sm_90")


@pytest.mark.parametrize("chip", TARGETS)
def test_the_small_kernels(chip: str) -> None:
    matrices: dict[str, str | None] = {"x_ptr": "*bf16", "head_ptr": "*bf16", "bias_ptr": "*bf16"}
    for kernel, constants in (
        (label_logits_fwd_kernel, {"SCALE": 0.5, "SOFTCAP": 30.0, "BLOCK_D": BLOCK_D}),
        (row_sums_fwd_kernel, {"AGAIN": False, "BLOCK_ROWS": BLOCK_ROWS, "BLOCK_TILES": BLOCK_TILES}),
        (row_sums_fwd_kernel, {"AGAIN": True, "BLOCK_ROWS": BLOCK_ROWS, "BLOCK_TILES": BLOCK_TILES}),
    ):
        arguments = {name: kind for name, kind in (matrices | VECTORS | SIZES).items() if name in kernel.arg_names}
        made = compile_kernel(kernel, chip, arguments, constants, num_warps=4)
        _check(made, chip)
        assert narrow_products(made.ir) == []


def test_rows_and_words_are_found_by_64_bit_addresses() -> None:
    for chip in ("sm_80", "sm_90"):
        ir = build(chip, HEAD_EXPONENTIALS[chip, True], finished=True, again=True).ir
        assert "tt.get_program_id" in ir
        assert ir.count("arith.muli") >= 4
        assert narrow_products(ir) == []


def test_it_is_nowhere_the_default_before_it_has_been_measured() -> None:
    assert {chip for chip, _ in HEAD_EXPONENTIALS} == {*CHIPS, "interpreter"}
    assert not any(HEAD_EXPONENTIALS_BY_DEFAULT.values())
