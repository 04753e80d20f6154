"""Which columns of a row are inputs of a model, and how such columns of several rows become one batch.

A row holds each column as the model's processor returns it for that row alone (``return_tensors="pt"`` or lists, the
batch dimension of one kept or not).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdss.errors import UserError, UserTypeError
from fastdss.upstream.transformers import CACHES


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# One value (or vector) per token, and what padding gets.
TOKEN_INPUTS: dict[str, int] = {
    "attention_mask": 0,
    "position_ids": 0,
    "token_type_ids": 0,
    "mm_token_type_ids": 0,
    "moe_mm_token_type_ids": 0,
    "task_type_ids": 0,
    "image_embeds_position_mask": 0,
    "image_attention_mask": 0,
    "cross_attention_mask": 0,
    "input_shape_ids": 0,
    "input_pronunciation_ids": 0,
}
# Images, videos and sounds: rows are joined along the first dimension, the others padded with zeros.
MEDIA_INPUTS = _names(
    "pixel_values pixel_values_videos pixel_values_images pixel_values_local pixel_attention_mask "
    "pixel_mask image_pixel_values image_grid_thw video_grid_thw image_grid_hw image_grids video_grids "
    "image_sizes image_sizes_videos image_position_ids video_position_ids image_num_crops "
    "num_local_patches patches_grid second_per_grid_ts video_second_per_grid spatial_shapes target_sizes "
    "target_sizes_videos aspect_ratio_ids aspect_ratio_mask image_merge_sizes video_merge_sizes "
    "video_compression_mask num_frames_per_video batch_num_images high_res_pixel_values "
    "image_token_pooling video_token_pooling flattened_patches width height input_features "
    "input_features_mask feature_attention_mask audio_feature_lengths audio_input_features "
    "audio_embed_sizes audio_attention_mask input_values input_values_mask padding_mask"
)
# What a forward takes that is no input of its own in a row: by it trainers, generation and this package work.
_NOT_OF_ROWS = _names(
    "self args kwargs input_ids labels use_cache return_dict logits_to_keep cache_position "
    "output_attentions output_hidden_states output_router_logits num_items_in_batch "
    "token_weights ref_logprobs ref_slope ref_offset ref_hidden ref_lm_head ref_bias ref_logit_scale ref_softcap "
    "rows kl_rows real_tokens token_stats dss_ask mm_encoder_outputs"
) | set(CACHES)


def input_names(model: Any) -> frozenset[str]:
    """What the model's forward takes of a row besides ``input_ids`` and ``labels``.

    A forward that swallows any keyword says nothing by that: only named parameters count.
    """
    return frozenset(inspect.signature(model.forward).parameters) - _NOT_OF_ROWS


def given_inputs(row: Mapping[str, Any], taken: frozenset[str] | None) -> list[str]:
    """Names of the row's columns that change what the model sees; ``taken`` is ``input_names``, or None: not known.

    Raises ``ValueError`` for a column that the model takes and of which no batch can be made here.
    """
    present = [name for name, value in row.items() if value is not None]
    if taken is None:
        return [name for name in present if name in TOKEN_INPUTS or name in MEDIA_INPUTS]
    named = [name for name in present if name in taken]
    for name in named:
        if name not in TOKEN_INPUTS and name not in MEDIA_INPUTS:
            raise UserError(
                f"column {name!r} is an input of the model, and how rows of it become a batch is not known: "
                "drop it, or pass a data_collator of your own"
            )
    return named


def as_tensor(value: Any) -> Tensor:
    """``torch.as_tensor``; arrays are copied, for a table's are read-only, of which PyTorch warns."""
    return torch.tensor(value) if isinstance(value, np.ndarray) else torch.as_tensor(value)


def token_values(where: str, name: str, value: Any, length: int) -> Tensor:
    """A column of ``TOKEN_INPUTS`` as ``[T, ...]``; several positions per token (M-RoPE) as ``[T, axes]``."""
    try:
        tensor = as_tensor(value)
    except (RuntimeError, TypeError, ValueError) as error:
        raise UserTypeError(f"{where}: {name}: expected one value per token ({error})") from None
    if name == "position_ids" and tensor.ndim > 1:  # [axes, T], or [axes, 1, T] as a batch of one has them
        tensor = tensor.reshape(-1, tensor.shape[-1]).T
        tensor = tensor[:, 0] if tensor.shape[1] == 1 else tensor
    elif tensor.ndim > 1 and tensor.shape[0] == 1 and tensor.shape[1] == length:
        tensor = tensor[0]
    if tensor.ndim == 0 or len(tensor) != length:
        raise UserError(f"{where}: expected {length} {name}, got the shape {list(as_tensor(value).shape)}")
    return tensor


def join_tokens(name: str, rows: Sequence[Tensor], width: int) -> Tensor:
    """Rows ``[T, ...]`` padded on the right to ``[B, width, ...]``; positions with axes become ``[axes, B, width]``."""
    shape = [max(sizes) for sizes in zip(*(row.shape[1:] for row in rows), strict=True)]
    joined = torch.full((len(rows), width, *shape), TOKEN_INPUTS[name], dtype=rows[0].dtype)
    for index, row in enumerate(rows):
        joined[index][tuple(map(slice, row.shape))] = row
    return joined.permute(2, 0, 1) if name == "position_ids" and joined.ndim == 3 else joined


def join_media(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, Tensor]:
    """Media columns of several rows, one after the other along the first dimension; rows without them add nothing.

    Where the first dimension counts rows and not images (``pixel_values: [1, images, ...]`` with a mask of their pixels
    or an aspect ratio), rows without images get zeros, which such models take for "no image".
    """
    joined = {}
    for name in names:
        parts = [None if row.get(name) is None else _media(name, row[name]) for row in rows]
        known = [part for part in parts if part is not None]
        by_row = _counts_rows(name, names, known[0])
        if by_row and any(len(part) != 1 for part in known):
            raise UserError(f"{name}: expected [1, images, ...] of each row, got {[list(p.shape) for p in known]}")
        sizes = [max(dims) for dims in zip(*(part.shape[1:] for part in known), strict=True)]
        empty = known[0].new_zeros((int(by_row), *sizes))
        joined[name] = torch.cat([empty if part is None else _grown(part, sizes) for part in parts])
    return joined


def _counts_rows(name: str, names: Sequence[str], value: Tensor) -> bool:
    tiled = "aspect_ratio_ids" in names and name in ("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask")
    masked = "pixel_attention_mask" in names and name in ("pixel_values", "pixel_attention_mask")
    return tiled or (masked and value.ndim == (5 if name == "pixel_values" else 4))


def _media(name: str, value: Any) -> Tensor:
    try:
        if isinstance(value, list) and value and torch.is_tensor(value[0]):
            return torch.stack(value)
        tensor = as_tensor(value)
    except (RuntimeError, TypeError, ValueError) as error:
        raise UserTypeError(f"{name}: expected the tensor that the processor returns for one row ({error})") from None
    return tensor[None] if tensor.ndim == 0 else tensor


def _grown(part: Tensor, sizes: Sequence[int]) -> Tensor:
    if list(part.shape[1:]) == list(sizes):
        return part
    grown = part.new_zeros((len(part), *sizes))
    grown[tuple(map(slice, part.shape))] = part
    return grown
