"""DSSTrainer takes the steps of a hand-written loop with the plain formula, and logs what the loss is made of."""

import copy

import pytest
import torch
from transformers import TrainingArguments

from tests.support.tiny_models import VOCAB, own_logits, plain_loss, tiny_batch, tiny_model

pytest.importorskip("accelerate", reason="needs the [train] extra")

from fastdss import DSSCollator, pack
from fastdss.train.config import DSSConfig
from fastdss.train.enable import disable_dss, dss_config, enable_dss
from fastdss.train.reference import reference_logprobs
from fastdss.train.trainer import DSSTrainer

COLUMNS = ("input_ids", "labels", "token_weights", "ref_logprobs")
LR = 0.1


def rows(count=8, columns=COLUMNS):
    batch = tiny_batch(rows=count, dtype=torch.float32)
    lengths = batch["attention_mask"].sum(1).tolist()
    return [{name: batch[name][i, :n].tolist() for name in columns} for i, n in enumerate(lengths)]


def arguments(folder, **options):
    defaults = {
        "output_dir": str(folder),
        "use_cpu": True,
        "report_to": "none",
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "max_steps": 2,
        "learning_rate": LR,
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
        "data_seed": 0,
    }
    return TrainingArguments(**(defaults | options))


class InOrder(DSSTrainer):
    def _get_train_sampler(self, train_dataset=None):
        return torch.utils.data.SequentialSampler(self.train_dataset)


def by_hand(model, data, steps, size, **options):
    """SGD on the plain formula."""
    for step in range(steps):
        batch = DSSCollator(0)(data[step * size % len(data) :][:size])
        model.zero_grad()
        plain_loss(own_logits(model, batch), batch, **options).backward()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter -= LR * parameter.grad
    return model


def assert_same_weights(found, expected, tolerance=1e-8):
    expected = dict(expected.named_parameters())
    for name, parameter in found.named_parameters():
        error = (parameter - expected[name]).abs().max()
        assert error <= tolerance, f"{name}: {error:.3g}"


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


def test_logs_are_means_over_labels(tmp_path):
    data = rows()
    trainer = InOrder(model=tiny_model(), args=arguments(tmp_path, learning_rate=0.0), train_dataset=data)
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    for entry, part in zip(entries, (data[:4], data[4:]), strict=True):
        counted = [w for r in part for w, label in zip(r["token_weights"], r["labels"], strict=True) if label != -100]
        assert entry["token_weight"] == pytest.approx(sum(counted) / len(counted), abs=1e-6)
        assert entry["share_below_half"] == pytest.approx(sum(w < 0.5 for w in counted) / len(counted))
        assert entry["ce"] + entry["kl"] == pytest.approx(entry["loss"], abs=1e-3)
        batch = DSSCollator(0)(part)
        logits = own_logits(tiny_model(), batch)
        assert entry["ce"] == pytest.approx(plain_loss(logits, batch, kl_scale=0.0).item(), abs=1e-6)
        entropy, accuracy = told(logits, batch)
        assert entry["entropy"] == pytest.approx(entropy, abs=1e-6)
        assert entry["mean_token_accuracy"] == pytest.approx(accuracy, abs=1e-6)


def told(logits, batch):
    """Means of entropy and correctness over the labels of a batch, by the model's own logits."""
    labels = batch["labels"][:, 1:]
    counts = labels != -100
    p = logits[:, :-1].double().softmax(-1)[counts]
    return torch.special.entr(p).sum(-1).mean().item(), (p.argmax(-1) == labels[counts]).double().mean().item()


@pytest.mark.parametrize("kl", ["k2", "reverse"])
def test_entropy_and_accuracy_in_evaluation(tmp_path, kl):
    """Padded and packed, with stored columns and a live reference, for all ranks' batches at once."""
    data, model = rows(6), tiny_model()
    reference = {"ref_model": tiny_model(seed=1)} if kl == "reverse" else {}
    batch = DSSCollator(0)(data)
    entropy, accuracy = told(own_logits(tiny_model(), batch), batch)
    assert 0 < accuracy < 1
    for given in (data, list(pack(data, 100))):
        args = arguments(tmp_path, per_device_eval_batch_size=6)
        metrics = DSSTrainer(model=model, args=args, eval_dataset=given, kl=kl, **reference).evaluate()
        assert metrics["eval_entropy"] == pytest.approx(entropy, abs=1e-6)
        assert metrics["eval_mean_token_accuracy"] == pytest.approx(accuracy, abs=1e-6)


def test_what_a_forward_says_of_its_labels():
    """Entropy and correctness stand where the labels do, and are there only where they are asked for."""
    model, batch = enable_dss(tiny_model()), DSSCollator(0)(rows(4))
    found = model(**batch, token_stats=True)
    labels = batch["labels"]
    p = own_logits(tiny_model(), batch).double().softmax(-1)[:, :-1]
    counts = torch.nn.functional.pad(labels[:, 1:] != -100, (1, 0))
    entropy = torch.nn.functional.pad(torch.special.entr(p).sum(-1), (1, 0)).masked_fill(~counts, 0)
    torch.testing.assert_close(found.entropy.double(), entropy, rtol=1e-5, atol=1e-5)
    assert torch.equal(found.correct, torch.nn.functional.pad(p.argmax(-1) == labels[:, 1:], (1, 0)) & counts)
    assert model(**batch).entropy is None
    with pytest.raises(ValueError, match="token_stats given without token_weights"):
        model(batch["input_ids"], labels=labels, token_stats=True)


