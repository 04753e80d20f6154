"""Names of torchao that its documentation does not promise; it need not be installed."""

from __future__ import annotations

from torch import Tensor, nn


def is_quantised(weight: Tensor) -> bool:
    """Whether the weight is a tensor of torchao's own kinds, which share no public class: by where they stand."""
    if type(weight) in (Tensor, nn.Parameter):  # first, for torch.compile cannot go through the classes of a type
        return False
    return any(kind.__module__.partition(".")[0] == "torchao" for kind in type(weight).__mro__)


def dequantised(weight: Tensor) -> Tensor:
    """The matrix that stands for the weight; every kind has this method, and none promises it."""
    return weight.dequantize().detach()
