"""DSSTrainer takes the steps of a hand-written loop with the plain formula, and refuses what would not."""

import pytest
import torch

from tests.matrix.tiny import tiny_model as tiny_class
from tests.support.tiny_models import own_logits, plain_loss, tiny_batch, tiny_model, tiny_tokenizer

pytest.importorskip("accelerate", reason="needs the [train] extra")

from fastdss import DSSCollator, Guard, pack, prepare_dss_dataset, star_scores
from fastdss.train.config import DSSConfig
from fastdss.train.enable import dss_config, enable_dss
from fastdss.train.trainer import DSSTrainer
from tests.support.trainers import COLUMNS, InOrder, arguments, assert_same_weights, by_hand, rows


@pytest.mark.parametrize("source", ["list", "Dataset"])
def test_steps_are_those_of_the_plain_formula(tmp_path, source):
    data = rows()
    if source == "Dataset":
        data = pytest.importorskip("datasets").Dataset.from_list([row | {"note": "unused"} for row in data])
    model = tiny_model()
    InOrder(model=model, args=arguments(tmp_path), train_dataset=data).train()
    assert_same_weights(model, by_hand(tiny_model(), rows(), 2, 4))


def test_four_times_two_is_one_times_eight(tmp_path):
    trained = []
    for size, accumulation in ((8, 1), (2, 4)):
        model = tiny_model()
        args = arguments(tmp_path, per_device_train_batch_size=size, gradient_accumulation_steps=accumulation)
        trainer = InOrder(model=model, args=args, train_dataset=rows())
        trainer.train()
        trained.append((model, [entry for entry in trainer.state.log_history if "ce" in entry]))
    assert_same_weights(trained[0][0], trained[1][0], 1e-8)
    for one, four in zip(trained[0][1], trained[1][1], strict=True):
        for key in ("loss", "ce", "kl", "token_weight", "share_below_half"):
            assert four[key] == pytest.approx(one[key], abs=1e-6), key
    assert_same_weights(trained[0][0], by_hand(tiny_model(), rows(), 2, 8))


@pytest.mark.parametrize("name", ["GPT2LMHeadModel", "LlamaForCausalLM"])
def test_the_first_label_of_a_row_is_no_item(tmp_path, name):
    """A collator of the user's own may leave it in; transformers counts it for classes whose loss it does not know."""

    def collate(examples):
        batch = DSSCollator(0)(examples)
        batch["labels"][:, 0] = batch["input_ids"][:, 0]
        return batch

    model, started = tiny_class(name), tiny_class(name)
    args = arguments(tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=2, max_steps=1)
    InOrder(model=model, args=args, train_dataset=rows(), data_collator=collate).train()
    assert_same_weights(model, by_hand(started, rows(), 1, 4))


def test_the_auxiliary_loss_of_experts_is_a_mean_over_micro_batches(tmp_path):
    """The same micro-batch twice is the batch once: a sum over micro-batches would double the auxiliary loss."""
    trained = []
    for accumulation in (1, 2):
        model = tiny_model("Mixtral")
        args = arguments(tmp_path, gradient_accumulation_steps=accumulation, max_steps=1)
        trainer = InOrder(model=model, args=args, train_dataset=rows(4) * accumulation, eval_dataset=rows(4))
        trainer.train()
        trained.append((model, trainer.state.log_history[0]))
    assert_same_weights(trained[0][0], trained[1][0], 1e-12)
    for _, entry in trained:
        total = entry["ce"] + entry["kl"] + 0.1 * entry["aux_loss"]
        assert entry["loss"] == pytest.approx(total, abs=1e-6)
    assert "eval_aux_loss" in trainer.evaluate()


def test_weights_without_a_reference(tmp_path):
    trainer = DSSTrainer(model=tiny_model(), args=arguments(tmp_path), train_dataset=rows(columns=COLUMNS[:3]))
    with pytest.raises(ValueError, match=r"token_weights need a reference: .* a column ref_logprobs or ref_model="):
        trainer.train()


