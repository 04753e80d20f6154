"""DSSTrainer where a run is unusual: losses that are not finite, several adapters, settings few people touch."""

import copy
import math

import pytest
import torch
from transformers import TrainerCallback

from tests.support.tiny_models import own_logits, plain_loss, tiny_model
from tests.support.trainers import COLUMNS, LR, InOrder, arguments, assert_same_weights, rows

pytest.importorskip("accelerate", reason="needs the [train] extra")

from fastdss import DSSCollator


def test_a_loss_that_is_not_finite_is_logged_as_such(tmp_path, monkeypatch):
    """And only where it was: Trainer's filter made a NaN 0 or a mean, in training and in evaluation."""
    model, calls = tiny_model(), []

    class NoStep(TrainerCallback):
        def on_pre_optimizer_step(self, *args, model, **kwargs):
            model.zero_grad()

    def ruin(module, args, output):
        calls.append(1)
        if len(calls) == 2:
            output.last_hidden_state.data[0, 3] = math.nan

    args = arguments(tmp_path, max_steps=4, per_device_eval_batch_size=2)
    trainer = InOrder(model=model, args=args, train_dataset=rows(), eval_dataset=rows(4), callbacks=[NoStep()])
    model.model.register_forward_hook(ruin)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert [math.isnan(loss) for loss in losses] == [False, True, False, False]
    assert losses[2] == pytest.approx(losses[0], abs=1e-6)  # the same rows
    calls.clear()
    assert math.isnan(trainer.evaluate()["eval_loss"])


def test_a_frozen_adapter_on_the_head_beside_a_trained_one(tmp_path):
    """PEFT's disable_adapter left it trainable: it took part in clipping, and an earlier evaluation had it trained."""
    peft = pytest.importorskip("peft", reason="needs the [train] extra")
    options = {"task_type": "CAUSAL_LM", "r": 4}  # both start without effect: without them it is the same model
    torch.manual_seed(0)
    model = peft.get_peft_model(tiny_model(), peft.LoraConfig(target_modules=["lm_head"], **options), "old")
    model.add_adapter("new", peft.LoraConfig(target_modules=["q_proj"], **options))
    model.double().base_model.set_adapter(["old", "new"])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".new." in name)
    data, expected = rows(4, COLUMNS[:3]), copy.deepcopy(model)
    batch = DSSCollator(0)(data)
    trained = [parameter for parameter in expected.parameters() if parameter.requires_grad]
    ref_logits = own_logits(tiny_model(), batch).detach()
    loss = plain_loss(own_logits(expected, batch), batch, kl="reverse", ref_logits=ref_logits)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(trained, 0.1)
    for parameter in trained:
        parameter.data -= LR * parameter.grad
    args = arguments(tmp_path, max_steps=1, max_grad_norm=0.1)
    trainer = InOrder(model=model, args=args, train_dataset=data, eval_dataset=data, kl="reverse", ref_model="adapter")
    assert trainer.evaluate()["eval_loss"] == pytest.approx(loss.item(), abs=1e-6)
    trainer.train()
    assert_same_weights(model, expected)