def test_tokens_that_no_loss_computes_are_in_no_mean(tmp_path):
    """Without a KL term words of weight 0 cost nothing, and nothing is known of them."""
    data = rows(2)
    metrics = DSSTrainer(model=tiny_model(), args=arguments(tmp_path), eval_dataset=data, kl_scale=0.0).evaluate()
    batch = DSSCollator(0)(data)
    live = batch["labels"].masked_fill(batch["token_weights"] == 0, -100)
    entropy, accuracy = told(own_logits(tiny_model(), batch), batch | {"labels": live})
    assert metrics["eval_entropy"] == pytest.approx(entropy, abs=1e-6)
    assert metrics["eval_mean_token_accuracy"] == pytest.approx(accuracy, abs=1e-6)


def test_logs_of_a_run_know_nothing_of_an_earlier_one(tmp_path):
    """A last step without a log of its own, or an attempt that ran out of memory, went into the next run's first."""
    trainer = InOrder(
        model=tiny_model(),
        args=arguments(tmp_path, learning_rate=0.0, max_steps=3, logging_steps=2, per_device_train_batch_size=2),
        train_dataset=rows(),
    )
    found = []
    for _ in range(2):
        trainer.train()
        found.append(trainer.state.log_history[0])
    for key in ("ce", "kl", "token_weight", "share_below_half"):
        assert found[1][key] == found[0][key], key


def test_several_evaluation_sets(tmp_path):
    trainer = DSSTrainer(
        model=tiny_model(), args=arguments(tmp_path), eval_dataset={"packed": list(pack(rows(), 20)), "more": rows(6)}
    )
    assert trainer.data_collator.padding_free
    metrics = trainer.evaluate()
    alone = DSSTrainer(model=tiny_model(), args=arguments(tmp_path), eval_dataset=rows())
    assert metrics["eval_packed_ce"] == pytest.approx(alone.evaluate()["eval_ce"], abs=1e-6)
    assert "eval_more_kl" in metrics


def test_weights_without_a_reference(tmp_path):
    trainer = DSSTrainer(model=tiny_model(), args=arguments(tmp_path), train_dataset=rows(columns=COLUMNS[:3]))
    with pytest.raises(ValueError, match=r"token_weights need a reference: .* a column ref_logprobs or ref_model="):
        trainer.train()


def test_evaluation(tmp_path):
    data = rows(6)
    trainer = DSSTrainer(model=tiny_model(), args=arguments(tmp_path), eval_dataset=data)
    metrics = trainer.evaluate()
    batch = DSSCollator(0)(data)
    logits = own_logits(tiny_model(), batch)
    ce = plain_loss(logits, batch, kl_scale=0.0).item()
    assert metrics["eval_ce"] == pytest.approx(ce, abs=1e-6)
    assert metrics["eval_kl"] == pytest.approx(plain_loss(logits, batch).item() - ce, abs=1e-6)
    assert 0 < metrics["eval_share_below_half"] < 1
    assert trainer.state.log_history[-1]["eval_ce"] == metrics["eval_ce"]
    assert "test_kl" in trainer.predict(data, metric_key_prefix="test").metrics


def test_compute_metrics_gets_the_labels_logprobs(tmp_path):
    seen = {}

    def compute(prediction):
        seen["logprobs"], seen["labels"] = prediction.predictions, prediction.label_ids
        return {"mean_logprob": float(prediction.predictions[prediction.label_ids != -100].mean())}

    data = rows(4)
    trainer = DSSTrainer(model=tiny_model(), args=arguments(tmp_path), eval_dataset=data, compute_metrics=compute)
    metrics = trainer.evaluate()
    assert seen["logprobs"].shape == seen["labels"].shape == (4, 9)
    batch = DSSCollator(0)(data)
    batch["token_weights"].fill_(1)
    assert metrics["eval_mean_logprob"] == pytest.approx(-plain_loss(own_logits(tiny_model(), batch), batch).item())


@pytest.mark.parametrize(
    ("kl", "family"), [("k2", "Llama"), ("reverse", "Llama"), ("forward", "Phi")]
)  # Phi's head has a bias, of its own in each of the two models
def test_a_frozen_model_as_live_reference(tmp_path, kl, family):
    data, reference = rows(columns=COLUMNS[:3]), tiny_model(family, seed=5)
    model = tiny_model(family)
    InOrder(
        model=model, args=arguments(tmp_path), train_dataset=data, kl=kl, ref_model=copy.deepcopy(reference)
    ).train()
    if kl == "k2":
        known = reference_logprobs(reference, data)
        expected = by_hand(tiny_model(), [r | {"ref_logprobs": k} for r, k in zip(data, known, strict=True)], 2, 4)
        assert_same_weights(model, expected, 1e-6)  # stored in single precision
        return
    expected = tiny_model(family)
    for step in range(2):
        batch = DSSCollator(0)(data[step * 4 :][:4])
        ref_logits = own_logits(reference, batch).detach()
        expected.zero_grad()
        plain_loss(own_logits(expected, batch), batch, kl=kl, ref_logits=ref_logits).backward()
        for parameter in expected.parameters():
            parameter.data -= LR * parameter.grad
    assert_same_weights(model, expected)


