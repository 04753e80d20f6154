"""What ``DSSTrainer`` logs and evaluates: means over labels, of exactly the batches since the last log."""

import pytest
import torch

from tests.support.tiny_models import own_logits, plain_loss, tiny_model

pytest.importorskip("accelerate", reason="needs the [train] extra")

from fastdss import DSSCollator, pack
from fastdss.train.enable import enable_dss
from fastdss.train.trainer import DSSTrainer
from tests.support.trainers import InOrder, arguments, rows


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
