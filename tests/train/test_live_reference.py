"""``ref_model``: a reference that is asked at every step gives the steps of columns computed before."""

import copy

import pytest
import torch

from tests.support.tiny_models import VOCAB, own_logits, plain_loss, tiny_model

pytest.importorskip("accelerate", reason="needs the [train] extra")

from fastdss import DSSCollator
from fastdss.train.enable import disable_dss
from fastdss.train.reference import reference_logprobs
from fastdss.train.trainer import DSSTrainer
from tests.support.trainers import COLUMNS, LR, InOrder, arguments, assert_same_weights, by_hand, rows


@pytest.mark.parametrize(
    ("kl", "family"), [("k2", "Llama"), ("reverse", "Llama"), ("forward", "Phi")]
)  # Phi's head has a bias, of its own in each of the two models
def test_a_frozen_model_as_live_reference(tmp_path, kl, family):
    data, reference = rows(columns=COLUMNS[:3]), tiny_model(family, seed=5)
    model = tiny_model(family)
    InOrder(
        model=model, args=arguments(tmp_path), train_dataset=data, kl=kl, ref_model=copy.deepcopy(reference)
    ).train()
    if kl == "k2":
        known = reference_logprobs(reference, data)
        expected = by_hand(tiny_model(), [r | {"ref_logprobs": k} for r, k in zip(data, known, strict=True)], 2, 4)
        assert_same_weights(model, expected, 1e-6)  # stored in single precision
        return
    expected = tiny_model(family)
    for step in range(2):
        batch = DSSCollator(0)(data[step * 4 :][:4])
        ref_logits = own_logits(reference, batch).detach()
        expected.zero_grad()
        plain_loss(own_logits(expected, batch), batch, kl=kl, ref_logits=ref_logits).backward()
        for parameter in expected.parameters():
            parameter.data -= LR * parameter.grad
    assert_same_weights(model, expected)


@pytest.mark.parametrize("kl", ["k2", "reverse"])
@pytest.mark.parametrize(
    ("family", "other"),
    [
        ("Granite", {"logits_scaling": 2.0, "hidden_size": 64}),  # Granite's sizes do differ in it
        ("Gemma2", {"final_logit_softcapping": None}),
        ("Llama", {}),
    ],
)
def test_a_live_reference_keeps_its_own_scale_and_softcap(tmp_path, family, other, kl):
    """The policy's were used: another KL in silence, wherever the two configs differ."""
    data, reference, model = rows(4, COLUMNS[:3]), tiny_model(family, seed=5, **other), tiny_model(family)
    batch = DSSCollator(0)(data)
    ref_logits = own_logits(reference, batch).detach()
    log_q = ref_logits[:, :-1].log_softmax(-1).gather(-1, batch["labels"][:, 1:].clamp(min=0)[..., None])[..., 0]
    batch["ref_logprobs"] = torch.nn.functional.pad(log_q, (1, 0))
    expected = tiny_model(family)
    plain_loss(own_logits(expected, batch), batch, kl=kl, ref_logits=ref_logits).backward()
    for parameter in expected.parameters():
        parameter.data -= LR * parameter.grad
    args = arguments(tmp_path, max_steps=1)
    InOrder(model=model, args=args, train_dataset=data, kl=kl, ref_model=reference).train()
    assert_same_weights(model, expected)


@pytest.mark.parametrize("saved", [None, ["lm_head"]])
def test_the_adapter_switched_off_as_live_reference(tmp_path, saved):
    peft = pytest.importorskip("peft", reason="needs the [train] extra")

    def adapted():
        config = peft.LoraConfig(
            task_type="CAUSAL_LM", r=4, target_modules=["q_proj"], modules_to_save=saved, lora_dropout=0.0
        )
        torch.manual_seed(0)
        return peft.get_peft_model(tiny_model(), config).double()

    data = rows(columns=COLUMNS[:3])
    model = adapted()
    InOrder(model=model, args=arguments(tmp_path), train_dataset=data, ref_model="adapter").train()
    assert model.training
    known = reference_logprobs(tiny_model(), data)
    expected = by_hand(adapted(), [r | {"ref_logprobs": k} for r, k in zip(data, known, strict=True)], 2, 4)
    assert_same_weights(model, expected, 1e-6)
    assert any(p.abs().max() > 1e-4 for name, p in model.named_parameters() if "lora_B" in name), "nothing was trained"


def test_a_live_reference_computes_in_the_policys_precision(tmp_path):
    """The model against a copy of itself: in another precision their KL would be rounding, not zero."""
    model = tiny_model(dtype=torch.float32)
    args = arguments(tmp_path, bf16=True, learning_rate=0.0, max_steps=1)
    options = {"kl": "reverse", "ref_model": copy.deepcopy(model)}
    trainer = InOrder(model=model, args=args, train_dataset=rows(4, COLUMNS[:3]), **options)
    trainer.train()
    assert trainer.state.log_history[0]["kl"] == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("options", [{"target_modules": ["lm_head"]}, {"modules_to_save": ["lm_head"]}], ids=str)
def test_a_reference_model_with_an_adapted_head(tmp_path, options):
    """Its hidden states came with the head as it was before the adapter: a reference that nobody has."""
    peft = pytest.importorskip("peft", reason="needs the [train] extra")
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", init_lora_weights=False, **({"target_modules": ["q_proj"]} | options)
    )
    reference = peft.get_peft_model(tiny_model(seed=5), config)
    for name, parameter in reference.named_parameters():
        if "modules_to_save" in name:
            parameter.data.normal_(std=0.3, generator=torch.Generator().manual_seed(6))
    data, model = rows(4, COLUMNS[:3]), tiny_model()
    batch = DSSCollator(0)(data)
    ref_logits = own_logits(reference, batch).detach()
    expected = plain_loss(own_logits(model, batch), batch, kl="reverse", ref_logits=ref_logits).item()
    args = arguments(tmp_path, max_steps=1)
    trainer = DSSTrainer(model=model, args=args, train_dataset=data, kl="reverse", ref_model=reference)
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected, abs=1e-6)


def test_the_model_is_not_its_own_reference():
    model = tiny_model()
    with pytest.raises(ValueError, match="pass a copy"):
        DSSTrainer(model=model, args=arguments("unused"), train_dataset=rows(), ref_model=model)
    disable_dss(model)
    assert model(input_ids=torch.tensor([[3]])).logits.shape == (1, 1, VOCAB)
