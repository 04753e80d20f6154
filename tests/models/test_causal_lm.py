"""Backbone, head, scale and softcap reproduce each architecture's own logits."""

import pytest
import torch

import fastdss
from fastdss.models.causal_lm import backbone, check_head, lm_head
from tests.matrix.tiny import tiny_model as matrix_model
from tests.support.tiny_models import tiny_model

# Each family does something different to its logits.
FAMILIES = {
    "Llama": {},
    "Qwen3": {},
    "Mistral": {},
    "Granite": {},
    "Cohere": {"logit_scale": 0.0625},
    "Cohere2": {},
    "Gemma2": {},
    "Gemma3Text": {"final_logit_softcapping": 2.0},
    "HyperCLOVAX": {"logits_scaling": 4.0},
    "Phi": {},  # its head has a bias
}


def made(family: str):
    return tiny_model(family, dtype=torch.float32, **FAMILIES[family]).eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_head_reproduces_logits(family):
    model = made(family)
    ids = torch.randint(3, 61, (2, 7))
    with torch.no_grad():
        hidden = backbone(model)(input_ids=ids).last_hidden_state
        own = model(input_ids=ids).logits
        head = lm_head(model)
        assert (head.logits(hidden) - own).abs().max() < 1e-5
        rows = torch.tensor([5, 60, 0])
        assert (head.logits(hidden, rows) - own[..., rows]).abs().max() < 1e-5
    check_head(model)


def test_check_head_notices_an_unknown_scale():
    model = made("Granite")
    own = model.forward
    model.forward = lambda **inputs: _scaled(own(**inputs))
    with pytest.raises(ValueError, match="miss them by"):
        check_head(model)


@pytest.mark.parametrize("name", ["ModernBertDecoderForCausalLM", "BertLMHeadModel", "RemBertForCausalLM"])
def test_a_class_that_does_more_between_the_two_is_refused_at_its_first_call(name):
    """By its logits, or because its head has another width than its states."""
    model = matrix_model(name)
    with pytest.raises(fastdss.UserError, match=rf"{name}(: whether backbone and head| computes its logits)"):
        lm_head(model)
    assert lm_head(model, check=False).weight.shape[0] == model.config.vocab_size


def test_a_model_is_tried_once_and_left_as_it_was():
    model, calls = made("Llama").train(), []
    model.register_forward_hook(lambda *_: calls.append(model.training))
    before = torch.get_rng_state()
    lm_head(model)
    lm_head(model)
    assert (calls, model.training) == ([False], True)
    assert torch.equal(before, torch.get_rng_state())
    assert lm_head(model).weight is model.lm_head.weight


def test_modules_without_a_head_are_refused():
    with pytest.raises(TypeError, match="backbone"):
        backbone(torch.nn.Linear(2, 2))
    with pytest.raises(TypeError, match="output head"):
        lm_head(torch.nn.Linear(2, 2))


def _scaled(output):
    output.logits = output.logits * 3
    return output
