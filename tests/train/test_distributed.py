"""Two ranks over gloo: DDP and FSDP2 in every layout of the head give one process's gradients on the whole batch."""

import importlib.util
from contextlib import nullcontext

import pytest
import torch
import torch.distributed as dist
from torch import nn

from fastdss.train.enable import enable_dss
from fastdss.train.reference import reference_logprobs
from tests.support.ranks import WORLD, on_two_ranks
from tests.support.tiny_models import (
    assert_same,
    gradients,
    own_logits,
    plain_loss,
    tiny_batch,
    tiny_model,
    tiny_tokenizer,
)

LOGGED = ("loss", "ce", "kl", "token_weight", "share_below_half")


def whole_batch(silent):
    """8 rows, half of them for each rank; a silent second rank has no labels."""
    batch = tiny_batch(rows=8)
    batch["labels"][4 if silent else 8 :] = -100
    return batch


def local_gradients(model, micro_batches=1, silent=False, reduced_once=False):
    """Gradients of this rank's half of the batch, divided by the labels of all rows."""
    batch = whole_batch(silent)
    items = (batch["labels"][:, 1:] != -100).sum()
    size = 8 // WORLD // micro_batches
    model.zero_grad()
    for index in range(micro_batches):
        start = (dist.get_rank() * micro_batches + index) * size
        part = {name: value[start : start + size] for name, value in batch.items()}
        waits = reduced_once and index + 1 < micro_batches
        with model.no_sync() if waits else nullcontext():
            # both average gradients over ranks, as the trainers' factor of the world size undoes
            (WORLD * model(**part, num_items_in_batch=items).loss).backward()
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            whole = parameter.grad.full_tensor() if hasattr(parameter.grad, "full_tensor") else parameter.grad
            found[name.removeprefix("module.")] = whole.clone()
    return found


