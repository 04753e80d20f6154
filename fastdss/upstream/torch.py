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
    """A linear layer's fp32 weight in oneDNN's own order, for about ``rows`` rows at a time.

    The public ``torch.utils.mkldnn.to_mkldnn`` turns whole modules, and their inputs must be MKL-DNN tensors too.
    """
    found: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), rows)
    return found


def prepacked_linear(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``nn.functional.linear(rows, weight, bias)`` with a ``prepacked`` weight, which the public one does not take."""
    found: Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
    return found


def version(tensor: Tensor) -> int | None:
    """How often ``tensor`` was written to; None for tensors made in inference mode, which do not count.

    No public name tells, and comparing values would cost a copy of them.
    """
    return None if tensor.is_inference() else tensor._version


def group_named(name: str) -> torch.distributed.ProcessGroup:
    """The process group of that name: an op of ``torch.library`` takes no group, and no public name finds one again."""
    return torch.distributed.distributed_c10d._resolve_process_group(name)  # type: ignore[arg-type]


def has_forward_hooks(module: nn.Module) -> bool:
    """Whether somebody hooked the module's call; hooks are registered in public, and listed nowhere."""
    return bool(module._forward_hooks)


def is_compiled(module: Any) -> bool:
    """Whether ``torch.compile`` wrapped the module: the class it makes has no public name."""
    return "_orig_mod" in getattr(module, "_modules", {})


def within_compiled(module: Any) -> Any:
    """The module that ``torch.compile`` wrapped, which has no public name."""
    return module._orig_mod
