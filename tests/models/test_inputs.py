"""What a model sees of a row goes through collator and reference, or is refused by its name."""

import pytest
import torch

from fastdss import DSSCollator, UserError, enable_dss, pack, reference_logprobs
from fastdss.models.inputs import input_names
from tests.matrix.cells import left_padded, make_rows
from tests.matrix.tiny import tiny_model

ROW = {"input_ids": [5, 6, 7, 8], "labels": [-100, 6, 7, 8], "token_weights": [1.0, 0.5, 0.2, 0.9]}
ROW |= {"ref_logprobs": [0.0, -1.0, -2.0, -1.5]}
collate = DSSCollator(0)


def loss_of(model, batch):
    return model(
        **{k: v.double() if torch.is_tensor(v) and v.is_floating_point() else v for k, v in batch.items()}
    ).loss


# GPT-2's positions are learnt, so a mask alone would not do; Mamba has no mask.
@pytest.mark.parametrize("name", ["LlamaForCausalLM", "GPT2LMHeadModel", "MambaForCausalLM"])
def test_a_row_padded_on_the_left_is_the_row(name):
    model, rows = enable_dss(tiny_model(name)), make_rows()
    left = [left_padded(row) for row in rows]
    for collator in (collate, DSSCollator(0, pad_to_multiple_of=8)):
        assert loss_of(model, collator(left)).item() == loss_of(model, collator(rows)).item()
    found, expected = reference_logprobs(model, left), reference_logprobs(model, rows)
    for row, tight in zip(found, expected, strict=True):
        assert torch.equal(row[3:], tight)
        assert not row[:3].any()
    assert list(pack(left, 64)) == list(pack(rows, 64))


def test_a_mask_with_holes_stays_one():
    holed = ROW | {"attention_mask": [0, 1, 0, 1], "labels": [-100, -100, 7, 8]}
    batch = collate([holed, ROW])
    assert batch["attention_mask"].tolist() == [[1, 0, 1, 0], [1, 1, 1, 1]]
    assert batch["input_ids"][0].tolist() == [6, 7, 8, 0]
    with pytest.raises(UserError, match="example 0: attention_mask: documents in one row cannot"):
        DSSCollator(0, padding_free=True)([holed])
    with pytest.raises(UserError, match="attention_mask hides tokens between others"):
        list(pack([holed], 8))


def test_masks_that_contradict():
    with pytest.raises(UserError, match=r"example 0: labels\[3\] counts, but attention_mask hides the token"):
        collate([ROW | {"attention_mask": [1, 1, 1, 0]}])
    with pytest.raises(UserError, match="example 0: attention_mask hides every token"):
        collate([ROW | {"attention_mask": [0] * 4}])
    with pytest.raises(UserError, match="example 0: expected 4 attention_mask"):
        collate([ROW | {"attention_mask": [1] * 3}])


def test_rows_packed_elsewhere_are_known_by_their_positions():
    packed = ROW | {"position_ids": [0, 1, 0, 1]}
    with pytest.raises(UserError, match=r"example 0: packed examples .* need padding_free=True"):
        collate([packed])
    batch = DSSCollator(0, padding_free=True)([packed])
    assert batch["cu_seq_lens_q"].tolist() == [0, 2, 4]
    assert batch["labels"].tolist() == [[-100, 6, -100, 8]]
    with pytest.raises(UserError, match=r"seq_lengths \[1, 3\], but position_ids start anew after \[2, 2\]"):
        DSSCollator(0, padding_free=True)([packed | {"seq_lengths": [1, 3]}])
    with pytest.raises(UserError, match="cannot be packed"):
        list(pack([packed], 8))
    model = tiny_model("LlamaForCausalLM")
    halves = [{name: value[part] for name, value in ROW.items()} for part in (slice(0, 2), slice(2, 4))]
    expected = torch.cat(reference_logprobs(model, halves))
    assert torch.equal(reference_logprobs(model, [packed])[0], expected)


def test_other_positions_go_along():
    jump = ROW | {"position_ids": [0, 1, 7, 8]}
    assert collate([jump, ROW])["position_ids"].tolist() == [[0, 1, 7, 8], [0, 1, 2, 3]]
    assert "position_ids" not in collate([ROW | {"position_ids": [0, 1, 2, 3]}])
    assert collate([ROW | {"position_ids": [[0, 1, 2, 3]] * 3}])["position_ids"].shape == (3, 1, 4)
    with pytest.raises(UserError, match="position_ids: documents in one row cannot"):
        DSSCollator(0, padding_free=True)([jump])