def sharded(layout, family="Llama", when="before"):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = tiny_model(family)
    if when == "before":
        enable_dss(model)
    mesh = init_device_mesh("cpu", (WORLD,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    if layout == "head alone":
        fully_shard(model.lm_head, mesh=mesh)
    elif layout == "norm and head":
        fully_shard([model.model.norm, model.lm_head], mesh=mesh)
    fully_shard(model, mesh=mesh)
    return enable_dss(model) if when == "after" else model


def cases():
    yield "ddp", lambda: local_gradients(nn.parallel.DistributedDataParallel(enable_dss(tiny_model())))
    yield (
        "ddp, accumulated",
        lambda: local_gradients(nn.parallel.DistributedDataParallel(enable_dss(tiny_model())), micro_batches=2),
    )
    yield (
        "ddp, enabled afterwards",
        lambda: local_gradients(enable_dss(nn.parallel.DistributedDataParallel(tiny_model()))),
    )
    silent = {"micro_batches": 2, "silent": True}
    yield (
        "ddp, silent rank",
        lambda: local_gradients(
            nn.parallel.DistributedDataParallel(enable_dss(tiny_model())), reduced_once=True, **silent
        ),
    )
    yield "fsdp2, silent rank", lambda: local_gradients(sharded("head alone"), **silent)
    for layout in ("head in the root", "head alone", "norm and head"):
        yield f"fsdp2, {layout}", lambda layout=layout: local_gradients(sharded(layout))
    yield "fsdp2, accumulated", lambda: local_gradients(sharded("head alone"), micro_batches=2)
    yield "fsdp2, enabled afterwards", lambda: local_gradients(sharded("norm and head", when="after"))
    yield "fsdp2, tied", lambda: local_gradients(sharded("head in the root", "Qwen3"))


def dss_trainer():
    from fastdss.train.trainer import DSSTrainer

    return DSSTrainer, tiny_model


def dss_sft_trainer():
    from datasets import Dataset

    from fastdss.train.sft_trainer import DSSSFTTrainer

    class OfRows(DSSSFTTrainer):
        def __init__(self, model, args, train_dataset):
            rows = Dataset.from_list(train_dataset)
            super().__init__(model, args, train_dataset=rows, processing_class=tiny_tokenizer())

    return OfRows, lambda: tiny_model(vocab_size=320)


TRAINERS = {"DSSTrainer": ("accelerate", dss_trainer), "DSSSFTTrainer": ("trl", dss_sft_trainer)}


def trained(folder, name, **options):
    """Two steps of the trainer, whose batches have unequal numbers of labels."""
    cls, make = TRAINERS[name][1]()
    return in_order(cls, folder, make, **options)


def in_order(cls, folder, make=tiny_model, **options):
    from transformers import TrainingArguments

    class InOrder(cls):
        def _get_train_sampler(self, train_dataset=None):
            return torch.utils.data.SequentialSampler(self.train_dataset)

    args = TrainingArguments(
        output_dir=f"{folder}/trainer",
        use_cpu=True,
        report_to="none",
        max_steps=2,
        learning_rate=0.1,
        lr_scheduler_type="constant",
        optim="sgd",
        max_grad_norm=0.0,
        logging_steps=1,
        save_strategy="no",
        disable_tqdm=True,
        **options,
    )
    model = make()
    trainer = InOrder(model=model, args=args, train_dataset=weighted_rows())
    trainer.train()
    logs = [{k: v for k, v in entry.items() if k in LOGGED} for entry in trainer.state.log_history if "loss" in entry]
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}, logs


def weighted_rows():
    batch = tiny_batch(rows=16)
    names = ("input_ids", "labels", "token_weights", "ref_logprobs")
    return [{name: batch[name][i].tolist() for name in names} for i in range(16)]


def reference_cases():
    yield "ddp", lambda: nn.parallel.DistributedDataParallel(tiny_model())
    yield "fsdp2", lambda: sharded("head alone", when="never")


def work(folder):
    results = {"gradients": {name: run() for name, run in cases()}}
    results["reference"] = {
        name: reference_logprobs(make(), rows(), part_rows=5, batch_tokens=20, cache_dir=f"{folder}/{name}")
        for name, make in reference_cases()
    }
    options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    for name, (needed, _) in TRAINERS.items():
        if importlib.util.find_spec(needed):
            results[name] = trained(folder, name, **options)
    return results


def rows():
    batch = tiny_batch(rows=7)
    return [{name: batch[name][i].tolist() for name in ("input_ids", "labels")} for i in range(7)]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return on_two_ranks(work, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("name", [name for name, _ in cases()])
def test_gradients_of_the_whole_batch(results, name):
    model, batch = tiny_model("Qwen3" if "tied" in name else "Llama"), whole_batch("silent" in name)
    truth = gradients(model, plain_loss(own_logits(model, batch), batch))
    for rank in range(WORLD):
        assert_same(results[rank]["gradients"][name], truth)


@pytest.mark.parametrize("name", [name for name, _ in reference_cases()])
def test_reference_shared_over_ranks(results, name, tmp_path):
    expected = reference_logprobs(tiny_model(), rows())
    for rank in range(WORLD):
        assert torch.allclose(torch.stack(results[rank]["reference"][name]), torch.stack(expected), atol=1e-6)


@pytest.mark.parametrize("name", list(TRAINERS))
def test_the_trainer_on_two_ranks_takes_the_steps_of_one(results, name, tmp_path):
    pytest.importorskip(TRAINERS[name][0], reason="needs the [train] extra")
    weights, logs = trained(tmp_path, name, per_device_train_batch_size=8)
    for rank in range(WORLD):
        found, found_logs = results[rank][name]
        assert_same(found, weights, 1e-8)
        assert len(found_logs) == len(logs) == 2
        for ours, expected in zip(found_logs, logs, strict=True):
            assert ours == pytest.approx(expected, abs=1e-6)
