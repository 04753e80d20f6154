"""Rows with images end to end: from a table through the reference's log-probabilities to the trainer's step."""

import pytest
import torch

pytest.importorskip("accelerate", reason="needs the [train] extra")

from datasets import Dataset

from fastdss import DSSTrainer, UserError, add_reference_logprobs
from tests.matrix.cells import Case, compare, gradients, inputs_of, labels_of, row_terms
from tests.matrix.images import KINDS, image_rows
from tests.support.trainers import arguments

FAMILIES = [
    "Qwen2_5_VLForConditionalGeneration",
    "Gemma3ForConditionalGeneration",
    "Idefics3ForConditionalGeneration",
    "LlavaNextForConditionalGeneration",
]


def case_of(name):
    rows = [{key: value for key, value in row.items() if key != "ref_logprobs"} for row in image_rows(name)]
    rows = [row | {key: value.tolist() for key, value in row.items() if torch.is_tensor(value)} for row in rows]
    return rows, Case(name, image_rows(name), **KINDS[name].overrides)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_table_with_images_is_trained_as_the_rows_alone(name, tmp_path):
    """Rows without an image hold null in its columns, as Arrow has them; the step has two micro-batches."""
    rows, case = case_of(name)
    data = add_reference_logprobs(Dataset.from_list(rows), case.fresh())
    assert data[1].get("pixel_values") is None
    right = case.rows
    for row, table in zip(right, data, strict=True):
        row["ref_logprobs"] = table["ref_logprobs"]
        with torch.no_grad():
            logp = case.plain(**inputs_of(row, torch.float64), use_cache=False).logits[0, :-1].log_softmax(-1)
        labels = torch.tensor(row["labels"])[1:]
        expected = logp.gather(-1, labels.clamp(min=0)[:, None])[:, 0]
        assert ((torch.tensor(row["ref_logprobs"])[1:] - expected)[labels != -100]).abs().max() < 1e-5

    model = case.fresh()
    for parameter in model.parameters():  # away from the reference, so that the KL term is not 0
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)).double()
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    terms = [row_terms(model(**inputs_of(row, torch.float64), use_cache=False).logits, row) for row in right]
    loss = torch.stack(terms).sum() / labels_of(right)
    truth = loss.detach(), gradients(model, loss)

    options = {"max_steps": 1, "learning_rate": 1.0, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    trainer = DSSTrainer(model, arguments(tmp_path, **options), train_dataset=data)
    trainer.train()
    moved = {key: before[key] - p.detach() for key, p in model.named_parameters()}
    found = torch.tensor(trainer.state.log_history[0]["loss"]), {k: g for k, g in moved.items() if g.norm() > 0}
    assert compare(*found, truth) < 1e-4


def test_an_image_changes_what_is_learnt():
    name = "LlavaForConditionalGeneration"
    case = Case(name, image_rows(name), **KINDS[name].overrides)
    other = Case(name, [row | {"pixel_values": -row["pixel_values"]} if "pixel_values" in row else row
                        for row in image_rows(name)], **KINDS[name].overrides)  # fmt: skip
    assert abs(case.right[0] - other.right[0]) > 1e-3


def test_images_with_packed_rows_are_refused_before_training(tmp_path):
    rows, case = case_of("LlavaNextForConditionalGeneration")
    data = Dataset.from_list([row | {"seq_lengths": [len(row["input_ids"])]} for row in rows])
    trainer = DSSTrainer(case.fresh(), arguments(tmp_path, max_steps=1), train_dataset=data, kl_scale=0.0)
    with pytest.raises(UserError, match="image_sizes, pixel_values: documents in one row cannot have them"):
        trainer.train()
