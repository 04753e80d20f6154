"""The product of rows and head with an epilogue that turns each tile of logits into exponentials: no logits are stored.

Formulas and names: the docstring of fastdss/loss/exponentials.py. One persistent program per multiprocessor walks over
tiles [BLOCK_M, BLOCK_N] of the logits. Tiles of a few row blocks are computed together, so that the head's tiles are
still in the L2 cache for the next row block. A row's offset must be known before its first tile. It is ROOM above the
label's logit, which another kernel computes beforehand by one dot product per row; if another rank holds the label, it
is ROOM above the logit of some word of this rank. The sums and largest logits of each tile are stored, and added up in
a fixed order, so that the same inputs give the same bits.

If a row's offset was too low (its label is about 57 nats below the largest logit) or far too high, its sum shows it.
The same product then runs once more over the row blocks that contain such a row, with the row's largest logit as
offset. It is launched in any case, because the host does not wait to know; without such rows its programs end at once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from .configs import HEAD_EXPONENTIALS, HEAD_EXPONENTIALS_BY_DEFAULT, HEAD_EXPONENTIALS_TOLD, HeadConfig
from .exponentials import LARGEST, ROOM, SMALLEST
from .primitives import entropy_of, log_weighted, on_device_of
from .row_pass import interpreted

BLOCK_D = 1024  # hidden dimensions at a time in the labels' dot products
BLOCK_ROWS = 32  # rows of a program that adds up the sums of tiles
BLOCK_TILES = 64  # tiles that it reads at a time


@triton.jit
def finished_logits(raw, bias_ptr, columns, mask, SCALE: tl.constexpr, SOFTCAP: tl.constexpr):
    """Raw logits with bias, scale and softcap applied; bias_ptr and SOFTCAP may be None."""
    logits = raw
    if bias_ptr is not None:
        logits += tl.load(bias_ptr + columns, mask=mask, other=0.0).to(tl.float32)
    if SCALE != 1.0:
        logits *= SCALE
    if SOFTCAP is not None:
        logits = SOFTCAP - 2.0 * SOFTCAP / (1.0 + tl.exp(logits * (2.0 / SOFTCAP)))  # SOFTCAP * tanh(logits / SOFTCAP)
    return logits


@triton.jit
def label_logits_fwd_kernel(
    x_ptr, head_ptr, bias_ptr, label_ptr, label_logit_ptr, offset_ptr, cap_slope_ptr, again_ptr,
    width, depth, stride_x, stride_head,
    SCALE: tl.constexpr, SOFTCAP: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Write the label's logit, the offset and the softcap's slope of one row, and clear the row's mark in again_ptr."""
    row = tl.program_id(0).to(tl.int64)
    label = tl.load(label_ptr + row).to(tl.int64)
    mine = (label >= 0) & (label < width)
    column = tl.minimum(tl.maximum(label, 0), width - 1)
    products = tl.zeros((BLOCK_D,), tl.float32)
    for start in range(0, depth, BLOCK_D):
        lanes = start + tl.arange(0, BLOCK_D)  # [BLOCK_D]
        mask = lanes < depth
        x = tl.load(x_ptr + row * stride_x + lanes, mask=mask, other=0.0).to(tl.float32)
        products += x * tl.load(head_ptr + column * stride_head + lanes, mask=mask, other=0.0).to(tl.float32)
    logit = finished_logits(tl.sum(products, axis=0), bias_ptr, column, column < width, SCALE, SOFTCAP)
    tl.store(label_logit_ptr + row, tl.where(mine, logit, 0.0))
    tl.store(offset_ptr + row, tl.where(logit > float("-inf"), logit + ROOM, 0.0))
    tl.store(again_ptr + 1 + row, 0)
    if row == 0:
        tl.store(again_ptr, 0)
    if SOFTCAP is not None:
        slope = tl.where(mine, logit, 0.0) / SOFTCAP
        tl.store(cap_slope_ptr + row, 1.0 - slope * slope)


@triton.jit
def tile_of(tile, tiles_m, tiles_n, GROUP_M: tl.constexpr):
    """(row block, column block) of tile number ``tile``.

    The tiles of GROUP_M row blocks come before those of the next ones; among them, tiles of one column block are
    neighbours.
    """
    group = tile // (GROUP_M * tiles_n)
    place = tile % (GROUP_M * tiles_n)
    size = tl.minimum(tiles_m - group * GROUP_M, GROUP_M)
    return group * GROUP_M + place % size, place // size


