"""Attention of packed branches over a key/value store, forward only.

A token sees the first ``limit`` keys of its slot in the store, and the packed keys of its own run up to itself. In
both sources that is an interval ``[first, end)`` of keys, so the same loop serves both. Keys that all rows of a program
see are read without a mask. A window or a chunk moves ``first``. A sink is one more logit of each head, whose value is
zero.

    rows of a tile          store, one slot        packed keys
    branch A  limit 9       kkkkkkkk|k             a
              limit 9       kkkkkkkk|k             aa
    branch B  limit 8       kkkkkkkk|.             ..b
                            no mask |mask          mask
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime.interpreter import InterpretedFunction

from .configs import PrefixConfig
from .primitives import on_device_of

LOG2E = tl.constexpr(1.4426950408889634)
TILE_COLUMNS = 9  # first token, end, base of the slot, then least and greatest limit, run start and position


def split_dim(dim: int) -> tuple[int, int]:
    """Two tile widths that hold ``dim`` columns with little padding: 64 -> (64, 0), 80 -> (64, 16), 96 -> (64, 32).

    Triton's tiles have powers of 2 as widths, and ``tl.dot`` takes none below 16.
    """
    whole = max(16, triton.next_power_of_2(dim))
    if whole == dim or whole == 16:
        return whole, 0
    rest = max(16, triton.next_power_of_2(dim - whole // 2))
    return (whole, 0) if rest == whole // 2 else (whole // 2, rest)


@triton.jit
def _load_tile(
    ptr, stride, rows, live,
    FROM: tl.constexpr, BLOCK: tl.constexpr, DIM: tl.constexpr, RAGGED: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """``[rows, BLOCK]``: the columns of ``rows`` from FROM on. With RAGGED only ``live`` rows are read."""
    columns = FROM + tl.arange(0, BLOCK)
    ptrs = ptr + (rows * stride)[:, None] + columns[None, :]
    if RAGGED:
        tile = tl.load(ptrs, mask=live[:, None] & (columns < DIM)[None, :], other=0.0)
    elif FROM + BLOCK > DIM:
        tile = tl.load(ptrs, mask=(columns < DIM)[None, :], other=0.0)
    else:
        tile = tl.load(ptrs)
    if UPCAST:
        tile = tile.to(tl.float32)
    return tile


@triton.jit
def _visit_keys(
    q0, q1, peak, total, acc0, acc1, first, end,
    k_ptr, v_ptr, stride_kn, stride_vn, begin, low_tiles, jump, tiles, stop,
    SCALE: tl.constexpr, SOFTCAP: tl.constexpr, HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr,
    BLOCK_N: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, E0: tl.constexpr, E1: tl.constexpr,
    MASKED: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Continue an online softmax over ``tiles`` tiles of keys, which begin at key ``begin``.

    With MASKED, ``jump`` keys are skipped after ``low_tiles`` tiles, row r sees the keys ``first[r] <= key < end[r]``,
    and keys from ``stop`` on are not read.
    """
    unit: tl.constexpr = (
        SOFTCAP if SOFTCAP > 0 else SCALE
    ) * LOG2E  # turns scores into logits in units of log 2, for exp2
    lane = tl.arange(0, BLOCK_N)
    for i in range(0, tiles):
        start = begin + i * BLOCK_N
        if MASKED:
            start += tl.where(i >= low_tiles, jump, 0)
        key = start + lane
        inside = key < stop
        k_row = k_ptr + start.to(tl.int64) * stride_kn
        v_row = v_ptr + start.to(tl.int64) * stride_vn
        k0 = _load_tile(k_row, stride_kn, lane, inside, 0, D0, HEAD_DIM, MASKED, UPCAST)
        scores = tl.dot(q0, tl.trans(k0), input_precision="ieee", out_dtype=peak.dtype)
        if D1 > 0:
            k1 = _load_tile(k_row, stride_kn, lane, inside, D0, D1, HEAD_DIM, MASKED, UPCAST)
            scores = tl.dot(q1, tl.trans(k1), scores, input_precision="ieee", out_dtype=peak.dtype)
        if SOFTCAP > 0:
            # tanh(scores * SCALE / SOFTCAP) in the form that takes the fewest registers. Caps are about 50, so that a
            # score is off by 1e-5 at most, and its weight by as little.
            scores = 1.0 - 2.0 / (1.0 + tl.exp(scores * (2.0 * SCALE / SOFTCAP)))
        if MASKED:
            seen = (key[None, :] >= first[:, None]) & (key[None, :] < end[:, None])
            scores = tl.where(seen, scores, float("-inf"))
        higher = tl.maximum(peak, tl.max(scores, 1) * unit)
        shift = tl.where(higher == float("-inf"), 0.0, higher) if MASKED else higher  # rows that have seen no key yet
        weight = tl.exp2(scores * unit - shift[:, None])
        decay = tl.exp2(peak - shift)
        peak = higher
        total = total * decay + tl.sum(weight, 1)
        v0 = _load_tile(v_row, stride_vn, lane, inside, 0, E0, VALUE_DIM, MASKED, UPCAST)
        acc0 = tl.dot(weight.to(v0.dtype), v0, acc0 * decay[:, None], input_precision="ieee", out_dtype=peak.dtype)
        if E1 > 0:
            v1 = _load_tile(v_row, stride_vn, lane, inside, E0, E1, VALUE_DIM, MASKED, UPCAST)
            acc1 = tl.dot(weight.to(v1.dtype), v1, acc1 * decay[:, None], input_precision="ieee", out_dtype=peak.dtype)
    return peak, total, acc0, acc1


