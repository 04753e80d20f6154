"""FSDP's first version, FullyShardedDataParallel: two ranks over gloo take the steps of one process, in a loop and in
DSSTrainer through accelerate. As in test_accelerate_fsdp2.py, ranks say that they have a GPU, or accelerate would leave
FSDP off."""

# ruff: noqa: E402 - imports below would fail without the extra
import functools
import os

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy

from fastdss.train.collator import DSSCollator
from fastdss.train.enable import bare_model, dss_config, enable_dss
from fastdss.train.pack import pack
from fastdss.train.reference import reference_logprobs
from tests.support.ranks import WORLD, on_two_ranks
from tests.support.tiny_models import own_logits, plain_loss, tiny_model
from tests.train.test_accelerate_fsdp2 import FarFromReference
from tests.train.test_distributed import in_order, rows, weighted_rows, whole_batch

peft = pytest.importorskip("peft", reason="needs the [train] extra")
pytest.importorskip("accelerate", reason="needs the [train] extra")

from fastdss.train.trainer import DSSTrainer

pytestmark = pytest.mark.long
# family, layers with adapters, whether the original parameters stay, whether every linear layer is a unit of its own
LOOPS = {
    "whole parameters": ("Llama", (), True, False),
    "flat parameters": ("Llama", (), False, False),
    "tied head": ("Qwen3", (), True, False),
    "tied head, flat": ("Qwen3", (), False, False),
    "head alone": ("Llama", (), True, True),
    "head alone, flat": ("Llama", (), False, True),
    "LoRA": ("Llama", ("q_proj",), True, False),
    "LoRA on the head": ("Llama", ("q_proj", "lm_head"), True, False),
}
TRAINERS = {"whole parameters": ("Llama", "true"), "tied head, flat": ("Qwen3", "false")}
STEPS = 3
ENVIRONMENT = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "1",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_SHARDING_STRATEGY": "FULL_SHARD",
    "FSDP_SYNC_MODULE_STATES": "false",
}


def made(family, targets=(), dtype=torch.float64, learnt=True):
    model = tiny_model(family, dtype=dtype)
    if targets:
        torch.manual_seed(0)
        config = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=[*targets], init_lora_weights=not learnt)
        model = peft.get_peft_model(model, config).to(dtype)
    return model


def sharded(family, targets, original, linears):
    model = enable_dss(made(family, targets))
    units = {type(bare_model(model).model.layers[0])} | ({nn.Linear} if linears else set())
    policy = functools.partial(transformer_auto_wrap_policy, transformer_layer_cls=units)
    return FullyShardedDataParallel(
        model, auto_wrap_policy=policy, use_orig_params=original, device_id=torch.device("cpu")
    )


def steps(model, loss_of):
    """The whole batch's loss before each of some steps of SGD: right only if the gradients before it are."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    found = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        found.append(loss_of(model))
        optimizer.step()
    return found


def share_of_the_loss(model):
    batch = whole_batch(silent=False)
    part = {name: values[4 * dist.get_rank() :][:4] for name, values in batch.items()}
    loss = model(**part, num_items_in_batch=(batch["labels"][:, 1:] != -100).sum()).loss
    (WORLD * loss).backward()
    dist.all_reduce(total := loss.detach().clone())
    return total.item()


def whole_loss(model):
    batch = whole_batch(silent=False)
    loss = plain_loss(own_logits(model, batch), batch)
    loss.backward()
    return loss.item()


def loss_of_packed_rows(model):
    packed = DSSCollator(0, padding_free=True)(list(pack(weighted_rows(), 40)))
    with torch.no_grad():
        return model(**packed).loss.item()


def said_of(what):
    try:
        what()
    except ValueError as error:
        return str(error)
    return "nothing"


def trained(folder, original, make, cls=DSSTrainer, **options):
    """Two steps of a trainer under accelerate's FSDP 1: its logs and its options after the first wrapping."""
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType

    AcceleratorState._reset_state(reset_partial_state=True)
    os.environ["FSDP_USE_ORIG_PARAMS"] = original
    wrapped = []

    class Wrapped(cls):
        def training_step(self, model, *args):
            wrapped.append((type(model).__name__, dss_config(self.model) is not None))
            return super().training_step(model, *args)

    def made_here():  # after the arguments, which have just made the state
        PartialState._shared_state |= {"distributed_type": DistributedType.MULTI_GPU, "device": torch.device("cpu")}
        return make()

    _, logs = in_order(Wrapped, folder, made_here, ddp_backend="gloo", **options)
    return logs, wrapped[0]


