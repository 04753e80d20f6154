"""Addresses beyond 2**31 elements: no product that finds a row or a token is formed in 32 bits.

Read off Triton's IR, where types still have names. What comes from a program id, or meets a stride, must be 64 bit
first; the position within a tile times a stride may stay narrow, since a tile has at most 128 rows.
"""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from fastdss.kernels.primitives import REVERSE
from fastdss.kernels.row_pass import row_gradient_bwd_kernel, row_pass_fwd_kernel, row_stats_fwd_kernel

from fastdss import KL

from .aot import compile_kernel
from .test_prefix_attention import build
from .test_row_pass_aot import _objective, _pointers

_LINE = re.compile(r"(%[\w#]+(?::\d+)?) = \"?([\w.]+)\"? ?(.*)")
_NAME = re.compile(r"%[\w]+")


def narrow_products(ir: str) -> list[str]:
    """Products in 32 bits of what a program id grew into, or of a stride with anything but a lane or a constant."""
    origins: dict[str, set[str]] = {name: {"stride"} for name in re.findall(r"(%stride_\w+): i32", ir)}
    found = []
    for line in ir.splitlines():
        match = _LINE.match(line.strip())
        if match is None:
            continue
        result, operation, rest = match[1].split(":")[0], match[2], match[3]
        names = _NAME.findall(rest.split(" : ")[0])
        origin: set[str] = set().union(*(origins.get(name, set()) for name in names))
        if operation == "tt.get_program_id":
            origin = {"program"}
        elif operation == "tt.make_range":
            origin = {"lane"}
        elif operation == "tt.load":
            origin = {"loaded"}
        elif operation == "arith.constant":
            origin = {"constant"}
        origins[result.split("#")[0]] = origin
        type_of = rest.rpartition(" : ")[2].split(" loc")[0]
        if operation == "arith.muli" and re.search(r"\bi32\b|xi32>", type_of):
            others = origin - {"stride"}
            if "program" in origin or ("stride" in origin and (not others or others - {"lane", "constant"})):
                found.append(f"{operation} of {sorted(origin)} in {type_of}")
    return found


def row_pass(kernel: Any, more: dict[str, str], constants: dict[str, Any]) -> str:
    names = [name for name in kernel.arg_names if name in _pointers("reverse", "fp32", "bf16", True)]
    arguments: dict[str, str | None] = {n: _pointers("reverse", "fp32", "bf16", True)[n] for n in names}
    arguments |= {"width": "i32", "stride_logits": "i32", "stride_ref": "i32"} | more
    values = _objective("reverse", True) | {"BLOCK_V": 1024} | constants
    return compile_kernel(kernel, "sm_90", arguments, values, num_warps=4).ir


def test_rows_are_found_by_64_bit_addresses() -> None:
    floats = {name: "*fp32" for name in ("token_ce_ptr", "token_kl_ptr", "lost_ptr", "entropy_ptr", "correct_ptr")}
    options = {"DFT": True, "SMOOTHING": 0.1, "Z_LOSS": 1e-4, "GRAD": True}
    forms = [
        row_pass(row_pass_fwd_kernel, floats | {"stride_out": "i32"}, options),
        row_pass(
            row_stats_fwd_kernel,
            {"stats_ptr": "*fp32", "stride_stats": "i32", "vocab_start": "i32"},
            {"WITH_MEAN": True, "STATS": True},
        ),
        row_pass(
            row_gradient_bwd_kernel,
            {
                "factor_ptr": "*fp32",
                "lost_ptr": "*fp32",
                "stride_factor": "i32",
                "stride_out": "i32",
                "vocab_start": "i32",
            },
            {},
        ),
    ]
    for ir in forms:
        assert "tt.get_program_id" in ir
        assert ir.count("arith.muli") >= 1
        assert narrow_products(ir) == []
    assert KL.REVERSE.code == REVERSE.value == 4


@pytest.mark.parametrize("rich", [False, True], ids=["plain", "window and softcap"])
def test_tokens_are_found_by_64_bit_addresses(rich: bool) -> None:
    ir = build("sm_90", 128, 128, torch.bfloat16, rich=rich).ir
    assert ir.count("arith.muli") >= 5
    assert narrow_products(ir) == []


@triton.jit
def narrow_row_kernel(out_ptr, stride):
    tl.store(out_ptr + tl.program_id(0) * stride, 1.0)


@triton.jit
def narrow_token_kernel(out_ptr, index_ptr, stride_n):
    tl.store(out_ptr + tl.load(index_ptr) * stride_n, 1.0)


@triton.jit
def narrow_counter_kernel(out_ptr, count, stride_n):
    for i in range(0, count):
        tl.store(out_ptr + i * stride_n, 1.0)


@triton.jit
def wide_kernel(out_ptr, index_ptr, stride_n):
    lane = tl.arange(0, 16)
    row = out_ptr + tl.program_id(0).to(tl.int64) * stride_n + tl.load(index_ptr).to(tl.int64) * stride_n
    tl.store(row + lane * stride_n, 1.0)


@pytest.mark.parametrize(
    ("kernel", "arguments", "faults"),
    [
        (narrow_row_kernel, {"out_ptr": "*fp32", "stride": "i32"}, 1),
        (narrow_token_kernel, {"out_ptr": "*fp32", "index_ptr": "*i32", "stride_n": "i32"}, 1),
        (narrow_counter_kernel, {"out_ptr": "*fp32", "count": "i32", "stride_n": "i32"}, 1),
        (wide_kernel, {"out_ptr": "*fp32", "index_ptr": "*i32", "stride_n": "i32"}, 0),
    ],
)
def test_the_search_finds_what_it_is_for(kernel: Any, arguments: dict[str, str | None], faults: int) -> None:
    assert len(narrow_products(compile_kernel(kernel, "sm_90", arguments, {}, num_warps=1).ir)) == faults
