"""Attributes of PEFT's layers. PEFT's public names apply adapters and switch them on and off; what a layer multiplies
by, and which layer it wraps, only undocumented attributes say. PEFT need not be installed to ask."""

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
    """Whether the layer is a LoRA layer around another one; AdaLoRA's, which keeps parameters, no layers, is none."""
    return hasattr(layer, "base_layer") and isinstance(getattr(layer, "lora_A", None), nn.ModuleDict)


def drops(module: Any) -> bool:
    """Whether the module leaves something out at random as it is now. Not all that does is a ``torch.nn.Dropout``: OFT
    and BOFT have classes of their own, LoHa and LoKr keep shares by the adapter's name."""
    shares = [getattr(module, "p", 0.0)] if type(module).__name__.endswith(("Dropout", "DropoutLayer")) else []
    for kept in (getattr(module, "rank_dropout", None), getattr(module, "module_dropout", None)):
        shares += kept.values() if isinstance(kept, dict) else []
    return bool(module.training) and any(shares)


def is_wrapper(layer: Any) -> bool:
    """Whether the layer is an adapter of any kind around another layer, or trains rows of some tokens beside it."""
    return hasattr(layer, "base_layer") or hasattr(layer, "token_adapter")


def is_adapted(layer: Any) -> bool:
    """Whether PEFT may use another weight than the layer's original one."""
    return is_wrapper(layer) or is_copied(layer)


def has_base(layer: Any) -> bool:
    """Whether the layer wraps another, whose parameters it may read without calling it."""
    return hasattr(layer, "base_layer")


def base_of(layer: Any) -> Any:
    """The wrapped layer, or the layer itself where it wraps none."""
    return getattr(layer, "base_layer", layer)


def is_copied(layer: Any) -> bool:
    """Whether PEFT trains a copy of the layer (``modules_to_save``)."""
    return hasattr(layer, "modules_to_save")


def original_of(layer: Any) -> Any:
    """The layer before PEFT copied it or trained some of its tokens; a layer with which PEFT did neither, itself."""
    return layer.original_module if is_copied(layer) or hasattr(layer, "token_adapter") else layer


def copies_of(layer: Any) -> list[nn.Module]:
    """The original and the copies of a layer of ``modules_to_save``; its forward calls exactly one of them."""
    return [layer.original_module, *layer.modules_to_save.values()]


def copy_in_use(layer: Any) -> Any:
    """The active copy, or the original where no copy is active; a layer that was not copied, itself."""
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


def adapters_in_use(model: nn.Module) -> dict[str, tuple[bool, str, str]]:
    """For every adapted module: whether its adapters are off, which are active, and their factors, which stand in no
    weight."""
    return {
        name: (bool(module.disable_adapters), str(module.active_adapters), _factors(module))
        for name, module in model.named_modules()
        if hasattr(module, "disable_adapters") and hasattr(module, "active_adapters")
    }


def _factors(layer: Any) -> str:
    factors = getattr(layer, "scaling", None)
    return str({name: factors[name] for name in layer.active_adapters if name in factors}) if factors else ""


def has_learnt(model: nn.Module) -> bool:
    """Whether an active LoRA adapter's product is not zero, as it is when the adapter was just made by default."""
    layers: list[Any] = [module for module in model.modules() if has_base(module) and hasattr(module, "lora_A")]
    return any(_product_is_something(layer, name) for layer in layers for name in layer.active_adapters)


def _product_is_something(layer: Any, name: str) -> bool:
    if name in layer.lora_A:
        parts = [layer.lora_A[name], layer.lora_B[name]]
        halves = [getattr(part, "weight", part) for part in parts]  # AdaLoRA's are parameters
    elif name in getattr(layer, "lora_embedding_A", {}):
        halves = [layer.lora_embedding_A[name], layer.lora_embedding_B[name]]
    else:
        return False
    return all(bool(half.any()) for half in halves)


def belongs_to_adapters(model: Any, parameter: str) -> bool:
    """Whether the parameter of that name belongs to an adapter of the PEFT ``model``, told by PEFT's own naming."""
    prefix = getattr(model.base_model, "prefix", "lora_")
    return any(part.startswith((prefix, "modules_to_save", "trainable_tokens")) for part in parameter.split("."))


def learns_prompts(model: Any) -> bool:
    """Whether the PEFT model puts tokens of its own before the input."""
    config = getattr(model, "active_peft_config", None)
    return config is not None and bool(config.is_prompt_learning)
