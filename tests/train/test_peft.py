"""Adapters: wherever PEFT puts trainable weights, loss and gradients are those of the plain formula."""

import pytest
import torch

from fastdss.models.adapted_head import applied
from fastdss.models.causal_lm import backbone, lm_head
from fastdss.models.head_call import current_head, head_trains, original_head
from fastdss.train.enable import bare_model, enable_dss
from tests.support.tiny_models import assert_same, gradients, own_logits, plain_loss, tiny_batch, tiny_model

peft = pytest.importorskip("peft", reason="needs the [train] extra")

CONFIGS = {
    "lora": {"target_modules": ["q_proj", "v_proj"]},
    "lora with a saved head": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "lora on the head": {"target_modules": ["q_proj", "lm_head"]},
    "rank-stabilised lora on the head": {"target_modules": ["lm_head"], "use_rslora": True},
}


def adapted(family="Llama", dtype=torch.float64, bare=None, **options):
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, init_lora_weights=False, **options)
    model = peft.get_peft_model(tiny_model(family) if bare is None else bare, config).to(dtype)
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=dtype)
    return model


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("name", CONFIGS)
def test_adapters(name, when):
    model, batch = adapted(**CONFIGS[name]), tiny_batch()
    expected = plain_loss(own_logits(model, batch), batch)
    truth = gradients(model, expected)
    if when == "before":  # enabled on the bare model, then wrapped
        enable_dss(bare_model(model))
    else:
        assert enable_dss(model) is model
    output = model(**batch)
    assert output.loss.item() == pytest.approx(expected.item(), abs=1e-10)
    assert_same(gradients(model, output.loss), truth)
    assert any("lm_head" in name for name in truth) == head_trains(bare_model(model)) == ("head" in name)


def test_tied_head_with_lora_on_a_tied_model():
    model, batch = adapted("Qwen3", target_modules=["q_proj", "gate_proj"]), tiny_batch()
    truth = gradients(model, plain_loss(own_logits(model, batch), batch))
    assert_same(gradients(model, enable_dss(model)(**batch).loss), truth)


def test_the_model_without_its_adapter_is_a_live_reference():
    for options in CONFIGS.values():
        model, batch = enable_dss(adapted(**options), kl="reverse"), tiny_batch()
        with torch.no_grad(), model.disable_adapter():
            reference = own_logits(model, batch)
            hidden = model(**batch, dss_ask="hidden").hidden
        expected = plain_loss(own_logits(model, batch), batch, kl="reverse", ref_logits=reference)
        truth = gradients(model, expected)
        del batch["ref_logprobs"]
        weight, _ = original_head(bare_model(model))
        output = model(**batch, ref_hidden=hidden, ref_lm_head=weight)
        assert output.loss.item() == pytest.approx(expected.item(), abs=1e-10)
        assert_same(gradients(model, output.loss), truth)


def test_a_frozen_head_is_its_own_reference_head():
    model, batch = enable_dss(adapted(target_modules=["q_proj"]), kl="forward"), tiny_batch()
    with torch.no_grad(), model.disable_adapter():
        hidden = model(**batch, dss_ask="hidden").hidden
    del batch["ref_logprobs"]
    given = model(**batch, ref_hidden=hidden, ref_lm_head=bare_model(model).lm_head.weight).loss
    assert torch.equal(model(**batch, ref_hidden=hidden).loss, given)


def test_the_head_weight_is_the_effective_one():
    model, batch = adapted(target_modules=["lm_head"]), tiny_batch()
    bare = bare_model(model)
    hidden = torch.randn(2, 32, dtype=torch.float64)
    expected = model.get_output_embeddings()(hidden)
    assert torch.allclose(hidden @ current_head(bare)[0].T, expected, atol=1e-12)
    assert not torch.allclose(hidden @ original_head(bare)[0].T, expected, atol=1e-3), "the adapter does nothing"
    model.merge_adapter()
    enable_dss(model)
    merged = model(**batch).loss.item()
    model.unmerge_adapter()
    assert model(**batch).loss.item() == pytest.approx(merged, abs=1e-10)


class ScaledHead(torch.nn.Linear):
    """A head that learns a scale for each word, as Dory's does."""

    def __init__(self, base: torch.nn.Linear) -> None:
        super().__init__(base.in_features, base.out_features, bias=False, dtype=torch.float64)
        self.weight = base.weight
        self.scale = torch.nn.Parameter(torch.linspace(0.5, 2, base.out_features, dtype=torch.float64))

    def forward(self, hidden):
        return super().forward(hidden) * self.scale


def with_scaled_head(name):
    """A model with such a head: bare, or with an adapter on it that has learnt something."""
    bare = tiny_model()
    bare.set_output_embeddings(ScaledHead(bare.lm_head))
    if name == "bare":
        return bare
    options = {"LoRA": {}, "DoRA": {"use_dora": True}, "dropout": {"lora_dropout": 0.3}}[name]
    return adapted(bare=bare, target_modules=["lm_head"], **options)


