"""Short runs of ``DSSTrainer`` on eight tiny rows, and the same steps by hand with the plain formula."""

import pytest
import torch
from transformers import TrainingArguments

from tests.support.tiny_models import own_logits, plain_loss, tiny_batch

pytest.importorskip("accelerate", reason="needs the [train] extra")

from fastdss import DSSCollator
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
