"""Classes that Trainer scales differently, that are no causal LM, or that count experts: right, or refused by name."""

import logging

import pytest
import torch
import transformers

pytest.importorskip("accelerate", reason="needs the [train] extra")

from datasets import Dataset

from fastdss import DSSCollator, DSSTrainer, UserError, enable_dss
from tests.matrix.cells import Case, compare, make_rows, through
from tests.matrix.tiny import runnable, tiny_model
from tests.support.tiny_models import assert_same
from tests.support.trainers import InOrder, arguments

LOGGER = "fastdss.train.trainer_data"


def moved(model, data, folder, trainer=InOrder, **options):
    """What one step of plain descent took from the weights: the gradient."""
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trainer(model, arguments(folder, max_steps=1, learning_rate=1.0, **options), train_dataset=data).train()
    return {name: before[name] - p.detach() for name, p in model.named_parameters()}


# They say accepts_loss_kwargs = False: Trainer then divides each micro-batch by its own labels.
@pytest.mark.parametrize("name", ["Qwen2_5_VLForConditionalGeneration", "Qwen3VLForConditionalGeneration"])
@pytest.mark.parametrize("shaped", [True, False])
def test_four_times_two_is_one_times_eight(name, shaped, tmp_path):
    assert getattr(transformers, name).accepts_loss_kwargs is False
    rows = make_rows() + make_rows(seed=5)
    if not shaped:  # each micro-batch's mean, as the class divides it: equal sizes make them one
        rows = [{key: make_rows()[0][key] for key in ("input_ids", "labels")}] * 8
    data = Dataset.from_list(rows)
    whole = moved(tiny_model(name), data, tmp_path, per_device_train_batch_size=8)
    parts = moved(tiny_model(name), data, tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    assert_same(parts, whole, 1e-6 if shaped else 1e-5)


@pytest.mark.parametrize("kind", ["Bart", "MBart"])
def test_encoder_decoders_are_refused(kind):
    sizes = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "vocab_size": 61}
    config = getattr(transformers, f"{kind}Config")(**sizes, **heads)
    model = getattr(transformers, f"{kind}ForConditionalGeneration")(config)
    with pytest.raises(UserError, match=rf"{kind}ForConditionalGeneration is an encoder-decoder"):
        enable_dss(model)


def test_the_decoder_of_one_is_a_causal_model():
    model = tiny_model("BartForCausalLM")
    assert enable_dss(model) is model