def check_against_plain(model):
    """DSS gives the loss and the gradients of the plain formula on the model's own logits; returns these gradients."""
    batch = tiny_batch()
    torch.manual_seed(7)
    expected = plain_loss(own_logits(model, batch), batch)
    truth = gradients(model, expected)
    enable_dss(model)
    torch.manual_seed(7)
    output = model(**batch)
    assert output.loss.item() == pytest.approx(expected.item(), abs=1e-10)
    assert_same(gradients(model, output.loss), truth, 1e-9)
    return truth


@pytest.mark.parametrize("name", ["bare", "LoRA", "DoRA", "dropout"])
def test_a_head_with_a_forward_of_its_own(name):
    model = with_scaled_head(name).train()
    for parameter in model.parameters():
        parameter.requires_grad_()
    truth = check_against_plain(model)
    assert any(name.endswith("scale") for name in truth)


@pytest.mark.parametrize("name", [*CONFIGS, "DoRA", "scaled", "scaled with LoRA"])
def test_lm_head_is_the_head_in_use(name):
    """A loop that takes lm_head and backbone trains what PEFT's own forward computes, adapters on the head included."""
    scaled = {"scaled": "bare", "scaled with LoRA": "LoRA"}
    options = CONFIGS.get(name, {"target_modules": ["lm_head"], "use_dora": True})
    model, batch = (with_scaled_head(scaled[name]) if name in scaled else adapted(**options)), tiny_batch()
    truth = gradients(model, plain_loss(own_logits(model, batch), batch))
    states = backbone(model)(batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    found = plain_loss(lm_head(model).logits(states), batch)
    assert_same(gradients(model, found), truth)


def test_lm_head_cannot_tell_a_head_with_dropout():
    model = adapted(target_modules=["lm_head"], lora_dropout=0.3).train()
    with pytest.raises(ValueError, match="dropout"):
        lm_head(model)
    assert lm_head(model.eval()).weight.shape == (61, 32)


HEADS = {
    "dropout": {"lora_dropout": 0.3},
    "DoRA": {"use_dora": True},
    "DoRA with dropout": {"use_dora": True, "lora_dropout": 0.3},
    "bias": {"lora_bias": True},
    "bias and dropout": {"lora_bias": True, "lora_dropout": 0.3},
}


@pytest.mark.parametrize("name", HEADS)
def test_adapters_on_the_head_in_training_mode(name):
    """The same seed drops the same states, in PEFT's forward and in ours."""
    family = "Phi" if "bias" in name else "Llama"  # whose head has a bias
    model, batch = adapted(family, target_modules=["lm_head"], **HEADS[name]), tiny_batch()
    model.train()
    enable_dss(model)
    torch.manual_seed(7)
    expected = plain_loss(own_logits(model, batch), batch)
    truth = gradients(model, expected)
    torch.manual_seed(7)
    output = model(**batch)
    assert output.loss.item() == pytest.approx(expected.item(), abs=1e-10)
    assert_same(gradients(model, output.loss), truth)
    model.eval()
    assert model(**batch).loss.item() == pytest.approx(plain_loss(own_logits(model, batch), batch).item(), abs=1e-10)


BESIDE = {"plain": {}, "dropout": {"lora_dropout": 0.3}, "rank-stabilised": {"use_rslora": True}} | {
    name: options for name, options in HEADS.items() if name != "dropout"
}


def two_on_the_head(head, first, second):
    """A model in training mode with two active adapters on its head, that have learnt something."""
    model = with_scaled_head("bare") if head == "scaled" else tiny_model(head)
    configs = [
        peft.LoraConfig(target_modules=["lm_head"], r=4, lora_alpha=8, **BESIDE[kind]) for kind in (first, second)
    ]
    model = peft.get_peft_model(model, configs[0], "first")
    model.add_adapter("second", configs[1])
    model.base_model.set_adapter(["first", "second"])
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.double().train().named_parameters():
        if "lora_" in name or name.endswith("base_layer.bias"):
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        parameter.requires_grad_("lm_head" in name)
    return model


@pytest.mark.parametrize("second", BESIDE)
@pytest.mark.parametrize("first", BESIDE)
@pytest.mark.parametrize("head", ["Llama", "Phi", "scaled"])  # without a bias, with one, with a forward of its own
def test_two_adapters_on_the_head(head, first, second):
    """DoRA scales what the adapters before it made: their products and their biases, but not the base layer's bias."""
    check_against_plain(two_on_the_head(head, first, second))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("LoHaConfig", {"rank_dropout": 0.3}),
        ("LoKrConfig", {"module_dropout": 0.3}),
        ("BOFTConfig", {"boft_block_size": 4, "boft_dropout": 0.3}),
        ("OFTConfig", {"oft_block_size": 8, "module_dropout": 0.3}),
        ("VeraConfig", {"vera_dropout": 0.3}),
        ("AdaLoraConfig", {"init_r": 4, "total_step": 9, "tinit": 1, "tfinal": 1, "lora_dropout": 0.3}),
    ],
    ids=str,
)
def test_dropout_in_other_adapters_on_the_head_is_refused_by_name(kind, options):
    model = peft.get_peft_model(
        tiny_model(dtype=torch.float32), getattr(peft, kind)(target_modules=["lm_head"], **options)
    )
    enable_dss(model)
    with pytest.raises(TypeError, match="on the output head has dropout: set it to 0"):
        model.train()(**tiny_batch(dtype=torch.float32))


