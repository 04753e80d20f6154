"""A stand-in for ``torch.nn.attention.varlen.varlen_attn`` on a CPU, with flash-attn's own contract.

Output in the inputs' dtype, log-sum-exp ``[H, T]`` in float32 (in float64 for float64 inputs, which flash-attn does not
take), that of a query without keys +inf (FA2) or -inf (FA3), causal from the lower right. Keys beyond ``seqused_k`` are
not seen; with ``tile`` their values are multiplied by 0 up to the end of the tile, as FA3's tensor loads do, so that
NaN there shows. Whatever the caller says wrongly is an assertion.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor


@dataclass
class FlashStandIn:
    """Call it; ``calls`` lists ``(runs, causal)``."""

    empty_lse: float = float("inf")
    tile: int = 1
    calls: list[tuple[int, bool]] = field(default_factory=list)

    def __call__(
        self, query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None, window_size=(-1, -1),
        enable_gqa=False, seqused_k=None,
    ):  # fmt: skip
        self._check(query, key, value, cu_seq_q, cu_seq_k, enable_gqa, seqused_k)
        assert window_size in ((-1, -1), (-1, 0)), "no window was asked for"
        causal = window_size == (-1, 0)
        cuts, bases = cu_seq_q.tolist(), cu_seq_k.tolist()
        self.calls.append((len(cuts) - 1, causal))
        assert (cuts[0], cuts[-1]) == (0, len(query))
        out = torch.zeros_like(query)
        wide = torch.promote_types(query.dtype, torch.float32)
        lse = torch.full((query.shape[1], len(query)), self.empty_lse, dtype=wide)
        longest_q, longest_k = 0, 0
        for i, (left, right) in enumerate(pairwise(cuts)):
            used = bases[i + 1] - bases[i] if seqused_k is None else int(seqused_k[i])
            assert bases[i] + used <= len(key), "it reads beyond the store"
            longest_q, longest_k = max(longest_q, right - left), max(longest_k, used)
            if used:
                here = slice(bases[i], bases[i] + used)
                one, lse[:, left:right] = _attention(query[left:right], key[here], value[here], scale, causal)
                end = min(bases[i] - (-used // self.tile) * self.tile, len(value))
                rest = value[bases[i] + used : end].repeat_interleave(query.shape[1] // key.shape[1], 1)
                out[left:right] = one.to(query.dtype) + 0 * rest.sum(0)
        assert (max_q, max_k) == (longest_q, longest_k)
        return (out, lse) if return_aux is not None and return_aux.lse else out

    def flash_attn_varlen_func(
        self, q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None,
        causal=False, window_size=(-1, -1), softcap=0.0, alibi_slopes=None, deterministic=False,
        return_attn_probs=False, block_table=None,
    ):  # fmt: skip
        """flash-attn 2's own function, as transformers calls it; grouped heads need no word there."""
        assert (dropout_p, window_size, softcap, alibi_slopes, block_table) == (0.0, (-1, -1), 0.0, None, None)
        rows = q, k, v, cu_seqlens_q, cu_seqlens_k, int(max_seqlen_q), int(max_seqlen_k)
        return self(*rows, scale=softmax_scale, window_size=(-1, 0) if causal else (-1, -1), enable_gqa=True)

    def flash_attn_func(
        self, q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0,
        alibi_slopes=None, deterministic=False, return_attn_probs=False,
    ):  # fmt: skip
        """The same for ``[B, T, H, d]`` whose rows are of one length."""
        cuts = torch.arange(0, len(q) * q.shape[1] + 1, q.shape[1], dtype=torch.int32)
        flat = [x.flatten(0, 1) for x in (q, k, v)]
        sizes = (q.shape[1],) * 2
        out = self.flash_attn_varlen_func(
            *flat, cuts, cuts, *sizes, dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes
        )
        return out.view_as(q)

    @staticmethod
    def _check(query, key, value, cu_seq_q, cu_seq_k, enable_gqa, seqused_k) -> None:
        assert query.ndim == key.ndim == 3
        assert key.shape == value.shape
        assert query.shape[2] == key.shape[2]
        assert len({x.dtype for x in (query, key, value)}) == 1
        assert all(x.stride(-1) == 1 for x in (query, key, value))
        assert all(x.dtype == torch.int32 for x in (cu_seq_q, cu_seq_k))
        assert cu_seq_q.shape == cu_seq_k.shape
        assert enable_gqa or query.shape[1] == key.shape[1]
        assert seqused_k is None or (seqused_k.dtype == torch.int32 and len(seqused_k) == len(cu_seq_q) - 1)


def _attention(q: Tensor, k: Tensor, v: Tensor, scale: float | None, causal: bool) -> tuple[Tensor, Tensor]:
    """Textbook attention of ``[n, H, d]`` over ``[m, Hkv, d]``: output ``[n, H, d]`` and log-sum-exp ``[H, n]``."""
    groups = q.shape[1] // k.shape[1]
    wide = torch.promote_types(q.dtype, torch.float32)
    q, k, v = (x.to(wide).transpose(0, 1) for x in (q, k, v))
    k, v = k.repeat_interleave(groups, 0), v.repeat_interleave(groups, 0)
    scores = q @ k.transpose(1, 2) * (q.shape[2] ** -0.5 if scale is None else scale)
    if causal:
        n, m = scores.shape[1:]
        hidden = torch.arange(m)[None, :] > torch.arange(n)[:, None] + m - n
        scores = scores.masked_fill(hidden, -torch.inf)
    return (scores.softmax(-1) @ v).transpose(0, 1), scores.logsumexp(-1)
