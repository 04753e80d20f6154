"""What the trainers once refused: label smoothing, model_init, Liger without its fused head, a resized vocabulary, rows
of tensors."""

import copy

import datasets
import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("accelerate", reason="needs the [train] extra")

from transformers import BatchEncoding

from fastdss import DSSCollator, DSSConfig, UserError, pack
from fastdss.train.enable import dss_config, enable_dss
from fastdss.train.trainer import DSSTrainer
from tests.support.tiny_models import assert_same, own_logits, plain_loss, tiny_model
from tests.support.trainers import COLUMNS, LR, InOrder, arguments, assert_same_weights, by_hand, rows


def smoothed(model, batch, smoothing=0.1):
    """The plain formula, its cross-entropy smoothed as PyTorch does."""
    logits = own_logits(model, batch)
    labels, weights = batch["labels"][:, 1:], batch["token_weights"][:, 1:]
    counts = labels != -100
    flat = logits[:, :-1][counts].log_softmax(-1)
    smooth = F.cross_entropy(flat, labels[counts], reduction="none", label_smoothing=smoothing)
    plain = F.cross_entropy(flat, labels[counts], reduction="none")
    return plain_loss(logits, batch) + (weights[counts] * (smooth - plain)).sum() / counts.sum()


def test_label_smoothing_is_in_the_cross_entropy(tmp_path):
    data, model, by_hand = rows(4), tiny_model(), tiny_model()
    options = {"max_steps": 1, "label_smoothing_factor": 0.1}
    trainer = InOrder(model, arguments(tmp_path, **options), train_dataset=data)
    assert dss_config(model).label_smoothing == 0.1
    trainer.train()
    batch = DSSCollator(0)(data)
    loss = smoothed(by_hand, batch)
    loss.backward()
    moved = {name: p.detach() - LR * p.grad for name, p in by_hand.named_parameters()}
    assert_same({name: p.detach() for name, p in model.named_parameters()}, moved, 1e-8)
    assert trainer.state.log_history[0]["loss"] == pytest.approx(loss.item(), abs=1e-5)
    with pytest.raises(UserError, match=r"label_smoothing_factor: expected 0\.1 as in DSSConfig, got 0\.2"):
        DSSTrainer(model, arguments(tmp_path, label_smoothing_factor=0.2), train_dataset=data)


def test_batches_without_weights_are_smoothed_as_trainer_does(tmp_path):
    data = [{name: row[name] for name in ("input_ids", "labels")} for row in rows(4)]
    ours = InOrder(tiny_model(), arguments(tmp_path, max_steps=1, label_smoothing_factor=0.1), train_dataset=data)
    ours.train()
    batch = DSSCollator(0)(data)
    logits, labels = own_logits(tiny_model(), batch)[:, :-1].float(), batch["labels"][:, 1:]
    expected = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), label_smoothing=0.1)
    assert ours.state.log_history[0]["loss"] == pytest.approx(expected.item(), abs=1e-4)


def test_models_made_by_model_init_are_shaped(tmp_path):
    data = rows(8)
    for init in (lambda: tiny_model(), lambda trial: tiny_model()):
        made = InOrder(args=arguments(tmp_path), model_init=init, train_dataset=data, kl_scale=0.25)
        made.train()
        given = InOrder(tiny_model(), arguments(tmp_path), train_dataset=data, kl_scale=0.25)
        given.train()
        assert dss_config(made.model) == DSSConfig(kl_scale=0.25)
        weights = {name: p.detach() for name, p in given.model.named_parameters()}
        assert_same({name: p.detach() for name, p in made.model.named_parameters()}, weights, 1e-12)
    with pytest.raises(UserError, match="pass model, not model_init"):
        DSSTrainer(args=arguments(tmp_path), model_init=lambda: tiny_model(), train_dataset=data, ref_model="adapter")


def test_liger_without_its_own_head_is_let_through(tmp_path):
    """What Liger then puts in place are parts of the model; its package need not be there to say so."""
    parts = {"fused_linear_cross_entropy": False, "cross_entropy": False}
    options = {"use_liger_kernel": True, "liger_kernel_config": parts}
    trainer = DSSTrainer(tiny_model(), arguments(tmp_path, **options), train_dataset=rows())
    assert trainer.args.use_liger_kernel


