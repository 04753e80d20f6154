"""DSSTrainer under the FSDP2 of accelerate: two ranks over gloo take the steps of one process.

accelerate leaves FSDP off where ranks have no GPU and trains by DDP in silence. So the ranks here say that they have
one; everything after that (units, hooks, accumulation, optimizer) is accelerate's own, as the example's file asks.
"""

# ruff: noqa: E402 - imports below would fail without the extra
import os
from pathlib import Path

import pytest
import torch

from tests.support.ranks import WORLD, on_two_ranks
from tests.support.tiny_models import assert_same, tiny_model
from tests.train.test_distributed import in_order

accelerate = pytest.importorskip("accelerate", reason="needs the [train] extra")

from fastdss.train.trainer import DSSTrainer

pytestmark = pytest.mark.long

CONFIG = Path(__file__).parents[2] / "examples" / "accelerate_fsdp2.yaml"
CASES = {"head of its own": "Llama", "tied head": "Qwen3"}


def launched_environment():
    """What ``accelerate launch --config_file`` would put into the ranks' environment."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    command = ["--config_file", str(CONFIG), "--mixed_precision", "no", "train.py"]
    arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args(command))
    return {name: value for name, value in prepare_multi_gpu_env(arguments).items() if "FSDP" in name}


def trained(family, folder):
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    def make():  # after the arguments, which have just made the state
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        return tiny_model(family)

    options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "ddp_backend": "gloo"}
    weights, logs = in_order(DSSTrainer, folder, make, **options)
    sharded = all(hasattr(weight, "full_tensor") for weight in weights.values())
    return {name: weight.full_tensor() for name, weight in weights.items() if sharded}, logs


class FarFromReference(DSSTrainer):
    """No cross-entropy, and a reference that bf16 cannot tell from -1000: the loss shows how it was rounded."""

    def __init__(self, train_dataset, **kwargs):
        far = {"token_weights": [0.0] * 9, "ref_logprobs": [-1001.7] * 9}
        super().__init__(train_dataset=[row | far for row in train_dataset], **kwargs)


def first_kl(folder, make, **options):
    return in_order(FarFromReference, folder, make, **options)[1][0]["kl"]


def first_kl_in_bf16(folder):
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    def make():
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        return tiny_model(dtype=torch.float32)

    os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16"
    return first_kl(folder, make, bf16=True, per_device_train_batch_size=4, ddp_backend="gloo")


def work(folder):
    results = {name: trained(family, folder) for name, family in CASES.items()}
    return results | {"bf16": first_kl_in_bf16(folder)}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return on_two_ranks(work, tmp_path_factory.mktemp("ranks"), environment=launched_environment())


def test_the_file_asks_for_fsdp2():
    environment = launched_environment()
    assert environment["ACCELERATE_USE_FSDP"] == "true"
    assert environment["FSDP_VERSION"] == "2"


@pytest.mark.parametrize("name", list(CASES))
def test_two_ranks_take_the_steps_of_one(results, name, tmp_path):
    weights, logs = in_order(DSSTrainer, tmp_path, lambda: tiny_model(CASES[name]), per_device_train_batch_size=8)
    for rank in range(WORLD):
        found, found_logs = results[rank][name]
        assert found, "nothing was sharded"
        assert_same(found, weights, 1e-8)
        for ours, expected in zip(found_logs, logs, strict=True):
            assert ours == pytest.approx(expected, abs=1e-6)


def test_mixed_precision_rounds_neither_reference_nor_loss(results, tmp_path):
    expected = first_kl(tmp_path, tiny_model, per_device_train_batch_size=8)
    for rank in range(WORLD):
        assert results[rank]["bf16"] == pytest.approx(expected, rel=3e-4)
