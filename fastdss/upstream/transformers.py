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

# Inputs and outputs that hold a cache of keys and values. From 5.24 on transformers calls each of them "cache", and
# takes the older names with a warning.
CACHES = ("past_key_values", "cache_params", "cache")


def attention_of(config: Any) -> str:
    """The attention implementation in use. ``set_attn_implementation`` sets it; no public name reads it."""
    return str(config._attn_implementation)


def attentions_of(config: Any) -> Any:
    """The same of all parts of a model, as ``set_attn_implementation`` takes it: a name, or a mapping of parts.

    One name would be set on every part, also on those that run another one, or do not know it.
    """
    parts = {part: getattr(config, part, None) for part in config.sub_configs}
    chosen = {k: part for k, part in parts.items() if getattr(part, "_attn_implementation", None) is not None}
    names = {k: attentions_of(part) for k, part in chosen.items()}
    return {"": attention_of(config), **names} if names else attention_of(config)


def commit_of(name: str, revision: str | None = None) -> str | None:
    """The commit of the Hub's model ``name`` at ``revision``; None for a folder. It works offline too.

    Before transformers 5.23 a loaded configuration held it under a private name. Now only the path of the cached file
    holds it, and the function that finds that file is documented nowhere.
    """
    if Path(name).is_dir():
        return None
    from transformers.utils import cached_file

    file = Path(str(cached_file(name, "config.json", revision=revision))).as_posix()
    commit = re.search(r"/snapshots/([0-9a-f]{40})/", file)
    return None if commit is None else commit[1]


def remembered_name(config: Mapping[str, Any]) -> str:
    """The name or path that a config.json records of its model; public only on a loaded model, as ``name_or_path``."""
    return str(config.get("_name_or_path") or "")


def settings_of(config: Any) -> dict[str, Any]:
    """A configuration's settings, without the path it was loaded from and the version that saved it.

    ``to_dict`` includes both, and they would make equal configurations differ.
    """
    return {k: v for k, v in config.to_dict().items() if k not in ("_name_or_path", "transformers_version")}


def ignore_when_loading(model: Any, patterns: list[str]) -> None:
    """Let ``from_pretrained`` leave out a checkpoint's weights of these names without a warning: no argument does.

    Call it before ``post_init``, which compiles the patterns for the loader.
    """
    model._keys_to_ignore_on_load_unexpected = patterns


def qwen3_norm(size: int, eps: float) -> nn.Module:
    """Qwen3's RMS norm, which transformers does not export. ``torch.nn.RMSNorm`` rounds at another place."""
    from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

    norm: nn.Module = Qwen3RMSNorm(size, eps=eps)
    return norm


def masks_by_kind(config: Any, like: Tensor, position_ids: Tensor) -> Any:
    """A mask for each kind of layer (sliding, chunked, full). ``generate`` prepares them, but does not return them.

    like: ``[B, T, ...]`` in the model's dtype, on its device.
    """
    from transformers.masking_utils import create_masks_for_generate

    return create_masks_for_generate(config, like, None, None, position_ids)


def trackers(names: Any) -> list[Any]:
    """The callback classes that ``report_to`` names. Making one shows, before training, whether it is installed."""
    from transformers.integrations import get_reporting_integration_callbacks

    callbacks: list[Any] = get_reporting_integration_callbacks(names)
    return callbacks


def tensor_parallel_ranks(model: Any) -> int:
    """Over how many ranks ``tp_plan`` split the model. ``tp_size`` is undocumented; it is 0 or None without a split."""
    return getattr(model, "tp_size", None) or 1


def places_itself(model: Any) -> bool:
    """Whether a quantiser chose the model's device; ``is_quantized`` is also True of some models that can move."""
    return getattr(model, "hf_quantizer", None) is not None


def layer_index(module: nn.Module) -> int | None:
    """The number of an attention module's layer, None for one that is not causal: functions of the attention registry
    get the module, but not its number."""
    number: int | None = getattr(module, "layer_idx", None)
    return number if getattr(module, "is_causal", True) else None


