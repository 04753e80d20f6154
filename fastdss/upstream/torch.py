"""Private names of torch."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn


@cache
def multiplies_bf16() -> bool:
    """Whether this CPU has instructions for products of bf16, AMX or AVX512-BF16.

    ``torch.cpu.get_capabilities`` names instruction sets, but not whether oneDNN was built to use them.
    """
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()) and (
        torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    )


@cache
def has_amx() -> bool:
    """Whether this CPU multiplies tiles (AMX); see ``multiplies_bf16``."""
    return bool(torch.cpu._is_amx_tile_supported())


def prepacked(weight: Tensor, rows: int) -> Tensor:
    """A linear layer's fp32 weight in oneDNN's own order, chosen for inputs of about ``rows`` rows.

    The public ``torch.utils.mkldnn.to_mkldnn`` converts whole modules, whose inputs must then be MKL-DNN tensors too.
    """
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), rows)
    return packed


def prepacked_linear(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``nn.functional.linear(rows, weight, bias)`` with a ``prepacked`` weight, which the public function refuses."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
    return product


def version(tensor: Tensor) -> int | None:
    """How often ``tensor`` was written to; None for a tensor made in inference mode, which torch does not count.

    No public name says so, and comparing values would cost a copy of them.
    """
    return None if tensor.is_inference() else tensor._version


def transforms_active() -> bool:
    """Whether a transform of ``torch.func`` (grad, vmap, jvp) or forward mode is running. No public name says so."""
    return bool(torch._C._are_functorch_transforms_active()) or torch.autograd.forward_ad._current_level >= 0


def graph_is_kept() -> bool:
    """Within a backward: whether it was called with ``retain_graph=True``. No public name says so."""
    return bool(torch._C._autograd._get_current_graph_task_keep_graph())


def group_named(name: str) -> torch.distributed.ProcessGroup:
    """The process group of that name. An op of ``torch.library`` cannot take a group as its argument, so it takes the
    name, and no public function finds the group by it."""
    return torch.distributed.distributed_c10d._resolve_process_group(name)  # type: ignore[arg-type]


def has_forward_hooks(module: nn.Module) -> bool:
    """Whether the module has forward hooks. Registering one is public; there is no public way to list them."""
    return bool(module._forward_hooks)


def is_compiled(module: Any) -> bool:
    """Whether the module is ``torch.compile``'s wrapper, whose class has no public name."""
    return "_orig_mod" in getattr(module, "_modules", {})


def within_compiled(module: Any) -> Any:
    """The module inside ``torch.compile``'s wrapper, which has no public name for it."""
    return module._orig_mod


def plain_parts(tensor: Tensor) -> list[Tensor]:
    """The ordinary tensors that a tensor is made of: itself, or the parts of a wrapper subclass (torchao's quantised
    weights), which only the protocol of such classes names. One that is split over ranks is gathered."""
    if hasattr(tensor, "full_tensor"):
        tensor = tensor.full_tensor()
    if not hasattr(tensor, "__tensor_flatten__"):
        return [tensor]
    names, _ = tensor.__tensor_flatten__()
    return [part for name in names for part in plain_parts(getattr(tensor, name))]


def has_fsdp1(model: nn.Module) -> bool:
    """Whether FSDP's first version wraps the model or a part of it."""
    return any(map(is_fsdp1, model.modules()))


def is_fsdp1(module: Any) -> bool:
    """Whether this is FSDP's first version, told by the name of its class: importing that takes a second."""
    return any(cls.__name__ == "FullyShardedDataParallel" for cls in type(module).__mro__)
