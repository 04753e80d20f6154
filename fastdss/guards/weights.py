"""A fingerprint of a model's weights, which is cheap to take and tells two fine-tunes of one model apart."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor

from fastdss.upstream.accelerate import loaded_weight
from fastdss.upstream.peft import adapters_in_use
from fastdss.upstream.torch import is_compiled, plain_parts, within_compiled

# A choice: training changes most elements of what it trains; rounded to 16 bit, a short run may change few.
_SAMPLED = 256
_SPREAD = 2654435761  # a prime, whose multiples modulo a tensor's size lie all over it (Knuth)
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@torch.no_grad()
def weights_digest(model: Any) -> str:
    """SHA-256 over the bits of some elements of every weight, at places that only its size decides, and over which
    adapters are in use. It is the same on every device, for quantised weights too, and another for another dtype."""
    model = within_compiled(model) if is_compiled(model) else model
    digest = hashlib.sha256(repr(sorted(adapters_in_use(model).items())).encode())
    for name, tensor in sorted(model.state_dict().items()):
        if isinstance(tensor, Tensor):
            for part in plain_parts(loaded_weight(model, name) if tensor.is_meta else tensor):
                digest.update(f"{name} {part.dtype} {tuple(part.shape)}".encode())
                digest.update(_some_bits(part).cpu().numpy().tobytes())
    return digest.hexdigest()


def _some_bits(tensor: Tensor) -> Tensor:
    """``[n]``, at most ``_SAMPLED`` elements as integers; nothing of the others is copied."""
    bits, size = tensor.detach().view(_BITS[tensor.element_size()]), tensor.numel()
    if size <= _SAMPLED:
        return bits.reshape(-1)
    places = torch.arange(_SAMPLED) * _SPREAD % size
    return bits[torch.unravel_index(places, bits.shape)]
