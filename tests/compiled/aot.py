"""Compile a Triton kernel for a chip that is not here, and read what it takes from the machine code."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx90a": GPUTarget("hip", "gfx90a", 64),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
SHARED_LIMIT = {"sm_80": 163 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10, "gfx90a": 64 << 10, "gfx942": 64 << 10}
# Bytes a thread may keep on its stack. The kernels are shaped for triton 3.7, which needs none. Other releases (3.6 and
# 3.9 were tried) put a few registers there.
STACK = 0 if triton.__version__.startswith("3.7.") else 64
_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


@dataclass(frozen=True)
class Resources:
    stack: int  # bytes per thread
    spills: int  # bytes (NVIDIA) or registers (AMD)
    registers: int
    shared: int  # bytes per program
    assembly: str  # PTX or GCN
    ir: str = ""  # Triton's own, before any chip


def compile_kernel(
    kernel: Any,
    chip: str,
    arguments: dict[str, str | None],
    constants: dict[str, Any],
    *,
    num_warps: int,
    stages: int = 3,
) -> Resources:
    """``arguments``: name -> Triton type ("*fp32", "i32", …) or None for a pointer that is not given. Pointers, strides
    and width count as divisible by 16, which is what a launch finds for a vocabulary of 128256."""
    signature = {name: kind or "constexpr" for name, kind in arguments.items()} | dict.fromkeys(constants, "constexpr")
    values = {name: None for name, kind in arguments.items() if kind is None} | constants
    signature = {name: signature[name] for name in kernel.arg_names}
    aligned = [
        name for name, kind in arguments.items() if kind and (kind[0] == "*" or "stride" in name or name == "width")
    ]
    attributes = {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    source = ASTSource(kernel, signature, values, attributes)
    made = triton.compile(source, target=TARGETS[chip], options={"num_warps": num_warps, "num_stages": stages})
    resources = (_amd if TARGETS[chip].backend == "hip" else _nvidia)(made)
    return replace(resources, ir=made.asm["ttir"])


def _nvidia(made: Any) -> Resources:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(made.asm["cubin"])
        command = [str(_TOOLS / "cuobjdump"), "-res-usage", file.name]
        usage = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = {key: int(value) for key, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", usage)}
    return Resources(found["STACK"], found["LOCAL"], found["REG"], made.metadata.shared, made.asm["ptx"])


def _amd(made: Any) -> Resources:
    text = made.asm["amdgcn"]

    def number(key: str) -> int:
        return int(re.search(rf"\.{key}:\s*(\d+)", text)[1])

    spills = number("vgpr_spill_count") + number("sgpr_spill_count")
    return Resources(number("private_segment_fixed_size"), spills, number("vgpr_count"), made.metadata.shared, text)
