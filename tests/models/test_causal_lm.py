"""Backbone, head, scale and softcap reproduce each architecture's own logits."""

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from fastdss.models.causal_lm import backbone, check_head, lm_head

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 61,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# Each family does something different to its logits.
FAMILIES = {
    "LlamaConfig": {},
    "Qwen3Config": {"tie_word_embeddings": True},
    "MistralConfig": {},
    "GraniteConfig": {"logits_scaling": 8.0},
    "CohereConfig": {"logit_scale": 0.0625},
    "Cohere2Config": {"logit_scale": 0.25},
    "Gemma2Config": {"final_logit_softcapping": 3.0, "query_pre_attn_scalar": 8},
    "Gemma3TextConfig": {"final_logit_softcapping": 2.0},
    "HyperCLOVAXConfig": {"logits_scaling": 4.0},
    "PhiConfig": {},  # its head has a bias
}


def tiny_model(family: str):
    torch.manual_seed(0)
    config = getattr(transformers, family)(**(SIZES | FAMILIES[family]))
    model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)  # so that scale, softcap and bias matter
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_head_reproduces_logits(family):
    model = tiny_model(family)
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
    model = tiny_model("GraniteConfig")
    own = model.forward
    model.forward = lambda **inputs: _scaled(own(**inputs))
    with pytest.raises(ValueError, match="miss them by"):
        check_head(model)


def test_modules_without_a_head_are_refused():
    with pytest.raises(TypeError, match="backbone"):
        backbone(torch.nn.Linear(2, 2))
    with pytest.raises(TypeError, match="output head"):
        lm_head(torch.nn.Linear(2, 2))


def _scaled(output):
    output.logits = output.logits * 3
    return output
