"""The model to fine-tune: where its weights come from, and in which precision it computes."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fastdss.errors import UserError
from fastdss.models.causal_lm import backbone, check_head
from fastdss.models.sources import PACKAGE, SMOLLM2, find_source, read_model, read_tokenizer


@dataclass
class Policy:
    """A causal LM in float32, its tokenizer, where it came from, and the dtype its GEMMs run in."""

    model: Any
    tokenizer: Any
    source: str
    device: torch.device
    dtype: torch.dtype

    def autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32)

    @property
    def pad_token_id(self) -> int:
        ids = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id)
        return next((i for i in ids if i is not None), 0)

    @property
    def stop_ids(self) -> set[int]:
        stops = self.model.generation_config.eos_token_id
        return {*(stops if isinstance(stops, list) else [stops]), self.tokenizer.eos_token_id} - {None}

    def copy_to_train(self, layers: int | None) -> Any:
        """A copy in which the top ``layers`` layers and the final norm are trainable; with None, everything is.

        The embeddings and the head, which often share a weight, stay frozen with the lower layers, so that the loss
        need not compute the head's gradient.
        """
        model = copy.deepcopy(self.model).train()
        if layers is None:
            return model
        blocks = stack(model)
        if layers < 1:
            raise UserError(f"layers: expected at least 1, got {layers}")
        model.requires_grad_(False)
        for block in blocks[max(0, len(blocks) - layers) :]:
            block.requires_grad_(True)
        for name, module in backbone(model).named_children():
            if "norm" in name:
                module.requires_grad_(True)
        return model


def stack(model: Any) -> nn.ModuleList:
    """The model's list of layers."""
    lists = [module for module in backbone(model).modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        raise UserError(f"{type(model).__name__} has no list of layers")
    return max(lists, key=len)


@contextmanager
def without_lower_layers(model: Any, count: int) -> Iterator[None]:
    """Within the context ``model`` lacks its first ``count`` layers; their outputs are given to it as embeddings."""
    blocks = stack(model)
    lower = list(blocks[:count])
    del blocks[:count]
    try:
        yield
    finally:
        for place, block in enumerate(lower):
            blocks.insert(place, block)


def load_policy(name: str | None, device: str, precision: str = "auto") -> Policy:
    """The model of that name (see ``find_source``), None for ``"smollm2"``, as a policy."""
    source = find_source("policy", name or SMOLLM2)
    tokenizer, model = read_tokenizer(source), read_model(source, torch.float32)
    if tokenizer.chat_template is None:
        raise UserError(f"the tokenizer of {source.where} has no chat template; use an instruction-tuned model")
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(f"the tokenizer of {source.where} is not a fast one, so tokens cannot be aligned with text")
    model.generation_config = type(model.generation_config)(
        eos_token_id=model.generation_config.eos_token_id, pad_token_id=model.generation_config.pad_token_id
    )
    nn.Module.to(model, device)
    check_head(model)
    where = f"{PACKAGE} ({source.gguf})" if source.name == SMOLLM2 and source.gguf else source.where
    return Policy(model, tokenizer, where, torch.device(device), choose_dtype(torch.device(device), precision))


def choose_dtype(device: torch.device, precision: str) -> torch.dtype:
    """The dtype of matrix products. "auto" is bfloat16 on a GPU, and on a CPU where it is measured to be faster than
    float32: CPUs without instructions for it emulate it."""
    if precision != "auto":
        return {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]
    if device.type != "cpu":
        return torch.bfloat16
    times = {}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = torch.ones(512, 512, dtype=dtype), torch.ones(512, 1024, dtype=dtype)
        a @ b
        laps = []
        for _ in range(5):
            start = time.perf_counter()
            a @ b
            laps.append(time.perf_counter() - start)
        times[dtype] = min(laps)
    return torch.bfloat16 if times[torch.bfloat16] < times[torch.float32] else torch.float32
