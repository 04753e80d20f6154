"""Attributes of PEFT's layers that fastdss reads, each against what the layers themselves compute."""

import peft
import pytest
import torch
from torch import nn

from fastdss.upstream.peft import (
    LowRank,
    adapters_in_use,
    base_of,
    belongs_to_adapters,
    copies_of,
    copy_in_use,
    drops,
    has_base,
    has_learnt,
    is_adapted,
    is_copied,
    is_low_rank,
    is_merged,
    is_off,
    is_wrapper,
    learns_prompts,
    low_rank_parts,
    original_of,
)
from tests.support.tiny_models import tiny_model

from .canary import gone

ROWS = torch.randn(4, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def changed(name: str, means: str) -> str:
    return gone("peft", name, means)


def adapted(**options):
    config = peft.LoraConfig(**({"r": 2, "lora_alpha": 6, "target_modules": ["lm_head"]} | options))
    model = peft.get_peft_model(tiny_model(), config)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name and "magnitude" not in name:
            nn.init.normal_(parameter)
    return model, model.get_base_model().get_output_embeddings()


def test_a_layer_of_low_rank_is_told_from_others():
    plain = tiny_model().get_output_embeddings()
    assert not any(told(plain) for told in (is_low_rank, is_wrapper, is_adapted, has_base, is_copied))
    assert base_of(plain) is original_of(plain) is copy_in_use(plain) is plain
    _, layer = adapted()
    assert is_low_rank(layer), changed("lora_A, base_layer", "tell a LoRA layer")
    assert is_wrapper(layer)
    assert is_adapted(layer)
    assert has_base(layer)
    assert type(base_of(layer)) is nn.Linear


@pytest.mark.parametrize("options", [{}, {"lora_bias": True}, {"use_rslora": True}, {"lora_dropout": 0.5}])
def test_the_parts_of_a_layer_make_what_it_computes(options):
    model, layer = adapted(**options)
    model.eval()
    (part,) = low_rank_parts(layer)
    assert isinstance(part, LowRank)
    assert (part.name, part.kind, part.has_bias) == ("default", "LoRA", options.get("lora_bias", False))
    assert isinstance(part.dropout, nn.Dropout) is ("lora_dropout" in options)
    own = base_of(layer)(ROWS) + part.scaling * part.up(part.down(ROWS))
    assert torch.allclose(layer(ROWS), own), changed("scaling, lora_A, lora_B", "make what is added to the base layer")
    bias = part.scaling * part.up.bias if part.has_bias else 0
    by_delta = base_of(layer)(ROWS) + ROWS @ part.delta().T + bias
    assert torch.allclose(layer(ROWS), by_delta), changed("get_delta_weight", "is scaling * B @ A")


@pytest.mark.parametrize(
    ("config", "attribute"),
    [
        (peft.LoraConfig(r=2, lora_dropout=0.5, target_modules=["lm_head"]), "torch.nn.Dropout"),
        (peft.LoHaConfig(rank_dropout=0.5, target_modules=["lm_head"]), "rank_dropout"),
        (peft.LoKrConfig(module_dropout=0.5, target_modules=["lm_head"]), "module_dropout"),
        (
            peft.BOFTConfig(boft_block_size=4, boft_dropout=0.5, target_modules=["lm_head"]),
            "MultiplicativeDropoutLayer.p",
        ),
    ],
    ids=["LoRA", "LoHa", "LoKr", "BOFT"],
)
def test_what_leaves_something_out_at_random(config, attribute):
    layer = peft.get_peft_model(tiny_model(), config).get_base_model().get_output_embeddings()
    assert any(map(drops, layer.train().modules())), changed(attribute, "says what share is left out")
    assert not any(map(drops, layer.eval().modules()))
    assert not any(map(drops, adapted()[1].train().modules()))


def test_the_magnitude_of_dora():
    model, layer = adapted(use_dora=True)
    model.eval()
    (part,) = low_rank_parts(layer)
    assert part.kind == "DoRA", changed("lora_variant", f"names DoraLinearVariant, got {part.kind}")
    assert part.magnitude is not None
    whole = base_of(layer).weight + part.delta()
    expected = ROWS @ (part.magnitude[:, None] / whole.norm(dim=1, keepdim=True) * whole).T
    assert torch.allclose(layer(ROWS), expected), changed("lora_magnitude_vector", "scales the rows of W + s B A")


def test_merged_and_switched_off():
    model, layer = adapted()
    assert (is_merged(layer), is_off(layer)) == (False, False)
    model.merge_adapter()
    assert is_merged(layer), changed("layer.merged", "says that the adapter is in the base weight")
    model.unmerge_adapter()
    with model.disable_adapter():
        assert is_off(layer), changed("layer.disable_adapters", "says that adapters are off")


def test_a_copy_that_is_trained_in_place_of_the_layer():
    model, layer = adapted(target_modules=["q_proj"], modules_to_save=["lm_head"])
    assert is_copied(layer)
    assert is_adapted(layer)
    original, copy = copies_of(layer)
    assert original_of(layer) is original, changed("original_module", "is the layer as it was")
    assert copy_in_use(layer) is copy, changed("modules_to_save, active_adapters", "tell which copy is called")
    nn.init.normal_(copy.weight)
    assert torch.equal(layer(ROWS), copy(ROWS))
    with model.disable_adapter():
        assert copy_in_use(layer) is original
        assert torch.equal(layer(ROWS), original(ROWS))


def test_some_tokens_trained_beside_the_layer():
    model = peft.get_peft_model(
        tiny_model("Qwen3"), peft.LoraConfig(target_modules=["q_proj"], trainable_token_indices=[3, 5])
    )
    layer = model.get_base_model().get_output_embeddings()
    assert is_wrapper(layer), changed("token_adapter", "tells a layer some of whose tokens train")
    assert isinstance(original_of(layer), nn.Module)
    assert plain_shape(base_of(original_of(layer))) == (61, 32)


def plain_shape(layer):
    return tuple(layer.weight.shape)


def test_which_adapters_are_in_use():
    model, _ = adapted()
    found = adapters_in_use(model.get_base_model())["lm_head"]
    assert found == (False, "['default']", "{'default': 3.0}"), changed("active_adapters", f"lists them, got {found}")
    with model.disable_adapter():
        assert adapters_in_use(model.get_base_model())["lm_head"][0] is True


@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"target_modules": ["embed_tokens"]}])
def test_an_adapter_that_was_just_made_has_learnt_nothing(options):
    model = peft.get_peft_model(tiny_model(), peft.LoraConfig(**({"r": 2, "target_modules": ["q_proj"]} | options)))
    assert not has_learnt(model), changed("lora_B, lora_embedding_A", "are zero at first")
    for name, parameter in model.named_parameters():
        if "lora_B" in name or "lora_embedding_A" in name:
            parameter.data[0] = 1e-6
    assert has_learnt(model)


def test_adalora_which_keeps_parameters_in_place_of_layers():
    config = peft.AdaLoraConfig(init_r=2, total_step=10, tinit=1, tfinal=1, target_modules=["q_proj"])
    assert has_learnt(peft.get_peft_model(tiny_model(), config))


@pytest.mark.parametrize(
    "options", [{}, {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, {"use_dora": True}]
)
def test_names_of_what_adapters_train(options):
    model, _ = adapted(**options)
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    outside = [name for name in names if not belongs_to_adapters(model, name)]
    assert names
    assert outside == [], changed("base_model.prefix", f"begins the names of parts, but not of {outside}")
    assert not belongs_to_adapters(model, "base_model.model.model.norm.weight")


def test_models_that_learn_prompts():
    prompts = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    assert learns_prompts(peft.get_peft_model(tiny_model(), prompts)), changed("is_prompt_learning", "tells them")
    assert learns_prompts(adapted()[0]) is False