class EvaluatedFirst(DSSTrainer):
    def train(self):
        self.evaluate(self.train_dataset)
        return super().train()


class WithoutAdapter(DSSTrainer):
    def __init__(self, **kwargs):
        super().__init__(kl="reverse", ref_model="adapter", **kwargs)


def adapted_head():
    return made("Llama", ("lm_head",), torch.float32)


def work(folder):
    found = {name: steps(sharded(*how), share_of_the_loss) for name, how in LOOPS.items()}
    found["packed"] = loss_of_packed_rows(sharded(*LOOPS["whole parameters"]))
    flat = sharded(*LOOPS["flat parameters"])
    found["reference"] = reference_logprobs(flat, rows(), cache_dir=f"{folder}/reference", model_id="tiny")
    found["refused"] = [
        said_of(lambda: enable_dss(FullyShardedDataParallel(tiny_model(), device_id=torch.device("cpu")))),
        said_of(lambda: reference_logprobs(flat, rows(), cache_dir=f"{folder}/reference")),
        said_of(lambda: trained(folder, "true", adapted_head, WithoutAdapter)),
        said_of(lambda: trained(folder, "true", lambda: tiny_model(dtype=torch.float32), EvaluatedFirst)),
    ]
    halves = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    for name, (family, original) in TRAINERS.items():
        make = functools.partial(tiny_model, family, dtype=torch.float32)
        found[f"trainer, {name}"] = trained(folder, original, make, **halves)
    lora = functools.partial(made, "Llama", ("q_proj",), torch.float32, learnt=False)
    found["live reference"] = trained(folder, "true", lora, WithoutAdapter, **halves)
    os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16"
    single = functools.partial(tiny_model, dtype=torch.float32)
    far = trained(folder, "true", single, FarFromReference, bf16=True, per_device_train_batch_size=4)
    return found | {"bf16": far[0][0]["kl"]}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return on_two_ranks(work, tmp_path_factory.mktemp("ranks"), environment=ENVIRONMENT)


@pytest.mark.parametrize("name", LOOPS)
def test_a_loop_takes_the_steps_of_one_process(results, name):
    family, targets, *_ = LOOPS[name]
    truth = steps(made(family, targets), whole_loss)
    assert len({round(loss, 3) for loss in truth}) == STEPS, "the steps change nothing"
    for rank in range(WORLD):
        assert results[rank][name] == pytest.approx(truth, abs=1e-10)


def test_packed_rows_and_the_reference(results, tmp_path):
    expected = reference_logprobs(tiny_model(), rows())
    for rank in range(WORLD):
        assert results[rank]["packed"] == pytest.approx(loss_of_packed_rows(enable_dss(tiny_model())), abs=1e-10)
        assert torch.allclose(torch.stack(results[rank]["reference"]), torch.stack(expected), atol=1e-6)


REFUSED = ("enable DSS before it", "pass model_id=", "take fsdp_version 2", "evaluate afterwards")


@pytest.mark.parametrize(("index", "said"), [*enumerate(REFUSED)])
def test_what_cannot_be_done_is_said(results, index, said):
    assert all(said in results[rank]["refused"][index] for rank in range(WORLD))


@pytest.mark.parametrize("name", [*TRAINERS, "live reference"])
def test_the_trainer_takes_the_steps_of_one_process(results, name, tmp_path):
    one = {"per_device_train_batch_size": 8}
    if name == "live reference":
        _, logs = in_order(WithoutAdapter, tmp_path, lambda: made("Llama", ("q_proj",), learnt=False), **one)
    else:
        _, logs = in_order(DSSTrainer, tmp_path, lambda: tiny_model(TRAINERS[name][0]), **one)
    for rank in range(WORLD):
        found, wrapped = results[rank][name if name == "live reference" else f"trainer, {name}"]
        assert wrapped == ("FullyShardedDataParallel", True)
        for ours, expected in zip(found, logs, strict=True):
            assert ours == pytest.approx(expected, abs=1e-5)


def test_mixed_precision_rounds_neither_reference_nor_loss(results, tmp_path):
    expected = in_order(FarFromReference, tmp_path, tiny_model, per_device_train_batch_size=8)[1][0]["kl"]
    for rank in range(WORLD):
        assert results[rank]["bf16"] == pytest.approx(expected, rel=3e-4)
