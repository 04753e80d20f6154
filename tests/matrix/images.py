"""Rows with images for tiny vision-language models, each column as the class's processor returns it for one row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tests.matrix.tiny import MROPE

IMAGE = 120  # the placeholder's id, within the tiny vocabulary
IMAGES = (1, 0, 2, 1)  # in each row
SIDE = 28  # two patches of 14 pixels
Columns = dict[str, Any]


def _qwen(count: int, pixels: Tensor) -> tuple[int, Columns]:
    """Patches of all images in one matrix, their grids beside it; four patches are merged to one token."""
    patches = pixels.reshape(count * 4, -1).repeat(1, 2)  # two frames of each
    return 1, {"pixel_values": patches, "image_grid_thw": torch.tensor([[1, 2, 2]] * count)}


def _per_image(tokens: int) -> Callable[[int, Tensor], tuple[int, Columns]]:
    return lambda count, pixels: (tokens, {"pixel_values": pixels})


def _llava_next(count: int, pixels: Tensor) -> tuple[int, Columns]:
    """The image whole and in tiles: 4 tokens, 4 more, and a new line after each of two lines."""
    sizes = torch.tensor([[SIDE, SIDE]] * count)
    return 10, {"pixel_values": pixels[:, None].repeat(1, 2, 1, 1, 1), "image_sizes": sizes}


def _idefics3(count: int, pixels: Tensor) -> tuple[int, Columns]:
    """A batch of one row of images, and which of their pixels are real."""
    mask = torch.ones(1, count, SIDE, SIDE, dtype=torch.long)
    return 1, {"pixel_values": pixels[None], "pixel_attention_mask": mask}


QWEN = {"image_token_id": IMAGE, "video_token_id": 121, "vision_start_token_id": 122, "vision_end_token_id": 123}
INDEX = {"image_token_index": IMAGE, "vision_feature_layer": -1}
IDEFICS = {"image_token_id": IMAGE, "scale_factor": 2}


class Kind(NamedTuple):
    overrides: Columns  # what the configuration needs besides
    columns: Callable[[int, Tensor], tuple[int, Columns]]  # of so many images: tokens of each, and the row's columns


KINDS = {
    "Qwen2VLForConditionalGeneration": Kind(
        QWEN | {"text_config": MROPE, "vision_config": {"embed_dim": 16, "hidden_size": 32}}, _qwen
    ),
    "Qwen2_5_VLForConditionalGeneration": Kind(
        QWEN | {"text_config": MROPE, "vision_config": {"out_hidden_size": 32}}, _qwen
    ),
    "Qwen3VLForConditionalGeneration": Kind(
        QWEN | {"text_config": MROPE, "vision_config": {"out_hidden_size": 32, "deepstack_visual_indexes": [0]}}, _qwen
    ),
    "Gemma3ForConditionalGeneration": Kind({"image_token_id": IMAGE, "mm_tokens_per_image": 4}, _per_image(4)),
    "Idefics3ForConditionalGeneration": Kind(IDEFICS, _idefics3),
    "SmolVLMForConditionalGeneration": Kind(IDEFICS, _idefics3),
    "LlavaForConditionalGeneration": Kind(INDEX, _per_image(4)),
    "LlavaNextForConditionalGeneration": Kind(INDEX | {"image_grid_pinpoints": [[SIDE, SIDE]]}, _llava_next),
    "PaliGemmaForConditionalGeneration": Kind({"image_token_index": IMAGE, "projection_dim": 32}, _per_image(4)),
}


def image_rows(name: str, seed: int = 1) -> list[dict[str, Any]]:
    """Four rows of several lengths, one without an image; images come first, as in a prompt, and are no labels."""
    columns_of = KINDS[name].columns
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for index, count in enumerate(IMAGES):
        pixels = torch.randn(count, 3, SIDE, SIDE, generator=generator)
        tokens, columns = columns_of(count, pixels) if count else (0, {})
        start, end = ([122], [123]) if "image_grid_thw" in columns else ([], [])
        shown = [token for _ in range(count) for token in [*start, *[IMAGE] * tokens, *end]]
        text = torch.randint(3, 50, (5 + 2 * index,), generator=generator).tolist()
        length = len(shown) + len(text)
        weights = torch.rand(length, generator=generator).tolist()
        row = {
            "input_ids": shown + text,
            "labels": [-100] * (len(shown) + 2) + text[2:],
            "token_weights": weights,
            "ref_logprobs": (-3 * torch.rand(length, generator=generator)).tolist(),
        }
        if name.startswith("Qwen"):
            row["mm_token_type_ids"] = [int(token == IMAGE) for token in row["input_ids"]]
        if name.startswith("Gemma3"):
            row["token_type_ids"] = [int(token == IMAGE) for token in row["input_ids"]]
        if name.startswith("PaliGemma"):
            row["token_type_ids"] = [0] * (len(shown) + 2) + [1] * (len(text) - 2)
        rows.append(row | columns)
    return rows
