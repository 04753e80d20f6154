"""Attention of packed segments over a K/V store, called through transformers' attention registry.

Any causal language model of transformers calls the registered function with its own projections, scaling, softcap and
window. The plan of the micro-batch arrives as an extra argument of the model's forward. No mask [L, L] is made: a
segment of n tokens after ``start`` others needs n rows of a mask that depends on relative positions only (a band
matrix), so all segments use slices of one small band.

Other implementations of attention can be set as ``PrefixPlan.attend``; they have the signature of ``attend_in_order``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AttentionInterface

from fastdss.errors import UserError
from fastdss.upstream.transformers import CACHES, attention_of, attentions_of, layer_index, query_temperature

from .in_use import in_use
from .packing import Segment

NAME = "fastdss_prefix"
# (rows [H, n, d], k [n]) -> the same rows as they would be k positions later
Mover = Callable[[Tensor, Tensor], Tensor]
LONGEST_SEGMENT = 512  # rows of the band; longer segments are cut, so that the band stays small (a choice)
# Without cuDNN, which reads masks 16 bytes at a time: rows of other lengths are misaligned addresses (torch 2.11).
_SDPA = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
# Arguments that models pass to attention functions and that can be ignored here.
_NEUTRAL = {"position_ids", "cache_position", "use_cache", "output_attentions", "output_hidden_states", "is_causal"}
_NEUTRAL |= {"output_router_logits", "return_dict", "position_embeddings", "logits_to_keep", *CACHES}


class KVStore:
    """Keys and values of ``capacity`` positions: ``[Hkv, capacity, d]`` per layer, allocated at its first write."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}

    def layer(self, index: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """The layer's ``(keys, values)``, made to fit ``key: [1, Hkv, N, d]`` and ``value: [1, Hkv, N, dv]``."""
        if index not in self.layers:
            self.layers[index] = (
                # Zeros, because FA3 multiplies positions that were never written by 0, and NaN times 0 is NaN.
                key.new_zeros(key.shape[1], self.capacity, key.shape[3]),
                value.new_zeros(value.shape[1], self.capacity, value.shape[3]),
            )
        return self.layers[index]

    def resized(self, capacity: int) -> KVStore:
        """A copy with another capacity; positions that exist in both keep their contents."""
        copy, n = KVStore(capacity), min(capacity, self.capacity)
        for index, pair in self.layers.items():
            sources = (source[:, :n] for source in pair)
            targets = copy.layer(index, pair[0][None], pair[1][None])
            for target, source in zip(targets, sources, strict=True):
                target[:, :n] = source
        return copy

    def part(self, begin: int, end: int) -> dict[int, tuple[Tensor, Tensor]]:
        """A copy of each layer's positions [begin, end), for ``load``."""
        return {index: (k[:, begin:end].clone(), v[:, begin:end].clone()) for index, (k, v) in self.layers.items()}

    def load(self, saved: dict[int, tuple[Tensor, Tensor]], bases: list[int], size: int | None = None) -> None:
        """Write another store's layers, or their first ``size`` positions, to the slots that begin at ``bases``."""
        for index, pair in saved.items():
            for target, source in zip(self.layer(index, pair[0][None], pair[1][None]), pair, strict=True):
                for base in bases:
                    target[:, base : base + source[:, :size].shape[1]] = source[:, :size]


@dataclass(eq=False)
class PrefixPlan:
    """What the attention of one micro-batch needs to know: its segments in order, and the store."""

    segments: list[Segment]
    store: KVStore
    attend: Callable[..., Tensor]
    bands: dict[tuple[Any, ...], Tensor]  # masks, shared by the micro-batches of a runner
    windows: dict[int, int | None] = field(default_factory=dict)  # for each layer that attended, its window
    chunks: Mapping[int, int] = field(default_factory=dict)  # chunk sizes, of layers in which tokens see their chunk
    packed: Any = None  # a PackedBatch, made once for all layers
    move: Mover | None = None  # moves queries of shortcuts to where they read keys that stand elsewhere
    sights: list[tuple[int, Any]] = field(default_factory=list)  # what shortcuts see, made once for all layers

    def band(self, n: int, start: int, window: int | None, like: Tensor) -> Tensor | None:
        """Additive mask ``[n, start + n]`` for n tokens after ``start`` others: causal, and within the window if any.

        None if the mask would hide nothing.
        """
        if window is None and n == 1:
            return None
        key = (window, like.device, like.dtype)
        band = self.bands.get(key)
        if band is None or band.shape[0] < n or band.shape[1] - band.shape[0] < start:
            rows = max(LONGEST_SEGMENT, n)
            band = self.bands[key] = _band(rows, 2 * start, window, like)
        offset = band.shape[1] - band.shape[0]
        cut = band[:n, offset - start : offset + n]
        return cut.clone() if like.is_cuda else cut  # on CUDA a mask must begin at a multiple of 16 bytes


def _band(rows: int, before: int, window: int | None, like: Tensor) -> Tensor:
    """``[rows, before + rows]``: row i may see column j when ``0 <= i + before - j`` (``< window``)."""
    distance = torch.arange(rows, device=like.device)[:, None] + before
    distance = distance - torch.arange(before + rows, device=like.device)[None, :]
    hidden = distance < 0 if window is None else (distance < 0) | (distance >= window)
    return torch.zeros_like(distance, dtype=like.dtype).masked_fill_(hidden, float("-inf"))


def attend_in_order(
    plan: PrefixPlan, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float, window: int | None,
    softcap: float | None, chunk: int | None = None, sinks: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Segment after segment: write its keys and values to its slot, then attend to the slot up to the segment's end.

    query: [1, H, N, d], key: [1, Hkv, N, d], value: [1, Hkv, N, dv] -> [1, N, H, dv]. With ``chunk``, position p sees
    the positions from ``p // chunk * chunk`` on. ``sinks`` [H]: one more logit for each head, whose value is zero.
    """
    keys, values = plan.store.layer(layer, key, value)
    groups = query.shape[1] // keys.shape[0]
    heads = query.shape[1]
    out = query.new_empty(query.shape[2], heads, value.shape[3])
    left = 0
    for segment in plan.segments:
        n = len(segment.ids)
        here = slice(left, left + n)
        for base in (segment.base, *segment.copies):
            keys[:, base + segment.start : base + segment.start + n] = key[0, :, here]
            values[:, base + segment.start : base + segment.start + n] = value[0, :, here]
        whole = slice(segment.base, segment.base + segment.start + n)
        slot_keys, slot_values = keys[:, whole], values[:, whole]
        for begin, end, low in _stretches(segment, chunk):
            some, first = slice(left + begin, left + end), segment.start + begin - low
            visible = slice(low, segment.start + end)
            q = query[0, :, some].unflatten(0, (-1, groups))  # [Hkv, groups, n, d]: one K/V head serves its group
            k = slot_keys[:, None, visible].expand(-1, groups, -1, -1)
            v = slot_values[:, None, visible].expand(-1, groups, -1, -1)
            mask = plan.band(end - begin, first, window, query)
            result = _softmax_attention(q, k, v, mask, scaling, softcap, sinks)
            out[some] = result.flatten(0, 1).transpose(0, 1)
        left += n
    return out[None]


def attend_alone(plan: PrefixPlan, layer: int, query: Tensor, key: Tensor, value: Tensor, *_: Any) -> Tensor:
    """Attention in which every token sees only itself; the tokens' keys are stored one after the other."""
    keys, _values = plan.store.layer(layer, key, value)
    keys[:, : key.shape[2]] = key[0]
    return value.repeat_interleave(query.shape[1] // value.shape[1], 1).transpose(1, 2).contiguous()


def _stretches(segment: Segment, chunk: int | None) -> Iterator[tuple[int, int, int]]:
    """``(begin, end, low)`` for parts of the segment: tokens [begin, end) see positions from ``low`` on.

    Without chunks there is one part, with low = 0.
    """
    begin, n = 0, len(segment.ids)
    while begin < n:
        low = 0 if chunk is None else (segment.start + begin) // chunk * chunk
        end = n if chunk is None else min(n, low + chunk - segment.start)
        yield begin, end, low
        begin = end


def _softmax_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float, softcap: float | None, sinks: Tensor | None
) -> Tensor:
    if softcap is None and sinks is None:
        with sdpa_kernel(_SDPA) if q.is_cuda else nullcontext():
            return nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scaling)
    return softmax_shares(q @ k.transpose(-1, -2) * scaling, mask, softcap, sinks).to(q.dtype) @ v


def softmax_shares(scores: Tensor, mask: Tensor | None, softcap: float | None, sinks: Tensor | None) -> Tensor:
    """What each key contributes, ``[Hkv, groups, n, C]`` in fp32 at least, from the scaled scores.

    mask: additive; ``sinks`` [H]: one more logit for each head, whose value is zero.
    """
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if mask is not None:
        scores = scores + mask
    dtype = torch.promote_types(scores.dtype, torch.float32)
    if sinks is None:
        return torch.softmax(scores, dim=-1, dtype=dtype)
    beside = sinks.to(scores).unflatten(0, scores.shape[:2])[:, :, None, None].expand(*scores.shape[:-1], 1)
    return torch.softmax(torch.cat([scores, beside], dim=-1), dim=-1, dtype=dtype)[..., :-1]


def prefix_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    fastdss_plan: PrefixPlan | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The function that transformers calls in every attention layer; its registry prescribes the signature."""
    name = type(module).__name__
    if fastdss_plan is None:
        raise UserError(
            f"{name} does not hand extra forward arguments to its attention function; use method='per_prefix'. Or "
            "another thread used the model while it was scored with"
        )
    unknown = [key for key, value in kwargs.items() if value is not None and key not in _NEUTRAL]
    if unknown or attention_mask is not None or dropout:
        what = unknown or "a mask or dropout"
        raise UserError(f"{name} asks for attention that fastdss does not know: {what}; use method='per_prefix'")
    layer = layer_index(module)
    if layer is None:
        raise UserError(f"{name} is not a causal attention layer with a layer_idx; use method='per_prefix'")
    if layer in fastdss_plan.windows:  # a second call in one layer would overwrite the first one's keys in the store
        raise UserError(f"{name} attends more than once in a layer; use method='per_prefix'")
    fastdss_plan.windows[layer] = sliding_window
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    temperatures = _temperatures(module, fastdss_plan.segments, query)
    query = query if temperatures is None else query * temperatures
    rule = scaling, sliding_window, softcap, fastdss_plan.chunks.get(layer), s_aux
    return fastdss_plan.attend(fastdss_plan, layer, query, key, value, *rule), None


def _temperatures(module: nn.Module, segments: list[Segment], query: Tensor) -> Tensor | None:
    """``[N, 1]`` factors that correct the queries of Llama 4's layers without rotation; None where all are 1.

    The model scales these queries by position, which it takes to be a token's place in the pack. The factor is the
    scale of the token's own position divided by the scale of its place in the pack.
    """
    temperature = query_temperature(module)
    if temperature is None:
        return None
    own = torch.cat([torch.arange(s.start, s.start + len(s.ids)) for s in segments])
    told = torch.arange(len(own))
    if max(int(own.max()), len(own) - 1) + 1 < temperature.floor:
        return None

    def scale(places: Tensor) -> Tensor:
        return torch.log1p(torch.floor((places.float() + 1.0) / temperature.floor)) * temperature.scale + 1.0

    return (scale(own) / scale(told)).to(query)[:, None]


# No mask function is registered by this name, so transformers builds no mask.
AttentionInterface.register(NAME, prefix_attention)


@contextmanager
def using_prefix_attention(model: Any) -> Iterator[None]:
    """Within the context ``model`` attends through ``prefix_attention``; see ``in_use``."""
    with in_use(model):
        before = attentions_of(model.config)
        try:
            model.set_attn_implementation(NAME)
            if attention_of(model.config) != NAME:
                raise UserError(f"{type(model).__name__} does not let its attention be chosen; use method='per_prefix'")
            yield
        finally:
            model.set_attn_implementation(before)
