"""The prefix attention kernel compiles for every chip without stack or spills, and with exact products for fp32."""

from __future__ import annotations

import re

import pytest
import torch
from fastdss.kernels.configs import PREFIX_ATTENTION, prefix_config
from fastdss.kernels.prefix_attention import (
    heads_per_program,
    prefix_attention_fwd_kernel,
    split_dim,
)

from .aot import SHARED_LIMIT, STACK, Resources, compile_kernel

NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.float64: "fp64"}
SMALL_CHIPS = 99 << 10  # shared memory of sm_86, sm_89 and sm_120, which are given sm_80's configurations
INDICES = ("limit_ptr", "run_ptr", "tile_ptr")


def build(
    chip: str, head_dim: int, value_dim: int, dtype: torch.dtype, *, rich: bool, group: int = 4, like: str = ""
) -> Resources:
    """``rich``: with a sliding window and a softcap; ``like``: with what the attention of a family has."""
    config = prefix_config(head_dim, value_dim, dtype, chip)
    (d0, d1), (e0, e1) = split_dim(head_dim), split_dim(value_dim)
    constants = {
        "SCALE": head_dim**-0.5,
        "SOFTCAP": 50.0 if rich else 0.0,
        "HAS_WINDOW": rich or like == "gpt-oss",
        "CHUNKED": like == "llama 4",
        "HAS_SINK": like == "gpt-oss",
        "GROUP": group,
        "HEADS": heads_per_program(group, config),
        "HEAD_DIM": head_dim,
        "VALUE_DIM": value_dim,
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        **{"D0": d0, "D1": d1, "E0": e0, "E1": e1},
        "UPCAST": False,
    }
    arguments: dict[str, str | None] = {}
    for name in prefix_attention_fwd_kernel.arg_names:
        if name not in constants:
            pointer = "*i32" if name in INDICES else f"*{NAMES[dtype]}"
            arguments[name] = pointer if name.endswith("_ptr") else "i32"
    return compile_kernel(
        prefix_attention_fwd_kernel, chip, arguments, constants, num_warps=config.num_warps, stages=config.num_stages
    )


def check(made: Resources, chip: str) -> None:
    assert made.stack <= STACK
    assert made.shared <= (SMALL_CHIPS if chip == "sm_80" else SHARED_LIMIT[chip])
    assert "tf32" not in made.assembly
    if chip.startswith("sm_"):
        assert made.spills == 0
    else:  # scalars may move to lanes of vector registers, which takes no memory
        (spilled,) = re.findall(r"\.vgpr_spill_count:\s*(\d+)", made.assembly)
        assert 4 * int(spilled) <= STACK
        assert "v_mfma" in made.assembly
    if chip == "sm_90":
        assert "wgmma.mma_async" in made.assembly
    if chip == "sm_100":
        assert "tcgen05.mma" in made.assembly


@pytest.mark.parametrize(("chip", "head_dim"), PREFIX_ATTENTION)
def test_window_and_softcap(chip: str, head_dim: int) -> None:
    check(build(chip, head_dim, head_dim, torch.bfloat16, rich=True), chip)


PLAIN = [("sm_80", 80), ("sm_80", 128), ("sm_90", 80), ("sm_90", 128), ("sm_90", 256), ("gfx942", 80)]


@pytest.mark.parametrize(("chip", "head_dim"), PLAIN)  # 80 = 64 + 16: two pieces of a row
def test_plain(chip: str, head_dim: int) -> None:
    made = build(chip, head_dim, head_dim, torch.bfloat16, rich=False)
    check(made, chip)
    assert made.spills == 0


@pytest.mark.parametrize("chip", ["sm_80", "sm_90", "sm_100", "gfx942"])
@pytest.mark.parametrize(("like", "head_dim", "group"), [("llama 4", 128, 5), ("gpt-oss", 64, 8)])
def test_chunks_and_sinks(chip: str, like: str, head_dim: int, group: int) -> None:
    check(build(chip, head_dim, head_dim, torch.bfloat16, rich=False, like=like, group=group), chip)


def test_other_forms() -> None:
    """96 = 64 + 32; keys wider than values, and a group that fills no power of two."""
    check(build("sm_90", 96, 96, torch.float16, rich=False), "sm_90")
    check(build("sm_90", 192, 128, torch.bfloat16, rich=False, group=3), "sm_90")


@pytest.mark.parametrize(("chip", "head_dim"), [("sm_80", 128), ("sm_90", 64), ("sm_80", 256)])
def test_fp32_products_are_exact(chip: str, head_dim: int) -> None:
    """By FMA: no tensor core multiplies fp32 without rounding it to tf32."""
    made = build(chip, head_dim, head_dim, torch.float32, rich=False)
    assert (made.stack, made.spills) == (0, 0)
    assert made.shared <= SHARED_LIMIT[chip]
    assert not re.search(r"tf32|\bmma\.sync|wgmma\.mma", made.assembly)