@pytest.mark.parametrize("kind", ["BertForMaskedLM", "BertLMHeadModel"])
def test_a_model_that_sees_its_labels_is_refused(kind):
    config = transformers.BertConfig(vocab_size=61, hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
    model = getattr(transformers, kind)(config)
    original = type(model)
    with pytest.raises(UserError, match=rf"{kind} is no causal LM as it is configured"):
        enable_dss(model)
    assert type(model) is original


def test_paligemma_needs_its_token_types():
    model = enable_dss(tiny_model("PaliGemmaForConditionalGeneration"))
    with pytest.raises(UserError, match="PaliGemmaForConditionalGeneration needs token_type_ids"):
        through(model, DSSCollator(0)(make_rows()))
    typed = [row | {"token_type_ids": [1] * len(row["input_ids"])} for row in make_rows()]
    assert model(**DSSCollator(0)(typed)).loss.isfinite()


def balanced(name, **options):
    model = tiny_model(name)
    text = model.config.get_text_config(decoder=True)
    text.output_router_logits = True
    for name, value in options.items():
        setattr(text, name, value)
    return model


@pytest.mark.parametrize("name", ["JetMoeForCausalLM", "Qwen3VLMoeForConditionalGeneration", "MixtralForCausalLM"])
def test_the_auxiliary_loss_is_the_classs_own(name):
    model, batch = balanced(name), DSSCollator(0)(make_rows())
    plain = {key: batch[key] for key in ("input_ids", "attention_mask", "labels")}
    own = model(**plain, output_router_logits=True)
    added = own.loss - model(**plain, output_router_logits=False).loss
    output = enable_dss(model)(
        **{k: v.double() if k in ("token_weights", "ref_logprobs") else v for k, v in batch.items()}
    )
    assert output.aux_loss.item() == pytest.approx(own.aux_loss.item(), rel=1e-6)
    assert (output.loss - output.ce - output.kl).item() == pytest.approx(added.item(), rel=1e-3)


@pytest.mark.parametrize("name", ["MixtralForCausalLM", "GptOssForCausalLM"])  # one packs as given, one with masks
def test_padding_at_the_end_of_a_packed_row_balances_nothing(name):
    model = enable_dss(balanced(name))
    found = [
        through(model, DSSCollator(0, padding_free=True, pad_to_multiple_of=multiple)(make_rows()))
        for multiple in (None, 64)
    ]
    assert compare(*found[1], found[0]) < 1e-6


def test_a_class_without_an_auxiliary_loss_says_so_once(caplog):
    model = enable_dss(balanced("Glm4MoeForCausalLM"))
    for _ in range(2):
        assert through(model, DSSCollator(0)(make_rows()))[0].isfinite()
    told = [record for record in caplog.records if "Glm4MoeForCausalLM has no auxiliary loss" in record.message]
    assert len(told) == 1


@pytest.mark.parametrize(("end", "warned"), [(2, False), (7, True)])
def test_answers_that_never_stop_are_named(end, warned, tmp_path, caplog):
    rows = [
        {**row, "input_ids": [*row["input_ids"][:-1], end], "labels": [*row["labels"][:-1], end]} for row in make_rows()
    ]
    with caplog.at_level(logging.WARNING, LOGGER):
        DSSTrainer(tiny_model("LlamaForCausalLM"), arguments(tmp_path), train_dataset=Dataset.from_list(rows))
    assert (
        any("none of the first 4 rows ends with a label at which generate stops (2)" in m for m in caplog.messages)
        == warned
    )


def test_packed_answers_stop_document_by_document(tmp_path, caplog):
    rows = [
        {**row, "input_ids": [*row["input_ids"][:-1], 2], "labels": [*row["labels"][:-1], 2]} for row in make_rows()
    ]
    rows.append(make_rows()[0])
    packed = {name: [value for row in rows for value in row[name]] for name in rows[0]}
    data = Dataset.from_list([packed | {"seq_lengths": [len(row["input_ids"]) for row in rows]}])
    DSSTrainer(tiny_model("LlamaForCausalLM"), arguments(tmp_path), train_dataset=data)
    assert not any("stops" in message for message in caplog.messages)


def test_a_class_that_cannot_pack_is_refused_before_the_first_step(tmp_path):
    rows = make_rows()
    packed = {name: [value for row in rows for value in row[name]] for name in rows[0]}
    data = Dataset.from_list([packed | {"seq_lengths": [len(row["input_ids"]) for row in rows]}])
    with pytest.raises(UserError, match="MambaForCausalLM cannot keep the documents of a packed row apart"):
        DSSTrainer(tiny_model("MambaForCausalLM"), arguments(tmp_path), train_dataset=data)


def test_positions_of_rows_packed_elsewhere_reach_a_collator_whose_model_takes_none(tmp_path):
    rows = make_rows()
    packed = {name: [value for row in rows for value in row[name]] for name in rows[0]}
    packed["position_ids"] = [position for row in rows for position in range(len(row["input_ids"]))]
    with pytest.raises(UserError, match="MambaForCausalLM cannot keep the documents of a packed row apart"):
        DSSTrainer(tiny_model("MambaForCausalLM"), arguments(tmp_path), train_dataset=Dataset.from_list([packed]))
    plain = Dataset.from_list([row | {"position_ids": list(range(len(row["input_ids"])))} for row in rows] + [packed])
    trainer = InOrder(tiny_model("MambaForCausalLM"), arguments(tmp_path, max_steps=2), train_dataset=plain)
    with pytest.raises(UserError, match="need padding_free=True"):
        trainer.train()


def test_rows_with_images_reach_the_model(tmp_path):
    """Trainer keeps the columns of the forward's signature, the collator those that the model takes."""
    trainer = DSSTrainer(
        tiny_model("LlavaForConditionalGeneration"), arguments(tmp_path), train_dataset=Dataset.from_list(make_rows())
    )
    assert {"pixel_values", "image_sizes"} & set(trainer.data_collator.model_inputs)
    trainer._set_signature_columns_if_needed()
    assert "pixel_values" in trainer._signature_columns


@pytest.mark.parametrize(
    "name",
    runnable(
        "Llama4ForConditionalGeneration",
        "Cohere2VisionForConditionalGeneration",
        "AyaVisionForConditionalGeneration",
        "BertLMHeadModel",
    ),
)
def test_classes_without_a_plain_backbone(name):
    assert Case(name).padded() == "right"


def test_odd_inputs_say_what_was_expected():
    model, batch = enable_dss(tiny_model("LlamaForCausalLM")), DSSCollator(0)(make_rows())
    with pytest.raises(TypeError, match=r"token_weights: expected floating point, got torch\.int64"):
        model(**(batch | {"token_weights": (batch["token_weights"] > 0.5).long()}))
    longer = {"inputs_embeds": torch.zeros(4, 14, 32).double(), "labels": torch.zeros(4, 14).long(), "input_ids": None}
    with pytest.raises(UserError, match="PEFT's prompt learning adds tokens"):
        model(**(batch | longer))
    model.config.return_dict = False
    with pytest.raises(UserError, match=r"config\.return_dict: expected True, got False"):
        model(**batch)