def test_a_data_set_that_lacks_the_references_column_is_found_at_once(tmp_path):
    """Not hours later, by the first evaluation."""
    data = {"train_dataset": rows(), "eval_dataset": {"all": rows(), "few": rows(columns=COLUMNS[:3])}}
    with pytest.raises(ValueError, match="in all data sets, or ref_model=, got data sets with and without them"):
        DSSTrainer(model=tiny_model(), args=arguments(tmp_path), **data)


def test_without_weights_it_is_the_plain_trainer(tmp_path):
    from transformers import Trainer

    data = rows(columns=COLUMNS[:2])
    shaped, plain = tiny_model(), tiny_model()
    for cls, model in ((DSSTrainer, shaped), (Trainer, plain)):
        trainer = cls(
            model=model, args=arguments(tmp_path), train_dataset=data, eval_dataset=data, data_collator=DSSCollator(0)
        )
        trainer.train()
        assert "eval_ce" not in trainer.evaluate()
        assert all("ce" not in entry for entry in trainer.state.log_history)
    assert_same_weights(shaped, plain, 0)


def test_training_without_weights_is_said_once(tmp_path, caplog):
    """A column of another name would be plain fine-tuning in silence."""
    data = [row | {"weights": row["token_weights"]} for row in rows()]
    data = [{name: row[name] for name in ("input_ids", "labels", "weights")} for row in data]
    DSSTrainer(model=tiny_model(), args=arguments(tmp_path), train_dataset=data).train()
    assert caplog.text.count("a batch without token_weights is trained without shaping; it has input_ids, labels") == 1


def test_scores_are_prepared_in_whatever_they_come(tmp_path):
    """A list of scored rows, and what star_scores returned, ended in errors that did not say so."""
    pytest.importorskip("datasets", reason="needs the [train] extra")
    batch = {"prompt": ["Who?", "Where?"], "response": ["Nobody that you know.", "Behind the old house, by the sea."]}
    star = star_scores(Guard.tiny(), batch, every=2)
    listed = [
        {"prompt": prompt, "response": response, "scores": scored.scores.tolist(), "ends": scored.ends}
        for prompt, response, scored in zip(*batch.values(), star, strict=True)
    ]
    losses = []
    for data in (star, listed):
        model, tokenizer = tiny_model(vocab_size=320), tiny_tokenizer()
        options = {"processing_class": tokenizer, "kl_scale": 0.0, "eval_dataset": data}
        losses.append(DSSTrainer(model=model, args=arguments(tmp_path), **options).evaluate()["eval_ce"])
    prepared = prepare_dss_dataset(star, tiny_tokenizer())
    collated = DSSCollator(0)([prepared[index] for index in range(2)])
    collated["ref_logprobs"] = torch.zeros_like(collated["token_weights"])  # of no weight
    expected = plain_loss(own_logits(tiny_model(vocab_size=320), collated), collated, kl_scale=0.0)
    assert losses == [pytest.approx(expected.item(), abs=1e-6)] * 2


def test_packed_rows_train_without_padding(tmp_path):
    packed = list(pack(rows(), 20))
    trainer = DSSTrainer(model=tiny_model(), args=arguments(tmp_path), eval_dataset=packed)
    assert trainer.data_collator.padding_free
    unpacked = DSSTrainer(model=tiny_model(), args=arguments(tmp_path), eval_dataset=rows())
    assert not unpacked.data_collator.padding_free
    found, expected = trainer.evaluate(), unpacked.evaluate()
    assert found["eval_ce"] == pytest.approx(expected["eval_ce"], abs=1e-6)
    assert found["eval_kl"] == pytest.approx(expected["eval_kl"], abs=1e-6)


