"""Names of bitsandbytes that fastdss uses; the losses over its layers are in tests/train/test_quantised.py."""

import importlib.util

import pytest
import torch
from torch import nn

from fastdss.upstream.bitsandbytes import dequantised, is_layer, is_matrix, is_quantised

from .canary import gone

needs_it = pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes")


def test_a_plain_layer_is_none_of_its():
    layer = nn.Linear(2, 2)
    assert not is_layer(layer)
    assert not is_quantised(layer.weight)
    assert is_matrix(layer.weight)
    assert not is_matrix(layer.bias)


@needs_it
@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantised_layer_multiplies_by_the_dequantised_weight(bits):
    import bitsandbytes as bnb

    torch.manual_seed(0)
    plain = nn.Linear(64, 32, bias=False)
    layer = (
        bnb.nn.Linear4bit(64, 32, bias=False)
        if bits == 4
        else bnb.nn.Linear8bitLt(64, 32, bias=False, has_fp16_weights=False)
    )
    layer.load_state_dict(plain.state_dict())
    layer = layer.to("cpu")
    rows = torch.randn(3, 64)
    made = layer(rows)
    assert is_layer(layer)
    assert is_quantised(layer.weight), gone("bitsandbytes", type(layer.weight).__name__, "is the class of its weights")
    assert is_matrix(layer.weight)
    found = dequantised(layer)
    assert found.shape == (32, 64)
    assert (rows @ found.T - made).norm() < 0.02 * made.norm(), gone(
        "peft", "dequantize_module_weight", "gives the weight"
    )
