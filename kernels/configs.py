"""Pinned launch configurations, by chip and dtype, each with the reason or measurement that chose it.

Those of the H100 are measured: the fastest candidates in benchmarks/results/row_pass_tune.jsonl and
prefix_attention.jsonl that need no stack (with one, attention may be 5 to 8 % faster). The others follow from
ahead-of-time resource use (tests/compiled) and arithmetic. `--tune` of benchmarks/bench_loss.py (row pass) and
benchmarks/bench_prefix_attention.py measures all candidates on the GPU at hand.
"""

from __future__ import annotations

from typing import NamedTuple

import torch


class RowPassConfig(NamedTuple):
    block_v: int
    num_warps: int


# What the benchmark's --tune tries. A wave of gfx9 is 64 wide, so 16 of them are the largest program there.
ROW_PASS_CANDIDATES = {
    "cuda": tuple(RowPassConfig(b, w) for b, w in ((2048, 4), (4096, 8), (4096, 16), (8192, 16), (8192, 32))),
    "hip": tuple(RowPassConfig(b, w) for b, w in ((2048, 4), (4096, 8), (4096, 16), (8192, 8), (8192, 16))),
}

# (backend, two rows at once). cuda: measured on an H100 at 128256 and 262144 columns. hip: unmeasured; compiled for
# gfx942: 46 and 42 registers, no stack, no spills.
ROW_PASS: dict[tuple[str, bool], RowPassConfig] = {
    ("cuda", False): RowPassConfig(2048, 4),
    ("cuda", True): RowPassConfig(4096, 16),
    ("hip", False): RowPassConfig(8192, 16),
    ("hip", True): RowPassConfig(4096, 16),
}


def row_pass_config(width: int, itemsize: int, *, has_ref: bool, backend: str) -> RowPassConfig:
    """backend: "cuda", "hip" or "interpreter"; itemsize: of a logit (fp64 exponentials need many registers)."""
    if backend == "interpreter":
        return RowPassConfig(min(4096, 1 << max(4, (width - 1).bit_length())), 4)
    return RowPassConfig(1024, 8) if itemsize == 8 else ROW_PASS[backend, has_ref]


class HeadConfig(NamedTuple):
    """Of the product of rows and head whose epilogue makes exponentials (head_exponentials.py)."""

    block_m: int  # rows of a tile of logits
    block_n: int  # words of it
    block_k: int  # hidden dimensions at a time
    group_m: int  # row blocks that share the head's tiles
    num_warps: int
    num_stages: int
    descriptors: bool  # tiles are moved by tensor descriptors, not by pointers
    halves: bool  # the epilogue takes half of a tile's words at a time


# (architecture, softcap or bias in the epilogue). NOT YET MEASURED ON A GPU: chosen from ahead-of-time resource use
# (tests/compiled: no stack, no spills) and arithmetic. 128 x 256 is the largest tile whose fp32 sums leave room for the
# epilogue in 8 warps' registers; in halves it needs 214 to 255 of them, whole it spills a softcap. With 16 row blocks a
# wave of 132 tiles reads least (16 of rows, 8 of words). sm_90: 4 stages fill its shared memory (229,408 bytes).
# sm_80: 64 hidden dimensions at a time put 8 bytes of the masked forms on the stack.
# sm_100: 171 to 203 registers whole, but a softcap spills there, in halves too; at 128 x 128 it needs 185. gfx942: more
# than 32 hidden dimensions of two stages do not fit beside the epilogue.
HEAD_EXPONENTIALS: dict[tuple[str, bool], HeadConfig] = {
    ("sm_80", False): HeadConfig(128, 256, 32, 16, 8, 4, descriptors=False, halves=True),
    ("sm_80", True): HeadConfig(128, 256, 32, 16, 8, 4, descriptors=False, halves=True),
    ("sm_90", False): HeadConfig(128, 256, 64, 16, 8, 4, descriptors=True, halves=True),
    ("sm_90", True): HeadConfig(128, 256, 64, 16, 8, 4, descriptors=True, halves=True),
    ("sm_100", False): HeadConfig(128, 256, 64, 16, 8, 3, descriptors=True, halves=False),
    ("sm_100", True): HeadConfig(128, 128, 64, 16, 8, 4, descriptors=True, halves=False),
    ("gfx942", False): HeadConfig(128, 256, 32, 16, 8, 2, descriptors=False, halves=False),
    ("gfx942", True): HeadConfig(128, 256, 32, 16, 8, 2, descriptors=False, halves=False),
    ("interpreter", False): HeadConfig(16, 64, 32, 2, 4, 1, descriptors=True, halves=False),
    ("interpreter", True): HeadConfig(16, 64, 32, 2, 4, 1, descriptors=False, halves=True),
}
# With a softcap or bias and entropies: the same where it fits; there the whole tile puts 24 to 344 bytes on the stack.
HEAD_EXPONENTIALS_TOLD: dict[str, HeadConfig] = {
    "sm_80": HeadConfig(128, 128, 32, 16, 8, 4, descriptors=False, halves=False),
    "sm_90": HeadConfig(128, 128, 64, 16, 8, 4, descriptors=True, halves=False),
}
# Whether backend="auto" takes it: where benchmarks/bench_gpu.py has shown it faster than the vendor's product and a
# pass over its logits. Until it has been measured, nowhere.
HEAD_EXPONENTIALS_BY_DEFAULT = {"sm_80": False, "sm_90": False, "sm_100": False, "gfx942": False}
# What benchmarks/profile_loss.py tries beside the pinned one on an sm_90.
HEAD_EXPONENTIALS_CANDIDATES = (
    HeadConfig(128, 256, 64, 16, 8, 3, descriptors=True, halves=True),
    HeadConfig(128, 256, 64, 8, 8, 4, descriptors=True, halves=True),
    HeadConfig(128, 256, 64, 16, 8, 3, descriptors=False, halves=True),
    HeadConfig(128, 128, 64, 16, 8, 4, descriptors=True, halves=False),
)


