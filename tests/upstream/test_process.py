"""A setting of the process holds while any thread needs it, and is then what it was."""

import sys

import pytest
import torch

from fastdss.upstream.process import ProcessSetting

from .canary import gone


def test_the_settings_can_be_read_and_written_as_they_are_used():
    """PyTorch promises neither name of its setting; Python documents both of its."""
    settings = torch.backends.mkldnn.matmul
    before = settings.fp32_precision
    settings.fp32_precision = "bf16"
    assert settings.fp32_precision == "bf16", gone("torch", "mkldnn.matmul.fp32_precision", "bf16 products")
    settings.fp32_precision = before
    assert settings.fp32_precision == before
    assert sys.getswitchinterval() > 0


def test_the_last_to_leave_restores_what_was_before_the_first():
    value = {"now": 7}
    setting = ProcessSetting(lambda: value["now"], lambda new: value.update(now=new), lambda before: min(before, 3))
    with setting:
        assert value["now"] == 3
        with setting:  # as another thread would
            assert value["now"] == 3
        assert value["now"] == 3
    assert value["now"] == 7
    value["now"] = 2
    with pytest.raises(KeyError), setting:
        raise KeyError
    assert value["now"] == 2
