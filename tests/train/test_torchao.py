"""A head that torchao quantised: a tensor of its own kind, which knows only the operators that torchao wrote."""

import pytest
import torch

from fastdss.train.enable import enable_dss
from tests.support.tiny_models import assert_same, gradients, own_logits, plain_loss, tiny_batch, tiny_model

peft = pytest.importorskip("peft", reason="needs the [train] extra")
quantization = pytest.importorskip("torchao.quantization", reason="pip install torchao")


@pytest.mark.parametrize("targets", [["q_proj"], ["q_proj", "lm_head"]])
def test_it_is_multiplied_as_it_is(targets):
    model = tiny_model(dtype=torch.float32)
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    model = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
    batch = tiny_batch(dtype=torch.float32)
    expected = plain_loss(own_logits(model, batch), batch)
    truth = gradients(model, expected)
    output = enable_dss(model)(**batch)
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert_same(gradients(model, output.loss), truth, 1e-4)
