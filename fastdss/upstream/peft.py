"""Attributes of PEFT's layers. PEFT's public names apply adapters and switch them; what a layer multiplies by, and what
stands in it, only its attributes tell. PEFT need not be installed to ask."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn


class LowRank(NamedTuple):
    """One active adapter of a LoRA layer: ``scaling * up(down(dropout(x)))`` beside the base layer."""

    name: str
    scaling: float
    down: nn.Linear
    up: nn.Linear
    dropout: nn.Module
    kind: str  # "LoRA", "DoRA", or the class of another variant
    magnitude: Tensor | None  # [V] of DoRA
    delta: Callable[[], Tensor]  # scaling * up @ down, [V, D]
    has_bias: bool


def is_low_rank(layer: Any) -> bool:
    """Whether the layer is LoRA's, around a layer of its own."""
    return hasattr(layer, "lora_A") and hasattr(layer, "base_layer")


def is_wrapper(layer: Any) -> bool:
    """Whether an adapter of any kind stands around another layer, or beside some of its tokens."""
    return hasattr(layer, "base_layer") or hasattr(layer, "token_adapter")


def is_adapted(layer: Any) -> bool:
    """Whether PEFT stands between the layer's original weight and the one in use."""
    return is_wrapper(layer) or is_copied(layer)


def has_base(layer: Any) -> bool:
    """Whether the layer wraps another, whose parameters it may read without a call."""
    return hasattr(layer, "base_layer")


def base_of(layer: Any) -> Any:
    """The layer within, or the layer itself."""
    return getattr(layer, "base_layer", layer)


def is_copied(layer: Any) -> bool:
    """Whether PEFT trains a copy of the layer (``modules_to_save``)."""
    return hasattr(layer, "modules_to_save")


def original_of(layer: Any) -> Any:
    """The layer as it was before PEFT copied it, or trained some of its tokens; any other as it is."""
    return layer.original_module if is_copied(layer) or hasattr(layer, "token_adapter") else layer


def copies_of(layer: Any) -> list[nn.Module]:
    """The layers of which a copied ``layer`` will call exactly one."""
    return [layer.original_module, *layer.modules_to_save.values()]


def copy_in_use(layer: Any) -> Any:
    """The copy that is active, the original where none is; a layer that was not copied as it is."""
    if not is_copied(layer):
        return layer
    active = next((name for name in layer.active_adapters if name in layer.modules_to_save), None)
    return layer.original_module if active is None or layer.disable_adapters else layer.modules_to_save[active]


def is_merged(layer: Any) -> bool:
    """Whether the adapters are added into the base weight."""
    return bool(layer.merged)


def is_off(layer: Any) -> bool:
    """Whether the adapters are switched off."""
    return bool(layer.disable_adapters)


def low_rank_parts(layer: Any) -> list[LowRank]:
    """The active adapters of a LoRA layer, in order."""
    return [_part(layer, name) for name in layer.active_adapters if name in layer.lora_A]


def _part(layer: Any, name: str) -> LowRank:
    variant = layer.lora_variant.get(name)
    kind = "LoRA" if variant is None else type(variant).__name__
    dora = kind == "DoraLinearVariant"
    return LowRank(
        name,
        layer.scaling[name],
        layer.lora_A[name],
        layer.lora_B[name],
        layer.lora_dropout[name],
        "DoRA" if dora else kind,
        layer.lora_magnitude_vector[name].weight if dora else None,
        lambda: layer.get_delta_weight(name),
        layer.lora_bias.get(name, False),
    )


def adapters_in_use(model: nn.Module) -> dict[str, tuple[bool, str]]:
    """For every adapted module: whether its adapters are off, and which are active."""
    return {
        name: (bool(module.disable_adapters), str(module.active_adapters))
        for name, module in model.named_modules()
        if hasattr(module, "disable_adapters") and hasattr(module, "active_adapters")
    }


def belongs_to_adapters(model: Any, parameter: str) -> bool:
    """Whether a parameter of that name is one of the PEFT ``model``'s adapters: names of its parts are no interface."""
    prefix = getattr(model.base_model, "prefix", "lora_")
    return any(part.startswith((prefix, "modules_to_save", "trainable_tokens")) for part in parameter.split("."))


def learns_prompts(model: Any) -> bool:
    """Whether the PEFT model puts tokens of its own before the input."""
    config = getattr(model, "active_peft_config", None)
    return config is not None and bool(config.is_prompt_learning)