def key_rotation(body: nn.Module) -> Callable[[Tensor, Tensor], Tensor] | None:
    """Keys or queries ``[H, n, d]`` as they would be so many positions later ``[n]``, by the model's own rotation.

    None for a model that has no such function, or several rotations. Whether the keys of every layer are rotated so is
    for the caller to try out.
    """
    rotary = getattr(body, "rotary_emb", None)
    rotate = getattr(sys.modules[type(body).__module__], "apply_rotary_pos_emb", None)
    if rotary is None or rotate is None or list(inspect.signature(rotary.forward).parameters) != ["x", "position_ids"]:
        return None
    rules = getattr(getattr(body, "config", None), "rope_parameters", None) or {}
    share = rules.get("partial_rotary_factor", 1.0)  # of a head's numbers; Phi cuts them off before it rotates

    def move(rows: Tensor, by: Tensor) -> Tensor:
        """Angles add up, so rows that are rotated already are rotated by the difference."""
        turned, rest = rows[None].tensor_split([int(share * rows.shape[-1])], -1)
        exact = turned.to(torch.promote_types(rows.dtype, torch.float32))
        parts = rotary(exact, by[None])
        cos, sin = (part / getattr(rotary, "attention_scaling", 1.0) for part in parts)
        _, moved = rotate(exact, exact, cos, sin)
        return torch.cat([moved.to(rows.dtype), rest], -1)[0]

    return move


class Temperature(NamedTuple):
    """Llama 4 multiplies the query at ``position`` by ``log1p(floor((position + 1) / floor)) * scale + 1``."""

    floor: float
    scale: float


def query_temperature(module: nn.Module) -> Temperature | None:
    """How an attention module scales queries by their position, None where it does not; no public name says so."""
    if not getattr(module, "attn_temperature_tuning", False) or getattr(module, "use_rope", True):
        return None
    return Temperature(float(module.floor_scale), float(module.attn_scale))  # type: ignore[arg-type]


class TrainerSeams:
    """Names for private methods of ``Trainer``, for subclasses to extend; comes before ``Trainer`` among the bases."""

    def inputs_on_device(self: Any, inputs: dict[str, Any]) -> dict[str, Any]:
        """A batch, moved and cast as the trainer does it. Subclasses extend it."""
        prepared: dict[str, Any] = super()._prepare_inputs(inputs)  # type: ignore[misc]
        return prepared

    def kept_columns(self: Any) -> tuple[str, ...]:
        """Columns of the data that are kept besides those that the model's forward names. Subclasses extend it."""
        return ()

    def _prepare_inputs(self: Any, inputs: dict[str, Any]) -> dict[str, Any]:
        """Trainer calls this for every batch, and has no public method to prepare one; DeepSpeed casts floats here."""
        prepared: dict[str, Any] = self.inputs_on_device(inputs)
        return prepared

    def _set_signature_columns_if_needed(self: Any) -> None:
        """Keep ``kept_columns``; the public ``remove_unused_columns=False`` would keep every column, texts included."""
        super()._set_signature_columns_if_needed()  # type: ignore[misc]
        self._signature_columns += [name for name in self.kept_columns() if name not in self._signature_columns]


def divides_by_items(trainer: Any) -> bool:
    """Whether the trainer passes ``num_items_in_batch`` to the model; it decides so by the forward's signature."""
    return bool(trainer.model_accepts_loss_kwargs)


def divide_by_items(trainer: Any) -> None:
    """Tell the trainer that the model divides by the ``num_items_in_batch`` it is given; no argument says so."""
    trainer.model_accepts_loss_kwargs = True


def count_shifted_labels(trainer: Any) -> None:
    """Tell the trainer that the first label of a row is no item, since no token predicts it.

    The trainer decides so by the class's own loss, and counts that label for classes without one of its own (GPT-2).
    """
    trainer._loss_shifts_labels = True


def micro_batches(trainer: Any) -> int:
    """How many micro-batches the present step has. The last step of an epoch may have fewer than the public
    ``gradient_accumulation_steps``."""
    return int(trainer.current_gradient_accumulation_steps)


@contextmanager
def without_smoother(trainer: Any) -> Iterator[None]:
    """Within the context the trainer does not smooth labels itself, for which it needs logits.

    ``label_smoothing_factor`` cannot be changed instead: the trainer reads it once, when it is made, and unshaped
    batches need what it made of it.
    """
    smoother, trainer.label_smoother = trainer.label_smoother, None
    try:
        yield
    finally:
        trainer.label_smoother = smoother
