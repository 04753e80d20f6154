"""A live reference that FSDP2 has split: it takes both ranks, also where only one of them has a shaped batch.

Rows of weight 1 are plain cross-entropy, so two ranks whose batches come with and without weights take the steps of one
process whose batches all have them.
"""

# ruff: noqa: E402 - imports below would fail without the extra
import os

import pytest
import torch

from tests.support.ranks import WORLD, on_two_ranks
from tests.support.tiny_models import assert_same, tiny_model
from tests.train.test_distributed import in_order, weighted_rows

peft = pytest.importorskip("peft", reason="needs the [train] extra")

from fastdss import DSSCollator
from fastdss.train.trainer import DSSTrainer
from tests.train.test_accelerate_fsdp2 import launched_environment
from tests.train.test_mixed_ranks import without_weights

pytestmark = pytest.mark.long

ADAPTERS = {  # how the reference's head is found: the policy's own, a copy kept beside it, the layer below the adapter
    "frozen head": {"target_modules": ["q_proj"]},
    "saved head": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "LoRA on the head": {"target_modules": ["q_proj", "lm_head"]},
}


def adapted(name, dtype):
    """At its start it is the model without adapters, as the reference must be; after a step it is another."""
    torch.manual_seed(0)
    lora = peft.LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=64, **ADAPTERS[name])
    return peft.get_peft_model(tiny_model(), lora, autocast_adapter_dtype=False).to(dtype)


def rows():
    """Every other batch of two has no weight below 1."""
    found = [{k: v for k, v in row.items() if k != "ref_logprobs"} for row in weighted_rows()]
    return [row | {"token_weights": [1.0] * 9} if i % 4 > 1 else row for i, row in enumerate(found)]


def without_whole_weights(batch):
    batch = DSSCollator(0)(batch)
    return batch if (batch["token_weights"] < 1).any() else without_weights(batch)


def trained(name, folder, collator=None, dtype=torch.float64, make=adapted, **options):
    class Referring(DSSTrainer):
        def __init__(self, train_dataset, **kwargs):
            super().__init__(train_dataset=rows(), data_collator=collator, ref_model="adapter", kl="forward", **kwargs)

    weights, logs = in_order(Referring, folder, lambda: make(name, dtype), **options)
    return weights, [entry["loss"] for entry in logs]


def trained_on_both(name, folder, dtype=torch.float64, **options):
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    def make(name, dtype):
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        return adapted(name, dtype)

    options |= {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "ddp_backend": "gloo"}
    weights, losses = trained(name, folder, without_whole_weights, dtype, make, **options)
    return {name: weight.full_tensor() for name, weight in weights.items()}, losses


def work(folder):
    results = {name: trained_on_both(name, folder) for name in ADAPTERS}
    os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16"
    results["bf16"] = trained_on_both("saved head", folder, torch.float32, bf16=True)
    return results


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return on_two_ranks(work, tmp_path_factory.mktemp("ranks"), environment=launched_environment())


@pytest.mark.parametrize("name", list(ADAPTERS))
def test_ranks_with_and_without_weights_take_the_steps_of_one_process(results, name, tmp_path):
    weights, losses = trained(name, tmp_path, per_device_train_batch_size=8)
    for rank in range(WORLD):
        assert_same(results[rank][name][0], weights, 1e-6)  # transformers' own loss is in fp32
        assert results[rank][name][1] == pytest.approx(losses, abs=1e-5)


def test_mixed_precision_with_the_adapters_off_in_the_first_call(results, tmp_path):
    _, losses = trained("saved head", tmp_path, per_device_train_batch_size=8)
    for rank in range(WORLD):
        assert results[rank]["bf16"][1] == pytest.approx(losses, rel=1e-2)