@pytest.mark.parametrize("kl", ["k2", "reverse"])
@pytest.mark.parametrize(
    ("family", "other"),
    [
        ("Granite", {"logits_scaling": 2.0, "hidden_size": 64}),  # Granite's sizes do differ in it
        ("Gemma2", {"final_logit_softcapping": None}),
        ("Llama", {}),
    ],
)
def test_a_live_reference_keeps_its_own_scale_and_softcap(tmp_path, family, other, kl):
    """The policy's were used: another KL in silence, wherever the two configs differ."""
    data, reference, model = rows(4, COLUMNS[:3]), tiny_model(family, seed=5, **other), tiny_model(family)
    batch = DSSCollator(0)(data)
    ref_logits = own_logits(reference, batch).detach()
    log_q = ref_logits[:, :-1].log_softmax(-1).gather(-1, batch["labels"][:, 1:].clamp(min=0)[..., None])[..., 0]
    batch["ref_logprobs"] = torch.nn.functional.pad(log_q, (1, 0))
    expected = tiny_model(family)
    plain_loss(own_logits(expected, batch), batch, kl=kl, ref_logits=ref_logits).backward()
    for parameter in expected.parameters():
        parameter.data -= LR * parameter.grad
    args = arguments(tmp_path, max_steps=1)
    InOrder(model=model, args=args, train_dataset=data, kl=kl, ref_model=reference).train()
    assert_same_weights(model, expected)


@pytest.mark.parametrize("saved", [None, ["lm_head"]])
def test_the_adapter_switched_off_as_live_reference(tmp_path, saved):
    peft = pytest.importorskip("peft", reason="needs the [train] extra")

    def adapted():
        config = peft.LoraConfig(
            task_type="CAUSAL_LM", r=4, target_modules=["q_proj"], modules_to_save=saved, lora_dropout=0.0
        )
        torch.manual_seed(0)
        return peft.get_peft_model(tiny_model(), config).double()

    data = rows(columns=COLUMNS[:3])
    model = adapted()
    InOrder(model=model, args=arguments(tmp_path), train_dataset=data, ref_model="adapter").train()
    assert model.training
    known = reference_logprobs(tiny_model(), data)
    expected = by_hand(adapted(), [r | {"ref_logprobs": k} for r, k in zip(data, known, strict=True)], 2, 4)
    assert_same_weights(model, expected, 1e-6)
    assert any(p.abs().max() > 1e-4 for name, p in model.named_parameters() if "lora_B" in name), "nothing was trained"


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
    data = [row | {"star": row["token_weights"]} for row in rows()]
    data = [{name: row[name] for name in ("input_ids", "labels", "star")} for row in data]
    DSSTrainer(model=tiny_model(), args=arguments(tmp_path), train_dataset=data).train()
    assert caplog.text.count("a batch without token_weights is trained without shaping; it has input_ids, labels") == 1


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


def test_a_live_reference_computes_in_the_policys_precision(tmp_path):
    """The model against a copy of itself: in another precision their KL would be rounding, not zero."""
    model = tiny_model(dtype=torch.float32)
    args = arguments(tmp_path, bf16=True, learning_rate=0.0, max_steps=1)
    options = {"kl": "reverse", "ref_model": copy.deepcopy(model)}
    trainer = InOrder(model=model, args=args, train_dataset=rows(4, COLUMNS[:3]), **options)
    trainer.train()
    assert trainer.state.log_history[0]["kl"] == pytest.approx(0, abs=1e-7)


def test_a_collator_that_leaves_out_needed_rows_is_refused():
    """Its live rows would drop every token of weight 0, and with the full KL every term."""
    with pytest.raises(ValueError, match=r"leaves out rows that kl_scale=0\.5 needs"):
        DSSTrainer(
            model=tiny_model(), args=arguments("unused"), train_dataset=rows(), data_collator=DSSCollator(0, kl_scale=0)
        )


def test_settings_said_once():
    model = enable_dss(tiny_model(), kl="k3", kl_scale=0.25)
    trainer = DSSTrainer(model=model, args=arguments("unused"), train_dataset=rows())
    assert dss_config(trainer.model) == DSSConfig("k3", 0.25)
    assert trainer.data_collator.kl_scale == 0.25
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


def test_the_model_is_not_its_own_reference():
    model = tiny_model()
    with pytest.raises(ValueError, match="pass a copy"):
        DSSTrainer(model=model, args=arguments("unused"), train_dataset=rows(), ref_model=model)
    disable_dss(model)
    assert model(input_ids=torch.tensor([[3]])).logits.shape == (1, 1, VOCAB)
