"""4- and 8-bit weights by bitsandbytes on a CPU: our checks leave them trainable, quantised heads are multiplied."""

import pytest
import torch

from fastdss.models.probes import evaluating
from fastdss.train.enable import check_packing, enable_dss
from fastdss.train.reference import reference_logprobs
from tests.support.tiny_models import assert_same, gradients, own_logits, plain_loss, tiny_batch, tiny_model

bitsandbytes = pytest.importorskip("bitsandbytes", reason="pip install bitsandbytes")
peft = pytest.importorskip("peft", reason="needs the [train] extra")


def quantised(head=False, kind="nf4"):
    """A tiny Llama whose linear layers are in 4 bits, with adapters on them; wide enough for blocks of 64."""
    model = tiny_model(dtype=torch.float32, hidden_size=64, intermediate_size=64, head_dim=16)
    for name, layer in list(model.named_modules()):
        if isinstance(layer, torch.nn.Linear) and (head or name != "lm_head"):
            owner, _, last = name.rpartition(".")
            if kind == "nf4":
                small = bitsandbytes.nn.Linear4bit(
                    layer.in_features, layer.out_features, bias=False, compute_dtype=torch.float32, quant_type="nf4"
                )
                small.weight = bitsandbytes.nn.Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4")
            else:
                small = bitsandbytes.nn.Linear8bitLt(
                    layer.in_features, layer.out_features, bias=False, has_fp16_weights=False
                )
                small.weight = bitsandbytes.nn.Int8Params(
                    layer.weight.data, has_fp16_weights=False, requires_grad=False
                )
            setattr(model.get_submodule(owner), last, small.to("cpu"))
    targets = ["q_proj", "down_proj"]
    return peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=targets, init_lora_weights=False))


def test_gradients_pass_after_our_own_forwards():
    model, batch = quantised().train(), tiny_batch(dtype=torch.float32)
    truth = gradients(model, plain_loss(own_logits(model, batch), batch))
    enable_dss(model)
    check_packing(model)
    reference_logprobs(model, [{"input_ids": [3, 4, 5], "labels": [3, 4, 5]}])
    for module in model.modules():
        assert not getattr(getattr(module, "weight", None), "quant_state", None) or not getattr(
            module.weight.quant_state, "packing_format_for_cpu", False
        )
    found = gradients(model, model(**batch).loss)
    assert all(gradient.norm() > 0 for gradient in found.values())
    assert_same(found, truth, 1e-4)


def test_evaluating_keeps_quantised_layers_in_training_mode():
    model = quantised().train()
    with evaluating(model):
        assert not model.training
        kept = [m for m in model.modules() if type(m).__module__.startswith("bitsandbytes.nn")]
        assert kept
        assert all(m.training for m in kept)
    assert all(m.training for m in model.modules())


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_quantised_head_is_multiplied_as_it_is(kind):
    model, batch = quantised(head=True, kind=kind).train(), tiny_batch(dtype=torch.float32)
    expected = plain_loss(own_logits(model, batch), batch)
    truth = gradients(model, expected)
    output = enable_dss(model)(**batch)
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-4)
    assert_same(gradients(model, output.loss), truth, 1e-3)
    again = plain_loss(own_logits(model, batch), batch)  # as in an evaluation that generates
    assert again.item() == pytest.approx(expected.item(), rel=1e-6)