@pytest.mark.parametrize(
    "config",
    [None, {"fused_linear_cross_entropy": True}, {"fused_linear_cross_entropy": False, "cross_entropy": True}],
)
def test_ligers_own_head_is_refused(tmp_path, config):
    args = arguments(tmp_path, use_liger_kernel=True, liger_kernel_config=config)
    with pytest.raises(UserError, match="use_liger_kernel replaces the model's forward"):
        DSSTrainer(tiny_model(), args, train_dataset=rows())


def test_a_reference_with_the_old_vocabulary(tmp_path):
    """Tokens were added to the policy: the reference knows none of them, but the labels' log-probabilities it knows."""
    reference, policy = tiny_model(), tiny_model(seed=5)
    old = copy.deepcopy(reference)
    policy.resize_token_embeddings(70, mean_resizing=False)
    data = [{name: row[name] for name in COLUMNS[:3]} for row in rows(4)]
    batch = DSSCollator(0)(data)
    logp = own_logits(old, batch).log_softmax(-1)[:, :-1].gather(-1, batch["labels"][:, 1:, None].clamp(min=0))[..., 0]
    batch["ref_logprobs"] = F.pad(logp.detach(), (1, 0))
    expected = plain_loss(own_logits(copy.deepcopy(policy), batch), batch).item()
    trainer = InOrder(policy, arguments(tmp_path, max_steps=1), train_dataset=data, ref_model=reference)
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected, abs=1e-5)
    with pytest.raises(UserError, match=r"compares whole vocabularies: expected 70 tokens, got 61"):
        DSSTrainer(enable_dss(policy, kl="reverse"), arguments(tmp_path), train_dataset=data, ref_model=tiny_model())


def test_smoothing_is_an_option_of_enable_dss():
    model, batch = tiny_model(), DSSCollator(0)(rows(4))
    expected = smoothed(model, batch).item()
    batch = {name: v.double() if torch.is_tensor(v) and v.is_floating_point() else v for name, v in batch.items()}
    output = enable_dss(model, label_smoothing=0.1)(**batch)
    assert output.loss.item() == pytest.approx(expected, abs=1e-8)
    assert output.logprobs is None
    log_p = own_logits(model, batch)[:, :-1].log_softmax(-1)
    labels = batch["labels"][:, 1:]
    expected = log_p.gather(-1, labels.clamp(min=0)[..., None])[..., 0].masked_fill(labels == -100, 0)
    with torch.no_grad():
        assert (model(**batch).logprobs[:, 1:] - expected).abs().max() < 1e-9
    with pytest.raises(ValueError, match=r"label_smoothing: expected a number in \[0, 1\), got 1"):
        enable_dss(model, label_smoothing=1)


@pytest.mark.parametrize(
    ("last", "said"),
    [(7, False), (8, False), (9, True), (-100, True)],
    ids=["a stop", "another stop", "Cohere2's kind: an end that is none", "GLM's kind: no end among the labels"],
)
def test_answers_that_never_end_are_said_aloud(last, said, tmp_path, caplog):
    """What ``generate`` stops at must be the last label of some row, or the model learns to go on for ever."""
    data = rows(4)
    for row in data:
        row["labels"] = [*row["labels"][:-2], 5, last]
    model = tiny_model()
    model.generation_config.eos_token_id = [7, 8]
    DSSTrainer(model, arguments(tmp_path), train_dataset=data)
    assert ("what is trained may never end" in caplog.text) == said
    assert ("(7, 8)" in caplog.text) == said


class Tensors(torch.utils.data.Dataset):
    """Rows as one's own data set returns them."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return {name: torch.tensor(value) for name, value in self.rows[index].items()}


FORMS = {
    "torch": lambda rows: datasets.Dataset.from_list(rows).with_format("torch"),
    "numpy": lambda rows: datasets.Dataset.from_list(rows).with_format("numpy"),
    "tensors": Tensors,
    "batch encodings": lambda rows: [BatchEncoding(row) for row in rows],
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_rows_of_lists_arrays_and_tensors_are_the_same_rows(packed, form, tmp_path):
    data = rows(4)
    expected = by_hand(tiny_model(), data, 1, 4)
    data = list(pack(FORMS[form](data), 64)) if packed else data
    assert all(isinstance(value, list) for row in data for value in row.values())
    model = tiny_model()
    InOrder(model, arguments(tmp_path, max_steps=1), train_dataset=FORMS[form](data)).train()
    assert_same_weights(model, expected)
