"""Pinned launch configurations, by chip and dtype, each with the reason or measurement that chose it.

Those of the row pass and of attention on an H100 are measured: the fastest candidates in
benchmarks/results/row_pass_tune.jsonl and prefix_attention.jsonl that put nothing on the stack (with some, attention
may be 5 to 8 % faster). The others were chosen by arithmetic and from the registers, stack and shared memory that the
compiler reports ahead of time (tests/compiled). `--tune` of benchmarks/bench_loss.py (row pass) and of
benchmarks/bench_prefix_attention.py measures all candidates on the GPU at hand.
"""

from __future__ import annotations

from typing import NamedTuple

import torch


class RowPassConfig(NamedTuple):
    """Columns that a program reads at a time, and its warps."""

    block_v: int
    num_warps: int


# The configurations that --tune tries. A warp of gfx9 has 64 lanes, so that 16 warps make the largest program there.
ROW_PASS_CANDIDATES = {
    "cuda": tuple(RowPassConfig(b, w) for b, w in ((2048, 4), (4096, 8), (4096, 16), (8192, 16), (8192, 32))),
    "hip": tuple(RowPassConfig(b, w) for b, w in ((2048, 4), (4096, 8), (4096, 16), (8192, 8), (8192, 16))),
}

# Keyed by backend, and by whether a program also reads a row of the reference's logits. cuda: measured on an H100 at
# 128256 and 262144 columns. hip: not measured; compiled for gfx942 it takes 46 and 42 registers, no stack, no spills.
ROW_PASS: dict[tuple[str, bool], RowPassConfig] = {
    ("cuda", False): RowPassConfig(2048, 4),
    ("cuda", True): RowPassConfig(4096, 16),
    ("hip", False): RowPassConfig(8192, 16),
    ("hip", True): RowPassConfig(4096, 16),
}


def row_pass_config(width: int, itemsize: int, *, has_ref: bool, backend: str) -> RowPassConfig:
    """The configuration for rows of ``width`` logits of ``itemsize`` bytes; backend: "cuda", "hip" or "interpreter".

    fp64 has smaller blocks, because its exponentials need many registers.
    """
    if backend == "interpreter":
        return RowPassConfig(min(4096, 1 << max(4, (width - 1).bit_length())), 4)
    return RowPassConfig(1024, 8) if itemsize == 8 else ROW_PASS[backend, has_ref]


class HeadConfig(NamedTuple):
    """Configuration of the product of rows and head whose epilogue makes exponentials (head_exponentials.py)."""

    block_m: int  # rows of a tile of logits
    block_n: int  # words (columns) of a tile
    block_k: int  # hidden dimensions that are multiplied at a time
    group_m: int  # row blocks that are computed together, so that they share the head's tiles in the L2 cache
    num_warps: int
    num_stages: int
    descriptors: bool  # tiles are loaded and stored by tensor descriptors instead of pointers
    halves: bool  # the epilogue takes half of a tile's words at a time


# Keyed by architecture, and by whether the epilogue applies a softcap or a bias. NOT YET MEASURED ON A GPU: chosen by
# arithmetic and from what the compiler reports ahead of time (tests/compiled: no stack, no spills).
# All: 128 x 256 is the largest tile whose fp32 sums leave room for the epilogue in the registers of 8 warps. With the
# epilogue in halves a thread needs 214 to 255 registers; with the whole tile at once a softcap spills. With 16 row
# blocks in a group, 132 tiles at a time, one per multiprocessor, read the least: 16 blocks of rows and 8 of words.
# sm_90: 4 stages fill its shared memory (229,408 bytes).
# sm_80: with 64 hidden dimensions at a time the masked forms put 8 bytes on the stack.
# sm_100: 171 to 203 registers with the whole tile at once. A softcap spills, even in halves; at 128 x 128 it needs 185.
# gfx942: two stages of more than 32 hidden dimensions do not fit beside the epilogue.
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
# With a softcap or bias, and entropies. Chips that are not listed take the configuration above; on these two its tile
# would put 24 to 344 bytes on the stack, so they take a smaller one.
HEAD_EXPONENTIALS_TOLD: dict[str, HeadConfig] = {
    "sm_80": HeadConfig(128, 128, 32, 16, 8, 4, descriptors=False, halves=False),
    "sm_90": HeadConfig(128, 128, 64, 16, 8, 4, descriptors=True, halves=False),
}
# Whether backend="auto" takes this kernel on a chip: only if benchmarks/bench_gpu.py has shown it to be faster than the
# vendor's product and a pass over its logits. It has not been measured on any chip yet.
HEAD_EXPONENTIALS_BY_DEFAULT = {"sm_80": False, "sm_90": False, "sm_100": False, "gfx942": False}
# The configurations that benchmarks/profile_loss.py tries on an sm_90 beside the pinned one.
HEAD_EXPONENTIALS_CANDIDATES = (
    HeadConfig(128, 256, 64, 16, 8, 3, descriptors=True, halves=True),
    HeadConfig(128, 256, 64, 8, 8, 4, descriptors=True, halves=True),
    HeadConfig(128, 256, 64, 16, 8, 3, descriptors=False, halves=True),
    HeadConfig(128, 128, 64, 16, 8, 4, descriptors=True, halves=False),
)


class PrefixConfig(NamedTuple):
    """Configuration of the prefix attention kernel."""

    block_m: int  # rows of a tile: its tokens times the query heads that share a K/V head
    block_n: int  # keys of a tile
    num_warps: int
    num_stages: int


# Keyed by architecture and widest head dimension. sm_90: measured on an H100. The others have no stack and no spills,
# and fit into the shared memory of the smallest chip of each family.
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
# The configurations that --tune tries, except those that do not fit the chip. Those with 2 to 4 stages are the ones, of
# 36, that came within 15 % of the best for some head dimension on an H100; those with one stage are for gfx.
PREFIX_ATTENTION_CANDIDATES = tuple(
    PrefixConfig(m, n, warps, stages)
    for m, n, warps in ((64, 32, 4), (64, 64, 4), (128, 32, 4), (128, 32, 8), (128, 64, 8))
    for stages in (1, 2, 3, 4)
)
EXACT_PRODUCTS = PrefixConfig(32, 16, 4, 1)  # for fp32, whose products run as FMAs instead of on tensor cores
SMALLEST = PrefixConfig(16, 16, 4, 1)  # for the interpreter, fp64, and fp32 with head dimensions beyond 128


def prefix_config(head_dim: int, value_dim: int, dtype: torch.dtype, arch: str) -> PrefixConfig:
    """The configuration for an architecture of prefix_attention.py; ``ValueError`` for head dimensions beyond 256."""
    dim = max(head_dim, value_dim)
    if dim > 256:
        raise ValueError(f"the prefix attention kernel takes head dimensions up to 256, got {dim}")
    if arch == "interpreter" or dtype.itemsize > 4 or (dtype.itemsize > 2 and dim > 128):
        return SMALLEST
    if dtype.itemsize > 2:
        return EXACT_PRODUCTS
    return PREFIX_ATTENTION[arch, 64 if dim <= 64 else 128 if dim <= 128 else 256]