def test_resuming_continues_the_same_run(tmp_path):
    options = {"max_steps": 4, "per_device_train_batch_size": 2, "optim": "adamw_torch", "learning_rate": 1e-2}
    whole = DSSTrainer(model=tiny_model(), args=arguments(tmp_path / "a", **options), train_dataset=rows())
    whole.train()
    saving = {"save_strategy": "steps", "save_steps": 2}
    first = DSSTrainer(model=tiny_model(), args=arguments(tmp_path / "b", **options, **saving), train_dataset=rows())
    first.train()
    second = DSSTrainer(model=tiny_model(), args=arguments(tmp_path / "b", **options), train_dataset=rows())
    second.train(resume_from_checkpoint=str(tmp_path / "b" / "checkpoint-2"))
    assert second.state.global_step == 4
    assert_same_weights(second.model, whole.model, 1e-9)


def test_mixed_precision_and_gradient_checkpointing(tmp_path):
    model = tiny_model(dtype=torch.float32)
    args = arguments(tmp_path, bf16=True, gradient_checkpointing=True, learning_rate=0.0)
    trainer = InOrder(model=model, args=args, train_dataset=rows())
    trainer.train()
    exact = InOrder(model=tiny_model(), args=arguments(tmp_path, learning_rate=0.0), train_dataset=rows())
    exact.train()
    for rounded, true in zip(trainer.state.log_history[:2], exact.state.log_history[:2], strict=True):
        assert rounded["ce"] == pytest.approx(true["ce"], rel=2e-2)
        assert rounded["token_weight"] == pytest.approx(true["token_weight"], abs=1e-6)
    trainer.save_model(str(tmp_path / "saved"))
    restored = trainer.accelerator.unwrap_model(trainer.model_wrapped)
    assert restored(**tiny_batch(dtype=torch.float32)).loss.isfinite()


def test_a_collator_that_leaves_out_needed_rows_is_refused():
    """Its live rows would drop every token of weight 0, and with the full KL every term."""
    with pytest.raises(ValueError, match=r"leaves out rows that kl_scale=0\.5 needs"):
        DSSTrainer(
            model=tiny_model(), args=arguments("unused"), train_dataset=rows(), data_collator=DSSCollator(0, kl_scale=0)
        )


def test_a_collator_with_other_options_than_the_model_is_refused(tmp_path):
    said = DSSConfig(kl="k3", kl_scale=0.25)

    def trainer(collator):
        args = arguments(tmp_path, max_steps=1)
        return InOrder(model=tiny_model(), args=args, config=said, train_dataset=rows(), data_collator=collator)

    with pytest.raises(ValueError, match=r"DSSCollator\(config=\): kl: expected k3 as in the model, got k2; kl_scale"):
        trainer(DSSCollator(0, config=DSSConfig()))
    for collator in (DSSCollator(0, config=said), DSSCollator(0)):
        running = trainer(collator)
        running.train()
        assert_same_weights(running.model, by_hand(tiny_model(), rows(), 1, 4, kl="k3", kl_scale=0.25))


def test_settings_said_once():
    model = enable_dss(tiny_model(), kl="k3", kl_scale=0.25)
    trainer = DSSTrainer(model=model, args=arguments("unused"), train_dataset=rows())
    assert dss_config(trainer.model) == DSSConfig("k3", 0.25)
    assert trainer.data_collator.agreed() == DSSConfig("k3", 0.25)
    with pytest.raises(ValueError, match=r"kl: expected k3 as in enable_dss, got k1: say it once"):
        DSSTrainer(model=model, args=arguments("unused"), train_dataset=rows(), kl="k1")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"compute_loss_func": max}, ValueError, "compute_loss_func.* got <built-in function max>"),
        ({"args": {"use_liger_kernel": True}}, ValueError, "use_liger_kernel .*fused_linear_cross_entropy.* got None"),
        ({"kl": "reverse"}, ValueError, "needs ref_model="),
        ({"ref_model": "adapter"}, TypeError, "needs a PEFT model, got LlamaForCausalLM"),
        ({"ref_model": 7}, TypeError, "expected None, 'adapter' or a model, got int"),
        ({"model": None}, ValueError, "expected a causal LM"),
    ],
)
def test_errors(options, error, message):
    args = arguments("unused", **options.pop("args", {}))
    with pytest.raises(error, match=message):
        DSSTrainer(**({"model": tiny_model(), "args": args, "train_dataset": rows()} | options))