@triton.jit
def _visit_source(
    q0, q1, peak, total, acc0, acc1, first, end,
    k_ptr, v_ptr, stride_kn, stride_vn, low, whole_low, whole_high, high,
    SCALE: tl.constexpr, SOFTCAP: tl.constexpr, HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr,
    BLOCK_N: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, E0: tl.constexpr, E1: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Continue the online softmax over the keys ``[low, high)`` of one source.

    Every row sees all of ``[whole_low, whole_high)``: tiles within it are visited first, without a mask, then those
    before and after it with one.
    """
    low_tiles = (tl.maximum(tl.minimum(whole_low, high) - low, 0) + BLOCK_N - 1) // BLOCK_N
    whole = low + low_tiles * BLOCK_N
    whole_tiles = tl.maximum(whole_high - whole, 0) // BLOCK_N
    jump = whole_tiles * BLOCK_N
    high_tiles = (tl.maximum(high - whole - jump, 0) + BLOCK_N - 1) // BLOCK_N
    peak, total, acc0, acc1 = _visit_keys(
        q0, q1, peak, total, acc0, acc1, first, end, k_ptr, v_ptr, stride_kn, stride_vn, whole, 0, 0, whole_tiles, high,
        SCALE, SOFTCAP, HEAD_DIM, VALUE_DIM, BLOCK_N, D0, D1, E0, E1, False, UPCAST,
    )  # fmt: skip
    return _visit_keys(
        q0, q1, peak, total, acc0, acc1, first, end, k_ptr, v_ptr, stride_kn, stride_vn,
        low, low_tiles, jump, low_tiles + high_tiles, high,
        SCALE, SOFTCAP, HEAD_DIM, VALUE_DIM, BLOCK_N, D0, D1, E0, E1, True, UPCAST,
    )  # fmt: skip


@triton.jit(do_not_specialize=["window"], do_not_specialize_on_alignment=["limit_ptr", "run_ptr", "tile_ptr"])
def prefix_attention_fwd_kernel(
    q_ptr, k_ptr, v_ptr, store_k_ptr, store_v_ptr, sink_ptr, limit_ptr, run_ptr, tile_ptr, out_ptr,
    stride_qh, stride_qn, stride_kh, stride_kn, stride_vh, stride_vn,
    stride_store_kh, stride_store_kn, stride_store_vh, stride_store_vn, stride_on, stride_oh,
    window,
    SCALE: tl.constexpr, SOFTCAP: tl.constexpr, HAS_WINDOW: tl.constexpr, CHUNKED: tl.constexpr,
    HAS_SINK: tl.constexpr, GROUP: tl.constexpr, HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    D0: tl.constexpr, D1: tl.constexpr, E0: tl.constexpr, E1: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """One program computes the tokens of a tile for HEADS of the GROUP query heads that share a K/V head.

    HAS_WINDOW: a token sees the last ``window`` positions up to its own. CHUNKED: positions are divided into chunks of
    ``window``, and a token sees those of its own chunk up to its own position.
    """
    head = tl.program_id(0).to(tl.int64) * HEADS
    kv_head = head // GROUP
    tile_ptr += tl.program_id(1).to(tl.int64) * 9
    token_low, token_end = tl.load(tile_ptr), tl.load(tile_ptr + 1)
    row = tl.arange(0, BLOCK_M)
    token = token_low + row // HEADS
    live = token < token_end
    limit = tl.load(limit_ptr + token, mask=live, other=0)
    run = tl.load(run_ptr + token, mask=live, other=0)
    head_of_row = head + row % HEADS
    q_row = token.to(tl.int64) * stride_qn + head_of_row * stride_qh
    q0 = _load_tile(q_ptr, 1, q_row, live, 0, D0, HEAD_DIM, True, UPCAST)
    q1 = q0
    if D1 > 0:
        q1 = _load_tile(q_ptr, 1, q_row, live, D0, D1, HEAD_DIM, True, UPCAST)

    accumulate: tl.constexpr = tl.float64 if q0.dtype == tl.float64 else tl.float32
    peak = tl.full([BLOCK_M], float("-inf"), accumulate)
    total = tl.zeros([BLOCK_M], accumulate)
    acc0 = tl.zeros([BLOCK_M, E0], accumulate)
    acc1 = total
    if E1 > 0:
        acc1 = tl.zeros([BLOCK_M, E1], accumulate)

    # The store. A row sees [0, limit), with a window [position - window + 1, limit), with chunks [its chunk's first
    # position, limit).
    first = tl.zeros([BLOCK_M], tl.int32)
    low, whole_low = token_low * 0, token_low * 0
    if CHUNKED:
        first = (limit + token - run) // window * window
        low = tl.load(tile_ptr + 7) // window * window
        whole_low = tl.load(tile_ptr + 8) // window * window
    chunk = first
    if HAS_WINDOW:
        first = tl.maximum(limit + token - run - window + 1, 0)
        low = tl.maximum(tl.load(tile_ptr + 7) - window + 1, 0)
        whole_low = tl.maximum(tl.load(tile_ptr + 8) - window + 1, 0)
    base = tl.load(tile_ptr + 2).to(tl.int64)
    limit_low, limit_high = tl.load(tile_ptr + 3), tl.load(tile_ptr + 4)
    slot_k_ptr = store_k_ptr + kv_head * stride_store_kh + base * stride_store_kn
    slot_v_ptr = store_v_ptr + kv_head * stride_store_vh + base * stride_store_vn
    peak, total, acc0, acc1 = _visit_source(
        q0, q1, peak, total, acc0, acc1, first, limit,
        slot_k_ptr, slot_v_ptr, stride_store_kn, stride_store_vn, low, whole_low, limit_low, limit_high,
        SCALE, SOFTCAP, HEAD_DIM, VALUE_DIM, BLOCK_N, D0, D1, E0, E1, UPCAST,
    )  # fmt: skip

    # The packed keys. A row sees [run, token], with a window [max(run, token - window + 1), token], with chunks those
    # of its chunk from run on.
    first = run
    low, whole_low = tl.load(tile_ptr + 5), tl.load(tile_ptr + 6)
    if CHUNKED:
        first = tl.maximum(run, run + chunk - limit)
        whole_low = token_end
    if HAS_WINDOW:
        first = tl.maximum(run, token - window + 1)
        low = tl.maximum(low, token_low - window + 1)
        whole_low = tl.maximum(whole_low, token_end - window)
    peak, total, acc0, acc1 = _visit_source(
        q0, q1, peak, total, acc0, acc1, first, token + 1,
        k_ptr + kv_head * stride_kh, v_ptr + kv_head * stride_vh, stride_kn, stride_vn,
        low, whole_low, token_low + 1, token_end,
        SCALE, SOFTCAP, HEAD_DIM, VALUE_DIM, BLOCK_N, D0, D1, E0, E1, UPCAST,
    )  # fmt: skip

    if HAS_SINK:
        sink = tl.load(sink_ptr + head_of_row, mask=live, other=0.0).to(peak.dtype) * LOG2E
        higher = tl.maximum(peak, sink)
        decay = tl.exp2(peak - higher)
        total = total * decay + tl.exp2(sink - higher)
        acc0 = acc0 * decay[:, None]
        if E1 > 0:
            acc1 = acc1 * decay[:, None]

    out_row = out_ptr + (token.to(tl.int64) * stride_on + head_of_row * stride_oh)[:, None]
    column = tl.arange(0, E0)[None, :]
    tl.store(out_row + column, acc0 / total[:, None], mask=live[:, None] & (column < VALUE_DIM))
    if E1 > 0:
        column = E0 + tl.arange(0, E1)[None, :]
        tl.store(out_row + column, acc1 / total[:, None], mask=live[:, None] & (column < VALUE_DIM))


def launch_prefix_attention_fwd(
    query: Tensor, key: Tensor, value: Tensor, store: tuple[Tensor, Tensor],
    limits: Tensor, runs: Tensor, tiles: Tensor, out: Tensor,
    *, scaling: float, window: int | None, softcap: float | None, config: PrefixConfig,
    chunk: int | None = None, sinks: Tensor | None = None,
) -> None:  # fmt: skip
    """Write to ``out: [N, H, dv]`` the attention of each token of the tiles over the keys of its slot and of its run.

    query: [H, N, d], key: [Hkv, N, d], value: [Hkv, N, dv], store: ([Hkv, capacity, d], [Hkv, capacity, dv]); the last
    dimension of each is contiguous. limits, runs: [N] int32: how many keys of its slot a token sees, and the packed
    index where its run begins. tiles: [T * TILE_COLUMNS] int32, each of at most ``tokens_per_tile`` tokens of one slot.
    window, chunk: the kernel's ``window`` with HAS_WINDOW or CHUNKED. sinks: [H], one more logit per head.
    """
    heads, _, head_dim = query.shape
    group, value_dim = heads // key.shape[0], value.shape[2]
    shared = heads_per_program(group, config)
    (d0, d1), (e0, e1) = split_dim(head_dim), split_dim(value_dim)
    with on_device_of(query):
        prefix_attention_fwd_kernel[(heads // shared, len(tiles) // TILE_COLUMNS)](
            query, key, value, *store, limits if sinks is None else sinks, limits, runs, tiles, out,
            query.stride(0), query.stride(1), key.stride(0), key.stride(1), value.stride(0), value.stride(1),
            store[0].stride(0), store[0].stride(1), store[1].stride(0), store[1].stride(1),
            out.stride(0), out.stride(1), window or chunk or 0,
            SCALE=scaling, SOFTCAP=softcap or 0.0, HAS_WINDOW=window is not None, CHUNKED=chunk is not None,
            HAS_SINK=sinks is not None,
            GROUP=group, HEADS=shared, HEAD_DIM=head_dim, VALUE_DIM=value_dim,
            BLOCK_M=config.block_m, BLOCK_N=config.block_n, D0=d0, D1=d1, E0=e0, E1=e1,
            UPCAST=stored_dtype(query) != query.dtype, num_warps=config.num_warps, num_stages=config.num_stages,
        )  # fmt: skip


def stored_dtype(query: Tensor) -> torch.dtype:
    """The dtype of ``out``: the query's, but fp32 for bf16 in the interpreter, which computes with bf16's raw bits."""
    return torch.float32 if query.dtype == torch.bfloat16 and not query.is_cuda else query.dtype


def heads_per_program(group: int, config: PrefixConfig) -> int:
    """How many query heads of a K/V head share a program: all, or the largest divisor that fits into a tile's rows."""
    return max(part for part in range(1, group + 1) if group % part == 0 and part <= config.block_m)


def tokens_per_tile(group: int, config: PrefixConfig) -> int:
    """How many tokens a tile has: each token takes ``heads_per_program`` of its rows."""
    return config.block_m // heads_per_program(group, config)


def architecture(device: torch.device) -> str:
    """The name that ``prefix_config`` has for the device; ``ValueError`` if it has no configuration for it."""
    if isinstance(prefix_attention_fwd_kernel, InterpretedFunction):
        return "interpreter"
    if device.type != "cuda":
        raise ValueError(f"the Triton kernel needs a GPU, got tensors on {device}")
    if torch.version.hip is not None:
        name = torch.cuda.get_device_properties(device).gcnArchName.split(":")[0]
        if name == "gfx942":
            return name
        raise ValueError(f"the prefix attention kernel has no configuration for {name}")
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        raise ValueError(f"the prefix attention kernel needs compute capability 8.0 or more, got {major}.{minor}")
    return {9: "sm_90", 10: "sm_100"}.get(major, "sm_80")  # others have no more shared memory than sm_80's rows need
