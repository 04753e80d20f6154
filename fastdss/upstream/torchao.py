"""Names of torchao that its documentation does not promise; it need not be installed."""

from __future__ import annotations

from torch import Tensor, nn


def is_quantised(weight: Tensor) -> bool:
    """Whether the weight is one of torchao's tensors. They share no public class, so their classes' module decides."""
    if type(weight) in (Tensor, nn.Parameter):  # asked first: torch.compile cannot trace a loop over __mro__
        return False
    return any(kind.__module__.partition(".")[0] == "torchao" for kind in type(weight).__mro__)


def dequantised(weight: Tensor) -> Tensor:
    """The matrix that the weight represents; all of torchao's tensors have this method, but none documents it."""
    return weight.dequantize().detach()
