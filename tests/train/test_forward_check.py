"""What enable_dss tries out before training: whatever a class does to its logits or adds to its loss is refused."""

import logging

import pytest
import torch

from fastdss import UserError, enable_dss
from fastdss.errors import UserTypeError
from fastdss.models.causal_lm import logit_scale_and_softcap
from tests.matrix.tiny import tiny_model
from tests.support.tiny_models import tiny_model as tiny_family

IMAGE_WORDS = {"<image>": 100, "IMGIMGAZ": 90, "IMGIMGBZ": 91}


def whose_logits(change):
    """A Llama of the tiny sort whose forward changes its logits."""
    model = tiny_family()
    original = type(model)

    class Changed(original):
        def forward(self, *args, **kwargs):
            output = super().forward(*args, **kwargs)
            output.logits = change(output.logits)
            return output

    model.__class__ = Changed
    return model


def test_a_class_that_hides_words_is_refused_by_name():
    """Chameleon hides the words of images. Its lowest logit is then so low that any error was small beside it."""
    with pytest.raises(UserError, match="ChameleonForConditionalGeneration computes its logits in a way"):
        enable_dss(tiny_model("ChameleonForConditionalGeneration", vocabulary_map=IMAGE_WORDS))
    assert enable_dss(tiny_model("ChameleonForConditionalGeneration"))


@pytest.mark.parametrize(
    "change",
    [
        lambda logits: 30 * torch.tanh(logits / 30),
        lambda logits: logits.clamp(max=20.0),
        lambda logits: logits - 1e-4 * logits.square(),
        lambda logits: logits.index_fill(-1, torch.tensor([17]), torch.finfo(logits.dtype).min),
    ],
    ids=["softcap", "bound", "bend", "hidden word"],
)
def test_what_shows_in_large_logits_only_is_noticed_in_a_new_model(change):
    model = whose_logits(change)
    model.lm_head.weight.data *= 1e-3  # the logits of a model that was just made
    with pytest.raises(UserError, match="Changed computes its logits in a way fastdss does not know"):
        enable_dss(model)


def test_a_parameter_behind_the_head_is_noticed_while_it_changes_nothing():
    temperature = torch.nn.Parameter(torch.ones((), dtype=torch.float64))
    model = whose_logits(lambda logits: logits * temperature)
    with pytest.raises(UserTypeError, match="Changed changes its logits by a parameter that trains"):
        enable_dss(model)
    assert torch.is_grad_enabled()
    temperature.requires_grad_(False)
    enable_dss(model)


@pytest.mark.parametrize("size", [1.0, 1e-3])
@pytest.mark.parametrize("family", ["Gemma2", "Granite", "Cohere2", "Llama", "Phi"])
def test_scale_and_softcap_are_found_at_any_size_of_logits(family, size):
    model = tiny_family(family)
    model.get_output_embeddings().weight.data *= size
    found = logit_scale_and_softcap(enable_dss(model))
    assert found == logit_scale_and_softcap(tiny_family(family))
    expected = model(input_ids=torch.arange(3)[None]).logits
    ours = model(input_ids=torch.arange(3)[None], dss_ask="logits").logits
    assert torch.allclose(ours, expected, rtol=1e-9, atol=0)


def test_a_term_that_the_class_adds_to_its_loss_is_refused_by_name():
    with pytest.raises(UserError, match=r"BambaForCausalLM adds a term to its loss beside the cross-entropy"):
        enable_dss(tiny_model("BambaForCausalLM", z_loss_coefficient=1e-3))
    assert enable_dss(tiny_model("BambaForCausalLM", z_loss_coefficient=0.0))
    with pytest.raises(UserError, match=r"BambaForCausalLM adds a term"):
        enable_dss(tiny_model("BambaForCausalLM", torch.bfloat16, z_loss_coefficient=1e-3))


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("Blip2ForConditionalGeneration", "cannot be tried on a few tokens of text alone"),
        ("Kosmos2ForConditionalGeneration", "cannot be tried on a few tokens of text alone"),
        ("MusicgenForCausalLM", ": expected one embedding of tokens, got ModuleList"),
        ("ProphetNetForCausalLM", "computes its logits in a way fastdss does not know"),
    ],
)
def test_classes_that_cannot_be_tried_are_refused_by_name(name, why):
    with pytest.raises((UserError, UserTypeError), match=f"{name}.*{why}|{name}{why}"):
        enable_dss(tiny_model(name))


def test_the_auxiliary_loss_of_experts_is_no_stranger():
    model = tiny_family("Mixtral")
    model.config.output_router_logits = True
    assert enable_dss(model)


def test_labels_that_a_class_does_not_shift_are_told(caplog):
    with caplog.at_level(logging.WARNING, logger="fastdss"):
        enable_dss(tiny_family())
    assert not caplog.records
    with caplog.at_level(logging.WARNING, logger="fastdss"):
        enable_dss(tiny_model("BartForCausalLM"))
    assert "BartForCausalLM does not shift labels in its own loss" in caplog.text


def test_a_loss_that_a_forward_computes_of_another_column_is_refused():
    model = tiny_family()
    original = type(model)

    class WithRouter(original):
        def forward(self, *args, router_labels=None, **kwargs):
            output = super().forward(*args, **kwargs)
            if router_labels is not None:
                output.loss = router_labels.double().mean() + (output.loss or 0)
            return output

    model.__class__ = WithRouter
    enable_dss(model, kl_scale=0.0)
    ids = torch.arange(3, 9)[None]
    batch = {"input_ids": ids, "labels": ids, "token_weights": torch.ones(ids.shape).double()}
    assert model(**batch).loss.isfinite()
    with pytest.raises(UserError, match=r"WithRouter computed a loss of its own .*router_labels"):
        model(**batch, router_labels=torch.ones(1))


def test_a_forward_that_was_compiled_before():
    """New hooks do not run within what torch.compile made before; the comparison of logits is then all there is."""
    model = tiny_family("Gemma2")
    model.compile(backend="eager")
    model(input_ids=torch.arange(3)[None], use_cache=False, return_dict=True)
    assert logit_scale_and_softcap(enable_dss(model)) == logit_scale_and_softcap(tiny_family("Gemma2"))
