"""DeepSpeed ZeRO-3 on two ranks over gloo: the gradients and the steps of one process, and errors that say what to do.

DeepSpeed is no dependency: ``DS_BUILD_OPS=0 pip install deepspeed`` builds nothing and is enough for this.
"""

import importlib.util
import os
import warnings

import pytest
import torch
import torch.distributed as dist
from test_distributed import in_order
from tiny_models import assert_same, gradients, own_logits, plain_loss, tiny_batch, tiny_model

from fastdss import weighted_ce
from fastdss.enable import enable_dss

if importlib.util.find_spec("deepspeed") is None:
    pytest.skip("needs DeepSpeed", allow_module_level=True)

WORLD = 2
SPLIT = {
    "train_micro_batch_size_per_gpu": 4,
    "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
    "gradient_clipping": 0.0,  # accelerate makes it 1.0 where it is not said
    "zero_allow_untested_optimizer": True,
    "zero_force_ds_cpu_optimizer": False,
}
CASES = [("Llama", "before"), ("Llama", "after"), ("Qwen3", "before")]  # a head of its own twice, a tied one


def split_gradients(family, when):
    """Gradients of a batch of 8 rows over both ranks, DSS switched on before or after the engine."""
    import deepspeed

    model = tiny_model(family)
    if when == "before":
        enable_dss(model)
    engine, *_ = deepspeed.initialize(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.0), config=SPLIT)
    if when == "after":
        enable_dss(model)
    batch, rank = tiny_batch(rows=8), dist.get_rank()
    items = (batch["labels"][:, 1:] != -100).sum()
    mine = {name: value[rank * 4 : rank * 4 + 4] for name, value in batch.items()}
    engine.backward(WORLD * engine(**mine, num_items_in_batch=items).loss)
    found = {name: deepspeed.utils.safe_get_full_grad(p).double() for name, p in model.named_parameters()}
    return found, model


def error_outside_the_head(model):
    with pytest.raises(ValueError, match="lm_head is an ungathered ZeRO-3 shard: wrap the call in") as caught:
        weighted_ce(torch.zeros(1, 8), model.lm_head.weight, torch.zeros(1, dtype=torch.long))
    return str(caught.value)


def trained(folder):
    """Two steps of DSSTrainer, whose arguments make transformers split the model while it is loaded."""
    from transformers import AutoModelForCausalLM

    from fastdss.trainer import DSSTrainer

    def load():
        return AutoModelForCausalLM.from_pretrained(f"{folder}/model", dtype=torch.float64)

    config = SPLIT | {"train_micro_batch_size_per_gpu": "auto", "gradient_accumulation_steps": "auto"}
    options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "ddp_backend": "gloo"}
    return in_order(DSSTrainer, folder, load, deepspeed=config, **options)[1]


def work(rank, folder):
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(WORLD), "DS_ACCELERATOR": "cpu"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}  # unused: the group is there already
    warnings.filterwarnings("ignore")
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD)
    import deepspeed

    deepspeed.init_distributed(dist_backend="gloo")
    try:
        results = {}
        for case in CASES:
            results[case], model = split_gradients(*case)
        results["error"] = error_outside_the_head(model)
        if importlib.util.find_spec("accelerate"):
            results["trainer"] = trained(folder)
        torch.save(results, f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    tiny_model().save_pretrained(folder / "model")
    torch.multiprocessing.spawn(work, args=(str(folder),), nprocs=WORLD)
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORLD)]


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_gradients_of_the_whole_batch(results, case):
    model, batch = tiny_model(case[0]), tiny_batch(rows=8)
    truth = gradients(model, plain_loss(own_logits(model, batch), batch))
    for rank in range(WORLD):
        assert_same(results[rank][case], truth, 1e-6)  # ZeRO-3 keeps gradients in fp32


def test_a_shard_outside_the_head_names_the_step(results):
    assert "deepspeed.zero.GatheredParameters([lm_head])" in results[0]["error"]


def test_the_trainer_takes_the_steps_of_one_process(results, tmp_path):
    pytest.importorskip("accelerate", reason="needs the [train] extra")
    from fastdss.trainer import DSSTrainer

    _, logs = in_order(DSSTrainer, tmp_path, per_device_train_batch_size=8)
    for rank in range(WORLD):
        for ours, expected in zip(results[rank]["trainer"], logs, strict=True):
            assert ours == pytest.approx(expected, abs=1e-5)
