"""ref_model="adapter" is the model as training began: the KL to itself is 0 at the first step and grows after it."""

import copy

import pytest
import torch
from datasets import Dataset

from fastdss.train.adapter_reference import StartCopy
from fastdss.train.trainer import DSSTrainer
from tests.support.tiny_models import assert_same, gradients, own_logits, plain_loss, tiny_batch, tiny_model
from tests.support.trainers import arguments, rows

peft = pytest.importorskip("peft", reason="needs the [train] extra")

DATA = rows(8, columns=("input_ids", "labels", "token_weights"))
TOKEN = DATA[0]["input_ids"][2]
LAYERS = {"target_modules": ["q_proj", "v_proj", "down_proj"], "task_type": "CAUSAL_LM", "r": 4}


def plain():
    return peft.get_peft_model(tiny_model(dtype=torch.float32), peft.LoraConfig(**LAYERS))


def initialised(kind):
    return lambda: peft.get_peft_model(
        tiny_model(dtype=torch.float32), peft.LoraConfig(init_lora_weights=kind, **LAYERS)
    )


def with_bias():
    config = peft.LoraConfig(bias="all", target_modules=["q_proj", "dense"], task_type="CAUSAL_LM", r=4)
    return peft.get_peft_model(tiny_model("Phi", dtype=torch.float32), config)


def unfrozen():
    model = plain()
    model.get_base_model().model.norm.weight.requires_grad_(True)
    return model


def trained_before():
    model = plain()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.1, generator=torch.Generator().manual_seed(4))
    return model


def saved_head():
    config = peft.LoraConfig(init_lora_weights="pissa", modules_to_save=["lm_head"], **LAYERS)
    return peft.get_peft_model(tiny_model(dtype=torch.float32), config)


def trained_token():
    """Only the embedding of one word was trained before, and no short probe holds that word."""
    model = peft.get_peft_model(
        tiny_model(dtype=torch.float32), peft.LoraConfig(trainable_token_indices=[TOKEN], **LAYERS)
    )
    for name, parameter in model.named_parameters():
        if "trainable_tokens_delta" in name:
            parameter.data += 0.5
    return model


def trained_embedding():
    model = peft.get_peft_model(
        tiny_model(dtype=torch.float32), peft.LoraConfig(modules_to_save=["embed_tokens"], **LAYERS)
    )
    model.get_input_embeddings().weight.data[TOKEN] += 0.5
    return model


def biased_head(config):
    """The adapter gives the head a bias, which the reference's head has not."""
    return lambda: peft.get_peft_model(tiny_model(dtype=torch.float32), config)


LORA_BIAS = peft.LoraConfig(target_modules=["lm_head"], lora_bias=True, task_type="CAUSAL_LM", r=4)
ON_HEADS = {
    "saved": saved_head,
    "lora with a bias": biased_head(LORA_BIAS),
    "oft": biased_head(peft.OFTConfig(target_modules=["lm_head"], oft_block_size=8, r=0, task_type="CAUSAL_LM")),
}
MODELS = {
    "pissa": initialised("pissa"),
    "olora": initialised("olora"),
    "bias": with_bias,
    "unfrozen norm": unfrozen,
    "trained before": trained_before,
    "pissa with a saved head": saved_head,
    "one trained token": trained_token,
    "one row of a saved embedding": trained_embedding,
}


def trainer(model, folder, steps=1, kl="reverse"):
    options = {"max_steps": steps, "learning_rate": 0.05, "logging_steps": 1}
    return DSSTrainer(
        model, arguments(folder, **options), train_dataset=Dataset.from_list(DATA), kl=kl, ref_model="adapter"
    )


@pytest.mark.parametrize("name", MODELS)
def test_the_first_steps_kl_is_zero_and_the_reference_stays(name, tmp_path, caplog):
    model = MODELS[name]()
    with torch.no_grad():
        start = own_logits(model.eval(), tiny_batch())
    running = trainer(model, tmp_path, steps=3)
    assert isinstance(running._dss_reference.source, StartCopy)
    assert "a copy of the" in caplog.text
    running.train()
    logged = [entry["kl"] for entry in running.state.log_history if "kl" in entry]
    assert logged[0] < 1e-9
    assert logged[2] > 1e-7  # a tiny model's third step; rounding moves it by a tenth
    with running._dss_reference.source.restored(), torch.no_grad():
        assert torch.equal(own_logits(model.eval(), tiny_batch()), start)
    assert not torch.equal(own_logits(model, tiny_batch()), start)


@pytest.mark.parametrize("head", ON_HEADS)
@pytest.mark.parametrize("kl", ["reverse", "forward"])
def test_the_gradient_is_that_of_the_start_as_reference(kl, head, tmp_path):
    """After a step the reference differs from the policy: the shaped loss is the plain formula on both."""
    model = ON_HEADS[head]().double()
    running = trainer(model, tmp_path, kl=kl)
    start = copy.deepcopy(model).eval()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)).double()
    batch = tiny_batch()
    with torch.no_grad():
        ref_logits = own_logits(start, batch)
    expected = plain_loss(own_logits(model.eval(), batch), batch, kl=kl, ref_logits=ref_logits)
    truth = gradients(model, expected)
    del batch["ref_logprobs"]
    loss = running.compute_loss(model, batch)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-9)
    assert_same(gradients(model, loss), truth, 1e-8)


@pytest.mark.parametrize(("trained", "dora", "copied"), [(1e-3, False, True), (0.0, False, False), (0.0, True, False)])
def test_in_16_bit_a_little_training_is_told_from_rounding(trained, dora, copied, tmp_path):
    model = peft.get_peft_model(tiny_model(dtype=torch.float32), peft.LoraConfig(use_dora=dora, **LAYERS)).bfloat16()
    for name, parameter in model.named_parameters():
        if "lora_B" in name and trained:
            parameter.data.normal_(std=trained, generator=torch.Generator().manual_seed(4))
    source = trainer(model, tmp_path)._dss_reference.source
    assert isinstance(source, StartCopy) == copied


def test_training_that_a_few_tokens_do_not_show_is_found(tmp_path):
    """An adapter of experts that get none of these tokens, say; here one that moves all logits by next to nothing."""
    model = plain()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.fill_(1e-9)
    assert isinstance(trainer(model, tmp_path)._dss_reference.source, StartCopy)


def test_embeddings_with_adapters_that_learnt_nothing_need_no_copy(tmp_path):
    for more in ({"trainable_token_indices": [TOKEN]}, {"modules_to_save": ["embed_tokens"]}):
        model = peft.get_peft_model(tiny_model(dtype=torch.float32), peft.LoraConfig(**(LAYERS | more)))
        assert trainer(model, tmp_path)._dss_reference.source == "adapter"


def test_plain_lora_keeps_no_copy(tmp_path):
    model = plain()
    trains = [p.requires_grad for p in model.parameters()]
    running = trainer(model, tmp_path)
    assert running._dss_reference.source == "adapter"
    assert [p.requires_grad for p in model.parameters()] == trains
    running.train()
    assert running.state.log_history[0]["kl"] == 0
