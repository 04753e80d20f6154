"""Two ranks over gloo, only one of which sees shaped batches: logging must not wait for a rank that has nothing to add.

The group's time limit turns a rank that waits for ever into a failure.
"""

import os
import warnings
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from test_distributed import weighted_rows
from tiny_models import tiny_model, tiny_tokenizer

pytest.importorskip("trl", reason="needs the [train] extra")

WORLD = 2
OPTIONS = {
    "use_cpu": True,
    "report_to": "none",
    "per_device_train_batch_size": 2,
    "per_device_eval_batch_size": 2,
    "max_steps": 2,
    "logging_steps": 1,
    "save_strategy": "no",
    "disable_tqdm": True,
    "prediction_loss_only": True,  # logits of one rank and log-probabilities of the other cannot be gathered
}


def weights_on_rank_0_only(rows):
    from fastdss.collator import DSSCollator

    batch = DSSCollator(0)(rows)
    shaped = ("token_weights", "ref_logprobs", "rows", "kl_rows")
    return batch if dist.get_rank() == 0 else {name: value for name, value in batch.items() if name not in shaped}


def trained(folder):
    """Training and evaluation of DSSTrainer."""
    from transformers import TrainingArguments

    from fastdss.trainer import DSSTrainer

    trainer = DSSTrainer(
        model=tiny_model().float(),  # evaluation gathers losses: of one dtype
        args=TrainingArguments(output_dir=f"{folder}/trainer", **OPTIONS),
        train_dataset=weighted_rows(),
        eval_dataset=weighted_rows(),
        data_collator=weights_on_rank_0_only,
    )
    trainer.train()
    return [entry for entry in trainer.state.log_history if "loss" in entry], trainer.evaluate()


def logged_tokens(folder):
    """What DSSSFTTrainer logs where rank 0 saw 5 tokens and rank 1 no shaped batch; then where neither saw one."""
    from datasets import Dataset
    from trl import SFTConfig

    from fastdss.sft_trainer import DSSSFTTrainer

    trainer = DSSSFTTrainer(
        tiny_model(vocab_size=320).float(),
        SFTConfig(output_dir=f"{folder}/sft", **OPTIONS),
        train_dataset=Dataset.from_list(weighted_rows()),
        processing_class=tiny_tokenizer(),
    )
    trainer.model.train()
    trainer._seen_tokens = torch.tensor(5) if dist.get_rank() == 0 else None
    trainer.log({"loss": 1.0})
    trainer.log({"loss": 1.0})
    return [entry.get("num_tokens") for entry in trainer.state.log_history]


def work(rank, folder):
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(WORLD)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}  # unused: the group is there already
    warnings.filterwarnings("ignore")
    limit = timedelta(seconds=40)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=WORLD, timeout=limit)
    try:
        torch.save({"tokens": logged_tokens(folder), "trainer": trained(folder)}, f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


def test_a_rank_without_shaped_batches_logs_with_the_others(tmp_path):
    torch.multiprocessing.spawn(work, args=(str(tmp_path),), nprocs=WORLD)
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(WORLD)]
    for result in found:
        assert result["tokens"] == [5, None]
        logs, metrics = result["trainer"]
        assert len(logs) == 2
        for name in ("ce", "kl", "token_weight", "share_below_half"):
            assert [entry[name] for entry in logs] == [entry[name] for entry in found[0]["trainer"][0]]
            assert metrics[f"eval_{name}"] == found[0]["trainer"][1][f"eval_{name}"]
        assert 0 < logs[0]["token_weight"] < 1
        assert logs[0]["ce"] > 0
