"""A fingerprint of weights is the same wherever they lie, and another where a forward would be another."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fastdss.guards.weights import weights_digest
from tests.support.builders import make_model

Change = Callable[[Any], Any]


def plain() -> Any:
    return make_model("llama", 400)


def tuned(model: Any) -> Any:
    """As a short fine-tune would: few elements of one matrix, by little."""
    with torch.no_grad():
        weight = model.model.layers[1].mlp.up_proj.weight
        chosen = torch.rand(weight.shape, generator=torch.Generator().manual_seed(0)) < 0.05
        weight.add_(1e-3 * chosen)
    return model


def in_other_strides(model: Any) -> Any:
    layer = model.model.layers[0].mlp.down_proj
    layer.weight = torch.nn.Parameter(layer.weight.detach().t().contiguous().t())
    assert not layer.weight.is_contiguous()
    return model


def compiled(model: Any) -> Any:
    return torch.compile(model, backend="eager")


def to_disk(model: Any, folder: Path) -> Any:
    accelerate = pytest.importorskip("accelerate")
    places = {"model.embed_tokens": "cpu", "lm_head": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu"}
    layers = {f"model.layers.{k}": "disk" for k in range(3)}
    return accelerate.dispatch_model(model, places | layers, main_device="cpu", offload_dir=folder, force_hooks=True)


@pytest.mark.parametrize("change", [copy.deepcopy, in_other_strides, compiled, lambda model: model.train()])
def test_the_same_weights_have_the_same(change: Change) -> None:
    assert weights_digest(change(plain())) == weights_digest(plain())


def test_offloaded_weights_have_the_same_and_stay_where_they_are(tmp_path: Path) -> None:
    model = to_disk(plain(), tmp_path / "one")
    assert model.model.layers[1].mlp.up_proj.weight.is_meta
    assert weights_digest(model) == weights_digest(plain())
    assert model.model.layers[1].mlp.up_proj.weight.is_meta
    assert weights_digest(to_disk(tuned(plain()), tmp_path / "two")) == weights_digest(tuned(plain()))


def eight_bits(model: Any) -> Any:
    torchao = pytest.importorskip("torchao.quantization", reason="make test-guards installs torchao")
    torchao.quantize_(model, torchao.Int8WeightOnlyConfig())
    return model


def four_bits(model: Any) -> Any:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    for layer in model.model.layers:
        old = layer.mlp.up_proj
        layer.mlp.up_proj = bitsandbytes.nn.Linear4bit(32, 48, bias=False, compute_dtype=torch.float32)
        layer.mlp.up_proj.weight = bitsandbytes.nn.Params4bit(old.weight.detach() * 3, requires_grad=False)
        layer.mlp.up_proj.to("cpu")
    return model


def in_fp8(model: Any) -> Any:
    for parameter in model.parameters():
        parameter.data = (parameter.data * 16).to(torch.float8_e4m3fn)
    return model


@pytest.mark.parametrize(
    "change", [lambda model: model, lambda model: model.bfloat16(), lambda model: model.double(), in_fp8, eight_bits,
               four_bits], ids=["fp32", "bf16", "fp64", "fp8", "torchao", "bitsandbytes"],
)  # fmt: skip
def test_two_fine_tunes_differ_in_every_form(change: Change) -> None:
    one, again, other = change(plain()), change(plain()), change(tuned(plain()))
    assert weights_digest(one) == weights_digest(again)
    assert weights_digest(one) != weights_digest(other)


def test_another_dtype_is_another() -> None:
    assert len({weights_digest(plain().to(dtype)) for dtype in (torch.float32, torch.bfloat16, torch.float16)}) == 3


def test_which_adapters_are_in_use_is_a_part_of_it() -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["up_proj"], task_type="CAUSAL_LM")
    model = peft.get_peft_model(plain(), config)
    model.add_adapter("second", config)
    found = [weights_digest(model)]
    model.set_adapter("second")
    found.append(weights_digest(model))
    with model.disable_adapter():
        found.append(weights_digest(model))
    assert len(set(found)) == 3
    model.set_adapter("default")
    assert weights_digest(model) == found[0]


def test_places_lie_in_every_row_and_column_of_a_matrix() -> None:
    """Evenly spaced ones would lie in one column of an embedding whose size is a power of two."""
    for change in ((slice(None), 3), (7, slice(None)), (slice(200, 240), slice(16, 24))):
        model = make_model("llama", 256)
        before = weights_digest(model)
        with torch.no_grad():
            model.model.embed_tokens.weight[change] += 1
        assert weights_digest(model) != before, change
