"""Names of DeepSpeed that fastdss uses; what ZeRO-3 does with them on two ranks is in tests/train/test_zero3.py."""

import importlib.util
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fastdss.upstream.deepspeed import is_empty_share, is_engine, is_engines, is_split, local_share

from .canary import gone

deepspeed_is_here = importlib.util.find_spec("deepspeed") is not None


def test_nothing_is_split_without_deepspeed():
    layer = nn.Linear(2, 2)
    told = [is_split(layer.weight), is_empty_share(layer.weight), is_engines(layer), is_engine(layer)]
    assert told == [False] * 4


def test_a_share_that_is_swapped_out_is_none():
    weight = nn.Parameter(torch.zeros(0))
    weight.ds_id, weight.ds_tensor = 0, torch.ones(3)
    assert is_split(weight)
    assert is_empty_share(weight)
    assert torch.equal(local_share(weight), torch.ones(3))
    weight.ds_tensor.status = SimpleNamespace(name="NOT_AVAILABLE")
    assert local_share(weight) is None


@pytest.mark.skipif(not deepspeed_is_here, reason="needs DeepSpeed (DS_BUILD_OPS=0 pip install deepspeed)")
def test_the_names_are_deepspeeds():
    from deepspeed.runtime.engine import DeepSpeedEngine
    from deepspeed.runtime.swap_tensor.partitioned_param_swapper import PartitionedParamStatus
    from deepspeed.runtime.zero import partition_parameters

    assert DeepSpeedEngine.__name__ == "DeepSpeedEngine"
    assert hasattr(PartitionedParamStatus, "NOT_AVAILABLE"), gone("deepspeed", "NOT_AVAILABLE", "is of swapped shares")
    source = partition_parameters.__loader__.get_source(partition_parameters.__name__)
    for name in ("ds_id", "ds_tensor"):
        assert f"param.{name} = " in source, gone("deepspeed", name, "is set on what ZeRO-3 took over")
