"""Evaluation on two ranks: a row that fills the last batch by repeating another counts once."""

import pytest
import torch

from tests.support.ranks import on_two_ranks
from tests.support.tiny_models import own_logits, plain_loss, tiny_model

pytest.importorskip("accelerate", reason="needs the [train] extra")

from fastdss import DSSCollator
from fastdss.train.trainer import DSSTrainer
from tests.support.trainers import arguments, rows

pytestmark = pytest.mark.long

SIZES = (5, 6, 7, 8)  # in batches of two on two ranks: the last ones hold three, two, one and no row again


def evaluated(folder):
    seen = []

    def metrics(prediction):
        seen.append(int((prediction.label_ids != -100).sum()))
        return {}

    trainer = DSSTrainer(
        model=tiny_model().float(),
        args=arguments(f"{folder}/trainer", per_device_eval_batch_size=2),
        train_dataset=rows(),
        compute_metrics=metrics,
    )
    return [trainer.evaluate(rows(size)) | {"labels": seen[-1]} for size in SIZES]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return on_two_ranks(evaluated, tmp_path_factory.mktemp("evaluated"))


@pytest.mark.parametrize("size", SIZES)
def test_means_are_of_each_row_once(found, size):
    model, batch = tiny_model().float(), DSSCollator(0)(rows(size))
    with torch.no_grad():
        expected = plain_loss(own_logits(model, batch), batch).item()
        parts = [DSSCollator(0)(rows(size)[start : start + 4]) for start in range(0, size, 4)]
        losses = [len(part["labels"]) * plain_loss(own_logits(model, part), part).item() for part in parts]
    labels = batch["labels"][:, 1:] != -100
    for of_rank in found:
        metrics = of_rank[SIZES.index(size)]
        assert metrics["eval_ce"] + metrics["eval_kl"] == pytest.approx(expected, rel=1e-5)
        assert metrics["eval_loss"] == pytest.approx(sum(losses) / size, rel=1e-5)  # Trainer's: over rows, by batches
        weight = batch["token_weights"][:, 1:][labels].mean().item()
        assert metrics["eval_token_weight"] == pytest.approx(weight, rel=1e-6)
        assert metrics["labels"] == labels.sum()