@triton.jit
def tile_product(
    x, head, row, column, rows, width, depth, stride_x, stride_head,
    DESCRIPTORS: tl.constexpr, EVEN_K: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """[BLOCK_M, BLOCK_N] raw logits, of the rows from ``row`` and the words from ``column`` on.

    Entries beyond the last row or word are 0 or copies of others; the caller does not use them.
    """
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    if DESCRIPTORS:
        for k in range(0, depth, BLOCK_K):
            a = x.load([row.to(tl.int32), k])
            b = head.load([column.to(tl.int32), k])
            total = tl.dot(a, tl.trans(b), total, input_precision="ieee")
    else:
        lane_k = tl.arange(0, BLOCK_K)
        # Rows and words beyond the last are read as if they were the last. Nothing of them is stored, and so the loads
        # need no mask for them.
        lane_m = tl.minimum(tl.arange(0, BLOCK_M), (rows - 1 - row).to(tl.int32))
        lane_n = tl.minimum(tl.arange(0, BLOCK_N), (width - 1 - column).to(tl.int32))
        a_ptr = x + row * stride_x + lane_m[:, None] * stride_x + lane_k[None, :]
        b_ptr = head + column * stride_head + lane_k[:, None] + lane_n[None, :] * stride_head
        for k in range(0, depth, BLOCK_K):
            if EVEN_K:
                a, b = tl.load(a_ptr), tl.load(b_ptr)
            else:
                a = tl.load(a_ptr, mask=lane_k[None, :] < depth - k, other=0.0)
                b = tl.load(b_ptr, mask=lane_k[:, None] < depth - k, other=0.0)
            total = tl.dot(a, b, total, input_precision="ieee")
            a_ptr += BLOCK_K
            b_ptr += BLOCK_K
    return total


@triton.jit
def store_tile(
    raw, out, bias_ptr, offset, label, inside, row, column, width, stride_out,
    SCALE: tl.constexpr, SOFTCAP: tl.constexpr, STORE: tl.constexpr, SPREAD: tl.constexpr, DESCRIPTORS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Store E of a tile (with STORE), times the softcap's slope if there is one.

    Returns (sum of E, largest logit, sum of E log E if SPREAD) of each row of the tile, without its label. offset,
    label (-1 if another rank holds it), inside (whether the row exists): [BLOCK_M].
    """
    lanes = tl.arange(0, BLOCK_N)
    words = column.to(tl.int32) + lanes  # [BLOCK_N]; int32 will do: a vocabulary has fewer than 2**31 words
    here = words < width
    logits = finished_logits(raw, bias_ptr, words[None, :], here[None, :], SCALE, SOFTCAP)
    # This mask is used here only, and depends on the tile: if it were kept for later, or hoisted out of the loop over
    # tiles, it would take a register per entry.
    logits = tl.where(here[None, :] & (words[None, :] != label[:, None]), logits, float("-inf"))
    peak = tl.max(logits, axis=1)
    exponential = tl.exp(logits - offset[:, None])
    total = tl.sum(exponential, axis=1)
    spread = total
    if SPREAD:
        spread = tl.sum(log_weighted(exponential, logits - offset[:, None]), axis=1)
    if STORE:
        if SOFTCAP is not None:
            slope = logits * (1.0 / SOFTCAP)
            exponential *= tl.where(exponential > 0.0, 1.0 - slope * slope, 0.0)
        if DESCRIPTORS:
            out.store([row.to(tl.int32), column.to(tl.int32)], exponential.to(out.dtype))
        else:
            lane_m = tl.arange(0, BLOCK_M)
            there = out + (row * stride_out + column) + lane_m[:, None] * stride_out + lanes[None, :]
            tl.store(there, exponential.to(out.dtype.element_ty), mask=inside[:, None] & here[None, :])
    return total, peak, spread


@triton.jit
def head_exponentials_fwd_kernel(
    x, head, out, bias_ptr, label_ptr, offset_ptr, again_ptr, sum_ptr, peak_ptr, spread_ptr,
    rows, width, depth, stride_x, stride_head, stride_out,
    SCALE: tl.constexpr, SOFTCAP: tl.constexpr, STORE: tl.constexpr, AGAIN: tl.constexpr,
    DESCRIPTORS: tl.constexpr, EVEN_K: tl.constexpr, HALVES: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    """Compute all tiles, or with AGAIN those whose row block contains a marked row.

    x [rows, depth], head [width, depth], out [rows, width]: pointers, or descriptors of their tiles. sum_ptr, peak_ptr,
    spread_ptr (None: not needed): [column blocks, rows], what ``store_tile`` returns for each tile.
    """
    SPREAD: tl.constexpr = spread_ptr is not None
    tiles_m = tl.cdiv(rows, BLOCK_M)
    tiles_n = tl.cdiv(width, BLOCK_N)
    tiles = tiles_m * tiles_n
    if AGAIN:
        tiles = tl.where(tl.load(again_ptr) > 0, tiles, 0)
    for tile in tl.range(tl.program_id(0).to(tl.int64), tiles, tl.num_programs(0)):
        block_m, block_n = tile_of(tile, tiles_m, tiles_n, GROUP_M)
        row = block_m * BLOCK_M
        column = block_n * BLOCK_N
        inside = tl.arange(0, BLOCK_M) < tl.minimum(rows - row, BLOCK_M).to(tl.int32)  # [BLOCK_M]
        wanted = True
        if AGAIN:
            marks = tl.load(again_ptr + 1 + row + tl.arange(0, BLOCK_M), mask=inside, other=0)
            wanted = tl.max(marks, axis=0) > 0
        if wanted:
            raw = tile_product(
                x, head, row, column, rows, width, depth, stride_x, stride_head,
                DESCRIPTORS, EVEN_K, BLOCK_M, BLOCK_N, BLOCK_K,
            )  # fmt: skip
            offset = tl.load(offset_ptr + row + tl.arange(0, BLOCK_M), mask=inside, other=0.0)
            label = tl.load(label_ptr + row + tl.arange(0, BLOCK_M), mask=inside, other=-1).to(tl.int64)
            label = tl.where((label >= 0) & (label < width), label, -1).to(tl.int32)
            if HALVES:
                first, second = tl.split(tl.permute(tl.reshape(raw, (BLOCK_M, 2, BLOCK_N // 2)), (0, 2, 1)))
                total, peak, spread = store_tile(
                    first, out, bias_ptr, offset, label, inside, row, column, width, stride_out,
                    SCALE, SOFTCAP, STORE, SPREAD, DESCRIPTORS, BLOCK_M, BLOCK_N // 2,
                )  # fmt: skip
                more, higher, wider = store_tile(
                    second, out, bias_ptr, offset, label, inside, row, column + BLOCK_N // 2, width,
                    stride_out, SCALE, SOFTCAP, STORE, SPREAD, DESCRIPTORS, BLOCK_M, BLOCK_N // 2,
                )  # fmt: skip
                total, peak, spread = total + more, tl.maximum(peak, higher), spread + wider
            else:
                total, peak, spread = store_tile(
                    raw, out, bias_ptr, offset, label, inside, row, column, width, stride_out,
                    SCALE, SOFTCAP, STORE, SPREAD, DESCRIPTORS, BLOCK_M, BLOCK_N,
                )  # fmt: skip
            at = block_n * rows + row
            tl.store(sum_ptr + at + tl.arange(0, BLOCK_M), total, mask=inside)
            tl.store(peak_ptr + at + tl.arange(0, BLOCK_M), peak, mask=inside)
            if spread_ptr is not None:
                tl.store(spread_ptr + at + tl.arange(0, BLOCK_M), spread, mask=inside)


@triton.jit
def row_sums_fwd_kernel(
    sum_ptr, peak_ptr, spread_ptr, offset_ptr, again_ptr, others_ptr, total_ptr, entropy_ptr, rival_ptr, rows, tiles,
    AGAIN: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_TILES: tl.constexpr,
):  # fmt: skip
    """Add up the sums of the tiles. If a row's offset was wrong, mark it and make its largest logit its offset."""
    lanes = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)  # [BLOCK_ROWS]
    end_tile, end_row = tiles, rows
    if AGAIN:  # a mask of rows and a scalar would do, if triton 3.9's interpreter could combine the two
        again = tl.load(again_ptr) > 0
        end_tile, end_row = tl.where(again, tiles, 0), tl.where(again, rows, 0)
    inside = lanes < end_row
    total = tl.zeros((BLOCK_ROWS,), tl.float32)
    peak = tl.full((BLOCK_ROWS,), float("-inf"), tl.float32)
    spread = tl.zeros((BLOCK_ROWS,), tl.float32)
    for start in range(0, end_tile, BLOCK_TILES):
        tile = start + tl.arange(0, BLOCK_TILES)
        mask = (tile < tiles)[:, None] & inside[None, :]
        at = tile.to(tl.int64)[:, None] * rows + lanes[None, :]
        total += tl.sum(tl.load(sum_ptr + at, mask=mask, other=0.0), axis=0)
        peak = tl.maximum(peak, tl.max(tl.load(peak_ptr + at, mask=mask, other=float("-inf")), axis=0))
        if spread_ptr is not None:
            spread += tl.sum(tl.load(spread_ptr + at, mask=mask, other=0.0), axis=0)
    offset = tl.load(offset_ptr + lanes, mask=inside, other=0.0)
    tl.store(others_ptr + lanes, offset + tl.log(total), mask=inside)
    tl.store(total_ptr + lanes, total, mask=inside)
    if spread_ptr is not None:
        tl.store(entropy_ptr + lanes, entropy_of(total, spread), mask=inside)
        tl.store(rival_ptr + lanes, peak, mask=inside)
    if not AGAIN:
        bad = inside & ~((total >= SMALLEST) & (total <= LARGEST))
        tl.store(offset_ptr + lanes, tl.where(peak > float("-inf"), peak, 0.0), mask=bad)
        tl.store(again_ptr + 1 + lanes, 1, mask=bad)
        if tl.max(bad.to(tl.int32), axis=0) > 0:
            tl.store(again_ptr, 1)


def launch_head_exponentials_fwd(
    x: Tensor,
    head: Tensor,
    out: Tensor | None,
    local_labels: Tensor,
    label_logit: Tensor,
    others: Tensor,
    total: Tensor,
    cap_slope: Tensor | None,
    entropy: Tensor | None = None,
    rival: Tensor | None = None,
    *,
    bias: Tensor | None,
    scale: float,
    softcap: float | None,
    config: HeadConfig | None = None,
    programs: int = 0,
) -> None:
    """Write E of ``x @ head.T`` to ``out``, and the sums of each row to the tensors that are given for them.

    The sums, [c] each, are those of ``launch_exponentials_fwd``. x: [c, D] and head: [V, D] have one dtype of at most
    32 bit; ``takes`` says whether the kernel can read head. out: [c, V]; None: E is not needed. local_labels: [c]
    int64, outside of [0, V) where another rank holds the label. config, programs: the product's configuration and
    number of programs; by default those of the device.
    """
    finished = softcap is not None or bias is not None
    config = config or head_config(x.device, finished=finished, told=entropy is not None)
    programs = programs or programs_of(x.device)
    x = x if fits(x, config) else x.contiguous()
    count, (width, depth) = x.shape[0], head.shape
    if not count:
        return
    tiles = triton.cdiv(width, config.block_n)
    parts = [count] + (2 if entropy is None else 3) * [tiles * count]
    offset, sums, peaks, *more = x.new_empty(sum(parts), dtype=torch.float32).split(parts)
    spreads = more[0] if more else None
    again = x.new_empty(1 + count, dtype=torch.int32)  # whether any row is marked, and each row's mark
    rows_in, head_in, rows_out = x, head, out
    if config.descriptors:
        stored_n = config.block_n // 2 if config.halves else config.block_n
        rows_in = TensorDescriptor.from_tensor(x, [config.block_m, config.block_k])
        head_in = TensorDescriptor.from_tensor(head, [config.block_n, config.block_k])
        rows_out = None if out is None else TensorDescriptor.from_tensor(out, [config.block_m, stored_n])

    grid = (min(programs, tiles * triton.cdiv(count, config.block_m)),)
    with on_device_of(x):
        label_logits_fwd_kernel[(count,)](
            x, head, bias, local_labels, label_logit, offset, cap_slope, again,
            width, depth, x.stride(0), head.stride(0), SCALE=scale, SOFTCAP=softcap, BLOCK_D=BLOCK_D, num_warps=4,
        )  # fmt: skip
        for once_more in (False, True):
            head_exponentials_fwd_kernel[grid](
                rows_in, head_in, rows_out, bias, local_labels, offset, again, sums, peaks, spreads,
                count, width, depth, x.stride(0), head.stride(0), 0 if out is None else out.stride(0),
                SCALE=scale, SOFTCAP=softcap, STORE=out is not None, AGAIN=once_more,
                DESCRIPTORS=config.descriptors, EVEN_K=depth % config.block_k == 0, HALVES=config.halves,
                BLOCK_M=config.block_m, BLOCK_N=config.block_n, BLOCK_K=config.block_k, GROUP_M=config.group_m,
                num_warps=config.num_warps, num_stages=config.num_stages,
            )  # fmt: skip
            row_sums_fwd_kernel[(triton.cdiv(count, BLOCK_ROWS),)](
                sums, peaks, spreads, offset, again, others, total, entropy, rival, count, tiles,
                AGAIN=once_more, BLOCK_ROWS=BLOCK_ROWS, BLOCK_TILES=BLOCK_TILES, num_warps=4,
            )  # fmt: skip


def takes(head: Tensor, dtype: torch.dtype, *, asked: bool, bias: bool) -> bool:
    """Whether this kernel, and not the vendor's GEMM, multiplies by ``head`` [V, D] after converting it to ``dtype``.

    It does if it was asked for or is the chip's default, if dtype is bf16 (fp32 in the interpreter, which has no bf16),
    and if it can read the memory of head. asked: raise ``ValueError`` for a chip without a configuration.
    """
    name = head_architecture(head.device)
    if not asked and not HEAD_EXPONENTIALS_BY_DEFAULT.get(name, False):
        return False
    config = head_config(head.device, bias)
    if dtype != (torch.float32 if interpreted() else torch.bfloat16):
        return False
    if head.dtype == dtype:
        return fits(head, config)
    return head.stride(1) == 1 and (
        not config.descriptors or head.shape[1] * dtype.itemsize % 16 == 0
    )  # will be a copy


def fits(tensor: Tensor, config: HeadConfig) -> bool:
    """Whether the kernel can read ``tensor`` [n, m].

    The elements of a row must be adjacent. A tensor descriptor also needs the tensor and its rows to begin at multiples
    of 16 bytes, and rows that do not overlap.
    """
    if tensor.stride(1) != 1 or not config.descriptors:
        return tensor.stride(1) == 1
    apart = tensor.stride(0) >= tensor.shape[1]
    whole = all(n * tensor.element_size() % 16 == 0 for n in (tensor.stride(0), tensor.shape[1]))
    return apart and whole and tensor.data_ptr() % 16 == 0


def head_config(device: torch.device, finished: bool, told: bool = False) -> HeadConfig:
    """The pinned configuration of the device; ``ValueError`` for chips without one.

    finished: the epilogue applies a softcap or a bias. told: entropies are wanted.
    """
    name = head_architecture(device)
    if (name, finished) not in HEAD_EXPONENTIALS:
        known = ", ".join(HEAD_EXPONENTIALS_BY_DEFAULT)
        raise ValueError(f"backend: expected 'triton', since 'fused' has configurations for {known} alone, got {name}")
    config = HEAD_EXPONENTIALS[name, finished]
    return HEAD_EXPONENTIALS_TOLD.get(name, config) if finished and told else config


def head_architecture(device: torch.device) -> str:
    """The name that configs.py has for the device."""
    if interpreted():
        return "interpreter"
    if device.type != "cuda":
        return device.type
    if torch.version.hip is not None:
        return torch.cuda.get_device_properties(device).gcnArchName.split(":")[0]
    major, minor = torch.cuda.get_device_capability(device)
    return "sm_100" if major == 10 else f"sm_{major}{minor}"


def programs_of(device: torch.device) -> int:
    """The number of programs: one per multiprocessor; in the interpreter 3, so that each walks over several tiles."""
    return 3 if interpreted() else torch.cuda.get_device_properties(device).multi_processor_count
