"""Names of accelerate that fastdss uses and its documentation does not promise, each asked for what it must do."""

from types import SimpleNamespace

import accelerate
import pytest
import torch
from accelerate.utils import DataLoaderConfiguration, FullyShardedDataParallelPlugin, ParallelismConfig
from torch import nn

from fastdss.upstream.accelerate import (
    cast_nothing,
    flattens_weights,
    fsdp_plugin,
    is_dispatched,
    loaded_weight,
    never_dispatch,
    real_forward,
    rebind_forward,
    repeated_rows,
    share_of_rows,
    splits_batches,
    splits_weights,
    ungathered,
)

from .canary import gone


def changed(name: str, means: str) -> str:
    return gone("accelerate", name, means)


class Double(nn.Linear):
    def forward(self, rows):
        return 2 * super().forward(rows)


def test_a_dispatched_module_keeps_its_own_forward():
    layer, rows = nn.Linear(2, 2), torch.ones(1, 2)
    assert (real_forward(layer), is_dispatched(layer)) == ("forward", False)
    accelerate.dispatch_model(layer, {"": "cpu"}, main_device="cpu", force_hooks=True)
    assert is_dispatched(layer), changed("_old_forward", "is set on dispatched modules")
    assert real_forward(layer) == "_old_forward"
    plain = layer(rows)
    layer.__class__ = Double
    rebind_forward(layer)
    assert torch.equal(layer(rows), 2 * plain), changed("_old_forward", "is what the hooks call")


def test_metrics_are_not_gathered_for_a_while():
    accelerator, gathered = accelerate.Accelerator(cpu=True), []
    original = type(accelerator).gather_for_metrics
    value = torch.ones(1)
    with ungathered(accelerator):
        assert accelerator.gather_for_metrics(value) is value
    assert accelerator.gather_for_metrics.__func__ is original, changed(
        "gather_for_metrics", "is a method of the class"
    )
    assert gathered == []
    from trl import SFTTrainer

    assert "gather_for_metrics" in SFTTrainer.compute_loss.__code__.co_names, gone(
        "trl", "SFTTrainer.compute_loss", "gathers its metrics by the accelerator"
    )


@pytest.mark.parametrize(("asked", "allowed"), [(None, True), (False, True), (True, False)])
def test_batches_are_never_dispatched(asked, allowed):
    accelerator = accelerate.Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(dispatch_batches=asked))
    assert never_dispatch(accelerator) is allowed
    assert accelerator.dispatch_batches == (not allowed), changed("dataloader_config", "decides who reads batches")


def test_which_rows_fill_the_last_batch():
    """Five rows in batches of two on two ranks: one is left for the last two batches."""
    accelerator = accelerate.Accelerator(cpu=True)
    loader = accelerator.prepare(torch.utils.data.DataLoader(torch.arange(5), batch_size=4))
    state, seen = accelerator.gradient_state, []
    for _ in loader:
        seen.append((state.end_of_dataloader, state.remainder))
    assert seen == [(False, 1), (True, 1)], changed("GradientState", f"knows the last batch and its rows, got {seen}")
    ended = SimpleNamespace(end_of_dataloader=True, remainder=1)
    for rank, repeated, share in ((0, 1, 0.5), (1, 2, 0.5)):  # half a row on average, for one row and for none
        told = SimpleNamespace(gradient_state=ended, num_processes=2, process_index=rank)
        assert (repeated_rows(told, 2), share_of_rows(told, 2)) == (repeated, share)
        told.gradient_state = SimpleNamespace(end_of_dataloader=False, remainder=1)
        assert (repeated_rows(told, 2), share_of_rows(told, 2)) == (0, 1)
        told.gradient_state = SimpleNamespace(end_of_dataloader=True, remainder=-1)  # of a stream
        assert (repeated_rows(told, 2), share_of_rows(told, 2)) == (0, 1)
    assert (repeated_rows(accelerator, 1), share_of_rows(accelerator, 1)) == (0, 1)


def test_the_plugin_of_fsdp_rounds_nothing(monkeypatch):
    for name, value in (("MASTER_ADDR", "localhost"), ("MASTER_PORT", "0"), ("FSDP_VERSION", "2")):
        monkeypatch.setenv(name, value)
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, mixed_precision_policy="bf16")
    holder = SimpleNamespace(state=SimpleNamespace(fsdp_plugin=plugin))
    assert fsdp_plugin(holder) is plugin
    assert (splits_weights(holder), flattens_weights(holder)) == (True, False)
    cast_nothing(holder)
    policy = plugin.mixed_precision_policy
    means = f"is torch's MixedPrecisionPolicy, got {policy}"
    assert (policy.cast_forward_inputs, policy.output_dtype) == (False, None), changed("mixed_precision_policy", means)
    assert policy.param_dtype is torch.bfloat16


def test_the_plugin_of_fsdps_first_version_rounds_nothing(monkeypatch):
    for name, value in (("MASTER_ADDR", "localhost"), ("MASTER_PORT", "0"), ("FSDP_VERSION", "1")):
        monkeypatch.setenv(name, value)
    plugin = FullyShardedDataParallelPlugin(fsdp_version=1, mixed_precision_policy="bf16")
    holder = SimpleNamespace(state=SimpleNamespace(fsdp_plugin=plugin))
    assert flattens_weights(holder) is True, changed("fsdp_version", "is 1 for FullyShardedDataParallel")
    cast_nothing(holder)
    policy = plugin.mixed_precision_policy
    means = f"is torch's MixedPrecision, got {policy}"
    assert policy.cast_root_forward_inputs is False, changed("mixed_precision_policy", means)
    assert policy.param_dtype is torch.bfloat16


def test_nothing_is_split_without_a_plugin():
    accelerator = accelerate.Accelerator(cpu=True)
    assert fsdp_plugin(accelerator) is None
    assert flattens_weights(accelerator) is False
    assert splits_weights(accelerator) is False
    assert splits_batches(accelerator) is False
    zero = SimpleNamespace(state=SimpleNamespace(deepspeed_plugin=SimpleNamespace(zero_stage=3)))
    assert splits_weights(zero) is True


def test_what_splits_a_row():
    names = ("cp_enabled", "sp_enabled", "tp_enabled")
    plain = ParallelismConfig()
    for name in names:
        assert getattr(plain, name, None) is False, changed(f"ParallelismConfig.{name}", "is False by itself")
        told = SimpleNamespace(**(dict.fromkeys(names, False) | {name: True}))
        assert splits_batches(SimpleNamespace(parallelism_config=told)) is True
    assert splits_batches(SimpleNamespace(parallelism_config=plain)) is False
    assert "parallelism_config" in accelerate.Accelerator.__init__.__code__.co_varnames, changed(
        "Accelerator.parallelism_config", "says how models and batches are split"
    )


@pytest.mark.parametrize("where", ["cpu", "disk"])
def test_a_weight_that_was_put_elsewhere_is_read(tmp_path, where):
    model = nn.Sequential(nn.Linear(3, 2))
    weight = model[0].weight.detach().clone()
    away = accelerate.disk_offload if where == "disk" else accelerate.cpu_offload
    away(model, **({"offload_dir": str(tmp_path)} if where == "disk" else {}), execution_device=torch.device("cpu"))
    assert model[0].weight.is_meta
    found = loaded_weight(model, "0.weight")
    assert torch.equal(found, weight), changed("align_module_device", "loads a module's weights")
    assert model[0].weight.is_meta