class PrefixConfig(NamedTuple):
    """Rows (tokens x query heads of a group) and keys of a tile, warps and stages of a program."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


# (architecture, widest head dimension). sm_90: measured on an H100. The others: no stack, no spills, and shared memory
# that leaves room on the smallest chip of each family.
PREFIX_ATTENTION: dict[tuple[str, int], PrefixConfig] = {
    ("sm_80", 64): PrefixConfig(128, 64, 8, 3),
    ("sm_80", 128): PrefixConfig(128, 32, 8, 3),
    ("sm_80", 256): PrefixConfig(64, 32, 8, 2),
    ("sm_90", 64): PrefixConfig(64, 32, 4, 4),
    ("sm_90", 128): PrefixConfig(64, 32, 4, 3),
    ("sm_90", 256): PrefixConfig(128, 32, 8, 2),
    ("sm_100", 64): PrefixConfig(128, 64, 8, 3),
    ("sm_100", 128): PrefixConfig(128, 64, 8, 3),
    ("sm_100", 256): PrefixConfig(128, 32, 8, 2),
    ("gfx942", 64): PrefixConfig(128, 32, 8, 1),
    ("gfx942", 128): PrefixConfig(128, 32, 8, 1),
    ("gfx942", 256): PrefixConfig(64, 32, 8, 1),
}
# What the benchmark's --tune tries; those that do not fit the chip are left out there. Of 36 with 2 to 4 stages these
# came within 15 % of the best of some head width on an H100; those of one stage are for gfx.
PREFIX_ATTENTION_CANDIDATES = tuple(
    PrefixConfig(m, n, warps, stages)
    for m, n, warps in ((64, 32, 4), (64, 64, 4), (128, 32, 4), (128, 32, 8), (128, 64, 8))
    for stages in (1, 2, 3, 4)
)
EXACT_PRODUCTS = PrefixConfig(32, 16, 4, 1)  # fp32: products by FMA, not by tensor cores
SMALLEST = PrefixConfig(16, 16, 4, 1)  # the interpreter, fp64, and fp32 with wide heads


def prefix_config(head_dim: int, value_dim: int, dtype: torch.dtype, arch: str) -> PrefixConfig:
    """Configuration for an ``architecture``; ``ValueError`` for head dimensions beyond 256."""
    dim = max(head_dim, value_dim)
    if dim > 256:
        raise ValueError(f"the prefix attention kernel takes head dimensions up to 256, got {dim}")
    if arch == "interpreter" or dtype.itemsize > 4 or (dtype.itemsize > 2 and dim > 128):
        return SMALLEST
    if dtype.itemsize > 2:
        return EXACT_PRODUCTS
    return PREFIX_ATTENTION[arch, 64 if dim <= 64 else 128 if dim <= 128 else 256]
