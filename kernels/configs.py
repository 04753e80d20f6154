"""Pinned launch configurations, by chip and dtype, each with the reason or measurement that chose it.

None of these has been measured on a GPU yet: they follow from ahead-of-time resource use (tests/compiled) and
arithmetic. `python benchmarks/bench_loss.py --tune` measures all candidates on the GPU at hand and prints the table.
"""

from __future__ import annotations

from typing import NamedTuple


class RowPassConfig(NamedTuple):
    block_v: int
    num_warps: int


# What the benchmark's --tune tries. A wave of gfx9 is 64 wide, so 16 of them are the largest program there.
ROW_PASS_CANDIDATES = {
    "cuda": tuple(RowPassConfig(b, w) for b, w in ((2048, 4), (4096, 8), (4096, 16), (8192, 16), (8192, 32))),
    "hip": tuple(RowPassConfig(b, w) for b, w in ((2048, 4), (4096, 8), (4096, 16), (8192, 8), (8192, 16))),
}

# (backend, two rows at once). Unmeasured. The second read of a row should meet the L2 cache, so the fewest rows in
# flight that keep the memory busy: programs of 1024 threads, 8 values (32 bytes) each; of 512 with the reference's row,
# since 64 registers per thread do not hold both rows. Compiled for sm_90: 29 and 49 registers, two programs per SM;
# gfx942: 46 and 42. No stack, no spills.
ROW_PASS: dict[tuple[str, bool], RowPassConfig] = {
    ("cuda", False): RowPassConfig(8192, 32),
    ("cuda", True): RowPassConfig(4096, 16),
    ("hip", False): RowPassConfig(8192, 16),
    ("hip", True): RowPassConfig(4096, 16),
}


def row_pass_config(width: int, itemsize: int, *, has_ref: bool, backend: str) -> RowPassConfig:
    """backend: "cuda", "hip" or "interpreter"; itemsize: of a logit (fp64 exponentials need many registers)."""
    if backend == "interpreter":
        return RowPassConfig(min(4096, 1 << max(4, (width - 1).bit_length())), 4)
    return RowPassConfig(1024, 8) if itemsize == 8 else ROW_PASS[backend, has_ref]
