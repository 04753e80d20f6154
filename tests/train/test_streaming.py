"""Data that streams trains the same steps, whether or not it says which columns it has."""

import pytest
import torch

from tests.support.tiny_models import tiny_model
from tests.support.trainers import InOrder, arguments, assert_same_weights, by_hand, rows

pytest.importorskip("datasets", reason="needs the [train] extra")

import datasets

from fastdss import pack
from fastdss.train.trainer import DSSTrainer


def generated(examples):
    """A stream that does not know its columns."""
    return datasets.IterableDataset.from_generator(lambda: iter(examples))


class Plain(torch.utils.data.IterableDataset):
    def __init__(self, examples):
        self.examples = examples

    def __iter__(self):
        return iter(self.examples)


@pytest.mark.parametrize(
    "stream", [lambda examples: datasets.Dataset.from_list(examples).to_iterable_dataset(), generated, Plain]
)
@pytest.mark.parametrize("workers", [0, 1])
def test_a_stream_trains_the_steps_of_the_plain_formula(tmp_path, stream, workers):
    """accelerate cut the index of live rows to the batch's size: too few rows, found by a check on the CPU only."""
    model = tiny_model()
    stream = stream([row | {"note": "unused"} for row in rows()])
    args = arguments(tmp_path, dataloader_num_workers=workers)
    trainer = DSSTrainer(model=model, args=args, train_dataset=stream, eval_dataset=stream)
    trainer.train()
    assert_same_weights(model, by_hand(tiny_model(), rows(), 2, 4))
    listed = DSSTrainer(model=model, args=args, eval_dataset=rows())
    assert trainer.evaluate()["eval_ce"] == pytest.approx(listed.evaluate()["eval_ce"], abs=1e-6)


def test_a_packed_stream_is_known_by_its_first_row(tmp_path):
    packed = list(pack(rows(), 20))
    models = []
    for data in (generated(packed), packed):  # the stream in its own order, as the list is read
        trainer = InOrder(model=tiny_model(), args=arguments(tmp_path, max_steps=1), train_dataset=data)
        trainer.train()
        models.append(trainer.model)
    assert_same_weights(*models)


def test_a_packed_stream_that_can_be_read_once_says_what_it_needs(tmp_path):
    """Its columns are unknown, so the default collator pads."""
    trainer = DSSTrainer(model=tiny_model(), args=arguments(tmp_path), train_dataset=Plain(list(pack(rows(), 20))))
    with pytest.raises(ValueError, match=r"packed examples \(seq_lengths\) need padding_free=True"):
        trainer.train()


def test_dispatched_batches_are_refused(tmp_path):
    args = arguments(tmp_path, accelerator_config={"dispatch_batches": True})
    with pytest.raises(ValueError, match=r"dispatch_batches cuts tensors .* got True"):
        DSSTrainer(model=tiny_model(), args=args, train_dataset=rows())
