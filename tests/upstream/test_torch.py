"""Private names of torch that fastdss uses, each asked for what it must do."""

import os
import tempfile
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastdss.upstream.torch import (
    graph_is_kept,
    group_named,
    has_amx,
    has_forward_hooks,
    has_fsdp1,
    is_compiled,
    is_fsdp1,
    multiplies_bf16,
    plain_parts,
    prepacked,
    prepacked_linear,
    transforms_active,
    version,
    within_compiled,
)

from .canary import gone


def test_what_the_cpu_multiplies():
    names = [
        (torch.ops.mkldnn, "_is_mkldnn_bf16_supported"),
        (torch.cpu, "_is_amx_tile_supported"),
        (torch.cpu, "_is_avx512_bf16_supported"),
    ]
    for holder, name in names:
        found = getattr(holder, name, None)
        assert callable(found), gone("torch", name, "is a function")
        assert isinstance(found(), bool), gone("torch", name, "says whether the CPU can")
    assert has_amx() is torch.cpu._is_amx_tile_supported()
    if has_amx() and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        assert multiplies_bf16() is True


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="only Linux lists what the CPU can")
def test_a_cpu_that_lists_no_such_instructions():
    flags = set(Path("/proc/cpuinfo").read_text().split())
    listed = bool({"amx_bf16", "avx512_bf16"} & flags)
    assert listed or not multiplies_bf16(), gone("torch", "_is_avx512_bf16_supported", "agrees with /proc/cpuinfo")


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this build of torch has no oneDNN")
@pytest.mark.parametrize("with_bias", [True, False])
def test_prepacked_weights_multiply_as_linear_does(with_bias):
    torch.manual_seed(0)
    rows, weight = torch.randn(7, 24), torch.randn(17, 24)
    bias = torch.randn(17) if with_bias else None
    found = prepacked_linear(rows, prepacked(weight, 7), bias)
    off = (found - F.linear(rows, weight, bias)).abs().max()
    assert off < 1e-5, gone("torch", "mkldnn._linear_pointwise", f"differs from linear by {off:.2g}")


def test_a_write_raises_the_version():
    tensor = torch.zeros(3)
    before = version(tensor)
    tensor.add_(1)
    assert before is not None
    assert version(tensor) == before + 1, gone("torch", "Tensor._version", "counts writes")
    with torch.inference_mode():
        assert version(torch.zeros(3)) is None


def test_transforms_and_forward_mode_are_seen():
    seen = []

    def watched(x):
        seen.append(transforms_active())
        return x.sum()

    x = torch.ones(3)
    watched(x.requires_grad_()).backward()
    torch.func.grad(watched)(x)
    torch.func.vmap(watched)(x[None])
    torch.func.jvp(watched, (x,), (x,))
    with torch.autograd.forward_ad.dual_level():
        watched(x)
    assert seen == [False, True, True, True, True], gone(
        "torch", "_are_functorch_transforms_active", "tells transforms"
    )
    assert not transforms_active()


def test_a_backward_says_whether_its_graph_is_kept():
    seen = []

    class Watched(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            seen.append(graph_is_kept())
            return grad

    loss = Watched.apply(torch.ones((), requires_grad=True))
    loss.backward(retain_graph=True)
    loss.backward()
    assert seen == [True, False], gone("torch", "_get_current_graph_task_keep_graph", "tells retain_graph")


def test_a_group_is_found_by_its_name():
    left = torch.distributed.is_initialized()  # by another test, and then that one will do
    with tempfile.TemporaryDirectory() as folder:
        if not left:
            store = torch.distributed.FileStore(os.path.join(folder, "store"), 1)
            torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
        try:
            world = torch.distributed.group.WORLD
            assert world is not None
            assert group_named(world.group_name) is world, gone("torch", "_resolve_process_group", "finds a group")
        finally:
            if not left:
                torch.distributed.destroy_process_group()


def test_the_parts_of_a_wrapper_are_plain_tensors():
    from torch.testing._internal.two_tensor import TwoTensor

    one, other = torch.ones(2), torch.zeros(2)
    assert plain_parts(one) == [one]
    nested = TwoTensor(TwoTensor(one, other), TwoTensor(other, one))
    parts = plain_parts(nested)
    assert [part.tolist() for part in parts] == [[1, 1], [0, 0], [0, 0], [1, 1]], gone(
        "torch", "__tensor_flatten__", "names the parts of a wrapper"
    )
    assert {type(part) for part in parts} == {torch.Tensor}


def test_hooks_are_seen():
    layer = nn.Linear(2, 2)
    assert has_forward_hooks(layer) is False
    hook = layer.register_forward_hook(lambda *_: None)
    assert has_forward_hooks(layer) is True, gone("torch", "Module._forward_hooks", "holds registered hooks")
    hook.remove()
    assert has_forward_hooks(layer) is False


def test_the_first_version_of_fsdp_is_told_by_its_name():
    from torch.distributed.fsdp import FullyShardedDataParallel

    wrapped = FullyShardedDataParallel.__new__(FullyShardedDataParallel)  # made whole, it would need a process group
    nn.Module.__init__(wrapped)
    around = nn.Sequential(nn.Linear(2, 2))
    assert (is_fsdp1(around), has_fsdp1(around)) == (False, False)
    around[0] = wrapped
    assert is_fsdp1(wrapped), gone("torch", "FullyShardedDataParallel", "is the name of FSDP's first version")
    assert has_fsdp1(around) is True


def test_the_module_within_a_compiled_one():
    layer = nn.Linear(2, 2)
    compiled = torch.compile(layer, backend="eager")
    assert not is_compiled(layer)
    assert is_compiled(compiled), gone("torch", "_orig_mod", "tells what torch.compile wrapped")
    assert within_compiled(compiled) is layer
