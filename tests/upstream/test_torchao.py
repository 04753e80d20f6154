"""Names of torchao that fastdss uses; the loss over its head is in tests/train/test_torchao.py."""

import importlib.util

import pytest
import torch
from torch import nn

from fastdss.upstream.torchao import dequantised, is_quantised

from .canary import gone

needs_it = pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="needs torchao")


def test_a_plain_weight_is_none_of_its():
    assert not is_quantised(nn.Linear(2, 2).weight)


@needs_it
@pytest.mark.parametrize("kind", ["Int8WeightOnlyConfig", "Int8DynamicActivationInt8WeightConfig"])
def test_a_quantised_weight_is_known_and_stands_for_a_matrix(kind):
    from torchao import quantization

    layer = nn.Linear(32, 16, bias=False)
    plain = layer.weight.detach().clone()
    quantization.quantize_(layer, getattr(quantization, kind)())
    assert is_quantised(layer.weight), gone("torchao", "module of its tensors", "where a weight's class stands")
    found = dequantised(layer.weight)
    assert type(found) is torch.Tensor, gone("torchao", "dequantize", "the plain matrix")
    assert 0 < (found - plain).abs().max() <= plain.abs().max() / 127