def test_token_types_decide_what_paligemma_sees():
    """Without them the prefix is causal, or the suffix is not."""
    model, rows = enable_dss(tiny_model("PaliGemmaForConditionalGeneration")), make_rows()
    typed = [row | {"token_type_ids": [0, 0, 0] + [1] * (len(row["input_ids"]) - 3)} for row in rows]
    batch = DSSCollator(0, model_inputs=input_names(model))(typed)
    assert batch["token_type_ids"][1].tolist() == [0, 0, 0, 1, 1, 1] + [0] * 6
    found = reference_logprobs(model, typed)
    for row, logp in zip(typed, found, strict=True):
        given = {name: torch.tensor([row[name]]) for name in ("input_ids", "token_type_ids")}
        with torch.no_grad():
            logits = model(**given, attention_mask=torch.ones(1, len(row["input_ids"]))).logits[0, :-1].log_softmax(-1)
        expected = logits.gather(-1, torch.tensor(row["input_ids"])[1:, None])[1:, 0]
        assert (logp[2:] - expected).abs().max() < 1e-5


def test_what_the_model_does_not_take_is_left_out():
    row = ROW | {"token_type_ids": [0] * 4, "note": "n", "id": 7, "pixel_values": None}
    llama = input_names(tiny_model("LlamaForCausalLM"))
    assert "token_type_ids" not in DSSCollator(0, model_inputs=llama)([row])
    assert "token_type_ids" in collate([row])  # which model comes is not known
    DSSCollator(0, model_inputs=llama, padding_free=True)([row])
    with pytest.raises(UserError, match="token_type_ids: documents in one row cannot"):
        DSSCollator(0, padding_free=True)([row])
    assert {"note", "id", "pixel_values"}.isdisjoint(collate([row]))
    assert input_names(enable_dss(tiny_model("LlamaForCausalLM"))) == llama


def test_an_input_nobody_knows_how_to_batch_is_refused():
    with pytest.raises(UserError, match="column 'inputs_embeds' is an input of the model"):
        DSSCollator(0, model_inputs=frozenset({"inputs_embeds"}))([ROW | {"inputs_embeds": [[0.0]] * 4}])


def test_some_rows_with_token_types_and_some_without():
    with pytest.raises(UserError, match=r"example 1 has \[\], example 0 has \['token_type_ids'\]"):
        collate([ROW | {"token_type_ids": [0] * 4}, ROW])


def test_images_are_joined_image_by_image_or_row_by_row():
    ones = torch.ones
    patches = collate([ROW | {"pixel_values": ones(4, 6), "image_grid_thw": [[1, 2, 2]]}, ROW,
                       ROW | {"pixel_values": 2 * ones(8, 6), "image_grid_thw": [[1, 2, 2], [1, 2, 2]]}])  # fmt: skip
    assert patches["pixel_values"].shape == (12, 6)
    assert patches["image_grid_thw"].tolist() == [[1, 2, 2]] * 3
    tiles = collate([ROW | {"pixel_values": ones(1, 5, 3, 2, 2)}, ROW | {"pixel_values": ones(1, 3, 3, 2, 2)}])
    assert tiles["pixel_values"].shape == (2, 5, 3, 2, 2)
    assert tiles["pixel_values"][1, 3:].abs().sum() == 0
    masked = {"pixel_values": ones(1, 2, 3, 4, 4), "pixel_attention_mask": ones(1, 2, 4, 4).long()}
    rows = collate([ROW | masked, ROW])  # Idefics3: the first dimension counts rows
    assert rows["pixel_values"].shape == (2, 2, 3, 4, 4)
    assert rows["pixel_attention_mask"][1].sum() == 0


@pytest.mark.parametrize(
    "packing", [lambda row: list(pack([row], 8)), lambda row: DSSCollator(0, padding_free=True)([row])]
)
def test_images_are_not_packed(packing):
    images = {"pixel_values": torch.ones(1, 2, 3, 4, 4), "pixel_attention_mask": torch.ones(1, 2, 4, 4).long()}
    with pytest.raises(UserError, match="pixel_values"):
        packing(ROW | images)