@pytest.mark.parametrize("kind", ["LoHaConfig", "IA3Config", "OFTConfig"])
def test_other_adapters_on_the_head(kind):
    options = {"IA3Config": {"feedforward_modules": []}, "OFTConfig": {"oft_block_size": 8}}.get(kind, {})
    config = getattr(peft, kind)(target_modules=["lm_head"], **options)
    model, batch = peft.get_peft_model(tiny_model(), config).double(), tiny_batch()
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    expected = plain_loss(own_logits(model, batch), batch)
    truth = gradients(model, expected)
    output = enable_dss(model)(**batch)
    assert output.loss.item() == pytest.approx(expected.item(), abs=1e-8)
    assert_same(gradients(model, output.loss), truth, 1e-7)


def test_a_head_that_is_not_linear_is_refused():
    class Wrapped(torch.nn.Module):
        def __init__(self, base_layer):
            super().__init__()
            self.base_layer = base_layer

        def forward(self, hidden):
            return self.base_layer(hidden).sin()

    with pytest.raises(TypeError, match="expected a linear output head, got Wrapped"):
        applied(Wrapped(torch.nn.Linear(4, 6)), torch.randn(2, 4))


def test_parameters_as_targets():
    """Experts are parameters, not layers; PEFT wraps them by target_parameters."""
    model, batch = tiny_model("Mixtral"), tiny_batch()
    config = peft.LoraConfig(
        r=2, target_modules=["q_proj"], target_parameters=["mlp.experts.gate_up_proj"], init_lora_weights=False
    )
    model = peft.get_peft_model(model, config).double()
    aux = model(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], output_router_logits=True
    ).aux_loss
    expected = plain_loss(own_logits(model, batch), batch) + 0.1 * aux
    truth = gradients(model, expected)
    assert any("experts" in name for name in truth)
    output = enable_dss(model)(**batch)
    assert output.loss.item() == pytest.approx(expected.item(), abs=1e-6)
    assert_same(gradients(model, output.loss), truth, 1e-6)


def test_prompt_learning_is_refused():
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    with pytest.raises(TypeError, match="prompt learning"):
        enable_dss(peft.get_peft_model(tiny_model(), config))


@pytest.mark.parametrize("kind", ["PromptTuningConfig", "PrefixTuningConfig"])
def test_prompt_learning_added_later_is_refused(kind):
    """PEFT's prompt tuning lengthens inputs and labels, its prefix tuning brings a cache."""
    config = getattr(peft, kind)(task_type="CAUSAL_LM", num_virtual_tokens=2)
    model = peft.get_peft_model(enable_dss(tiny_model()), config)
    with pytest.raises(ValueError, match="prompt learning adds tokens that have no weight"):
        model(**tiny_batch())


def test_a_wrapper_that_has_kept_the_earlier_forward_is_refused():
    """It would hand the weights to a forward that drops them, and the model's own loss would be trained."""
    config = peft.AdaptionPromptConfig(adapter_len=3, adapter_layers=1, task_type="CAUSAL_LM")
    model, batch = tiny_model(), tiny_batch()
    with pytest.raises(ValueError, match="enable DSS on the bare model first"):
        enable_dss(peft.get_peft_model(tiny_model(), config))
    wrapped = peft.get_peft_model(enable_dss(model), config).double()
    assert_same(
        gradients(wrapped, wrapped(**batch).loss), gradients(wrapped, plain_loss(own_logits(wrapped, batch), batch))
    )


def test_trainable_tokens_on_a_tied_head():
    config = peft.TrainableTokensConfig(task_type="CAUSAL_LM", token_indices=[5, 6])
    model, batch = peft.get_peft_model(tiny_model("Qwen3"), config).double(), tiny_batch()
    batch["labels"][:, 4:6] = torch.tensor([5, 6])
    truth = gradients(model, plain_loss(own_logits(model, batch), batch))
    assert [name for name in truth if "trainable_tokens_delta" in name]
    assert_same(gradients(model, enable_dss(model)(**batch).loss), truth)
