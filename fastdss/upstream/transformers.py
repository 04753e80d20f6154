"""Names of transformers that its documentation does not promise."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


def attention_of(config: Any) -> str:
    """The attention implementation in use: ``set_attn_implementation`` sets it, and nothing public reads it."""
    return str(config._attn_implementation)


def commit_of(name: str, revision: str | None = None) -> str | None:
    """The commit that the model ``name`` of the Hub has at ``revision``; None for a folder. Works offline too.

    Before transformers 5.23 a loaded configuration told, by a private name. Now only the folder of the cache that the
    file lies in does, and the function that finds it is documented nowhere.
    """
    if Path(name).is_dir():
        return None
    from transformers.utils import cached_file

    file = Path(str(cached_file(name, "config.json", revision=revision))).as_posix()
    found = re.search(r"/snapshots/([0-9a-f]{40})/", file)
    return None if found is None else found[1]


def remembered_name(config: Mapping[str, Any]) -> str:
    """The name or path that config.json was saved under; public only on a loaded model, as ``name_or_path``."""
    return str(config.get("_name_or_path") or "")


def settings_of(config: Any) -> dict[str, Any]:
    """What a configuration sets, without where it was loaded from and by which version; ``to_dict`` has all three."""
    return {k: v for k, v in config.to_dict().items() if k not in ("_name_or_path", "transformers_version")}


def ignore_when_loading(model: Any, patterns: list[str]) -> None:
    """Weights of a checkpoint that ``from_pretrained`` leaves out without a warning; there is no argument for that.

    To be called before ``post_init``, which turns the patterns into what the loader reads.
    """
    model._keys_to_ignore_on_load_unexpected = patterns


def qwen3_norm(size: int, eps: float) -> nn.Module:
    """Qwen3's RMS norm, which rounds otherwise than ``torch.nn.RMSNorm``; transformers does not export it."""
    from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

    norm: nn.Module = Qwen3RMSNorm(size, eps=eps)
    return norm


def masks_by_kind(config: Any, like: Tensor, position_ids: Tensor) -> Any:
    """A mask for each kind of layer (sliding, chunked, full), as ``generate`` prepares them, which does not give them.

    like: ``[B, T, ...]`` in the model's dtype, on its device.
    """
    from transformers.masking_utils import create_masks_for_generate

    return create_masks_for_generate(config, like, None, None, position_ids)


def trackers(names: Any) -> list[Any]:
    """The callbacks that ``report_to`` stands for: only building them shows that one is missing, before training."""
    from transformers.integrations import get_reporting_integration_callbacks

    found: list[Any] = get_reporting_integration_callbacks(names)
    return found


def tensor_parallel_ranks(model: Any) -> int:
    """Over how many ranks ``tp_plan`` split the model; ``tp_size`` is undocumented, and 0 or None where it was not."""
    return getattr(model, "tp_size", None) or 1


def places_itself(model: Any) -> bool:
    """Whether a quantiser chose the model's device: ``is_quantized`` is said of some models that can still move."""
    return getattr(model, "hf_quantizer", None) is not None


def layer_index(module: nn.Module) -> int | None:
    """Which layer an attention module is, None where it is not a causal one: the registry does not pass it on."""
    found: int | None = getattr(module, "layer_idx", None)
    return found if getattr(module, "is_causal", True) else None


def key_rotation(body: nn.Module) -> Callable[[Tensor, int], Tensor] | None:
    """Keys ``[Hkv, n, d]`` as they would be so many positions later, by the model's own rotation.

    None for a model that has no such function, or several rotations. Whether the keys of every layer are rotated so is
    for the caller to try out.
    """
    rotary = getattr(body, "rotary_emb", None)
    rotate = getattr(sys.modules[type(body).__module__], "apply_rotary_pos_emb", None)
    if rotary is None or rotate is None or list(inspect.signature(rotary.forward).parameters) != ["x", "position_ids"]:
        return None

    def move(keys: Tensor, by: int) -> Tensor:
        """Angles add up, so keys that are rotated already are rotated by the difference."""
        whole = keys[None].to(torch.promote_types(keys.dtype, torch.float32))
        parts = rotary(whole, torch.full((1, 1), by, device=keys.device))
        cos, sin = (part / getattr(rotary, "attention_scaling", 1.0) for part in parts)
        _, moved = rotate(whole, whole, cos, sin)
        found: Tensor = moved[0].to(keys.dtype)
        return found

    return move


class Temperature(NamedTuple):
    """Llama 4's ``log1p(floor((place + 1) / floor)) * scale + 1``."""

    floor: float
    scale: float


def query_temperature(module: nn.Module) -> Temperature | None:
    """By what an attention module scales queries by their place; None where it does not. In no public name."""
    if not getattr(module, "attn_temperature_tuning", False) or getattr(module, "use_rope", True):
        return None
    return Temperature(float(module.floor_scale), float(module.attn_scale))  # type: ignore[arg-type]


class TrainerSeams:
    """Where ``Trainer`` lets nobody in by a public name; comes before it in the order of bases."""

    def inputs_on_device(self: Any, inputs: dict[str, Any]) -> dict[str, Any]:
        """A batch moved and cast as the trainer moves and casts it; to be extended."""
        found: dict[str, Any] = super()._prepare_inputs(inputs)  # type: ignore[misc]
        return found

    def kept_columns(self: Any) -> tuple[str, ...]:
        """Columns of the data that stay, besides those that the model's forward names; to be extended."""
        return ()

    def _prepare_inputs(self: Any, inputs: dict[str, Any]) -> dict[str, Any]:
        """DeepSpeed casts float inputs here; a batch has no public place to be prepared differently."""
        found: dict[str, Any] = self.inputs_on_device(inputs)
        return found

    def _set_signature_columns_if_needed(self: Any) -> None:
        """The public ``remove_unused_columns=False`` would keep every column, texts among them."""
        super()._set_signature_columns_if_needed()  # type: ignore[misc]
        self._signature_columns += [name for name in self.kept_columns() if name not in self._signature_columns]


def divides_by_items(trainer: Any) -> bool:
    """Whether the trainer hands the number of labels of a step to the model; read off the class's signature."""
    return bool(trainer.model_accepts_loss_kwargs)


def divide_by_items(trainer: Any) -> None:
    """As a public argument would say it: this model divides by the number of labels of a step that it is given."""
    trainer.model_accepts_loss_kwargs = True


def micro_batches(trainer: Any) -> int:
    """Of this step: the last of an epoch has fewer than ``gradient_accumulation_steps``, the public number."""
    return int(trainer.current_gradient_accumulation_steps)


@contextmanager
def without_smoother(trainer: Any) -> Iterator[None]:
    """Within it the trainer smooths no labels itself, which it does on logits. ``label_smoothing_factor`` is read once,
    when the trainer is made, and unshaped batches need it."""
    smoother, trainer.label_smoother = trainer.label_smoother, None
    try:
        yield
    finally:
        trainer.label_smoother = smoother
