"""Two ranks over gloo, only one of which sees shaped batches: neither may wait for what the other does not send.

The group's time limit turns a rank that waits for ever into a failure.
"""

import pytest
import torch
import torch.distributed as dist

from fastdss import DSSCollator
from fastdss.train.enable import enable_dss
from tests.support.ranks import on_two_ranks
from tests.support.tiny_models import own_logits, tiny_model, tiny_tokenizer
from tests.train.test_distributed import weighted_rows

pytest.importorskip("trl", reason="needs the [train] extra")

pytestmark = pytest.mark.long

OPTIONS = {
    "use_cpu": True,
    "report_to": "none",
    "per_device_train_batch_size": 2,
    "per_device_eval_batch_size": 2,
    "max_steps": 2,
    "logging_steps": 1,
    "save_strategy": "no",
    "disable_tqdm": True,
    "prediction_loss_only": True,
}


def without_weights(batch):
    shaped = ("token_weights", "ref_logprobs", "rows", "kl_rows")
    return {name: value for name, value in batch.items() if name not in shaped}


def weights_on_rank_0_only(rows):
    batch = DSSCollator(0)(rows)
    return batch if dist.get_rank() == 0 else without_weights(batch)


def trained(folder):
    """Training and evaluation of DSSTrainer."""
    from transformers import TrainingArguments

    from fastdss.train.trainer import DSSTrainer

    trainer = DSSTrainer(
        model=tiny_model().float(),  # evaluation gathers losses: of one dtype
        args=TrainingArguments(output_dir=f"{folder}/trainer", **OPTIONS),
        train_dataset=weighted_rows(),
        eval_dataset=weighted_rows(),
        data_collator=weights_on_rank_0_only,
    )
    trainer.train()
    logs, metrics = [entry for entry in trainer.state.log_history if "loss" in entry], trainer.evaluate()
    return logs, metrics, refusal(trainer)


def refusal(trainer):
    """What evaluation with predictions says, where nothing waits for ever."""
    trainer.args.prediction_loss_only = False
    with pytest.raises(ValueError, match="prediction_loss_only=True") as caught:
        trainer.predict(trainer.eval_dataset)
    return str(caught.value)


def sft_policy():
    return tiny_model(vocab_size=320).float()


def trained_by_sft(folder):
    """Evaluation and training of DSSSFTTrainer, whose parent gathers its own metrics batch by batch."""
    from datasets import Dataset
    from trl import SFTConfig

    from fastdss.train.sft_trainer import DSSSFTTrainer

    rows = Dataset.from_list(weighted_rows())
    trainer = DSSSFTTrainer(
        sft_policy(),
        SFTConfig(output_dir=f"{folder}/sft", bf16=False, **(OPTIONS | {"max_steps": 3, "logging_steps": 2})),
        train_dataset=rows,
        eval_dataset=rows,
        data_collator=weights_on_rank_0_only,
        processing_class=tiny_tokenizer(),
    )
    metrics = trainer.evaluate()
    trainer.train()
    return trainer.state.log_history[-2:], metrics, refusal(trainer)


def work(folder):
    return {"sft": trained_by_sft(folder), "trainer": trained(folder)}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return on_two_ranks(work, tmp_path_factory.mktemp("ranks"), seconds=40)


def test_a_rank_without_shaped_batches_logs_with_the_others(found):
    for result in found:
        logs, metrics, _ = result["trainer"]
        assert len(logs) == 2
        for name in ("ce", "kl", "token_weight", "share_below_half"):
            assert [entry[name] for entry in logs] == [entry[name] for entry in found[0]["trainer"][0]]
            assert metrics[f"eval_{name}"] == found[0]["trainer"][1][f"eval_{name}"]
        assert 0 < logs[0]["token_weight"] < 1
        assert logs[0]["ce"] > 0


@pytest.mark.parametrize("trainer", ["trainer", "sft"])
def test_predictions_of_two_kinds_are_refused_on_both_ranks(found, trainer):
    for result in found:
        assert "logits [B, T, V] cannot be gathered" in result[trainer][2]


@torch.no_grad()
def test_trls_metrics_are_of_all_batches_on_all_ranks(found):
    batches = [DSSCollator(0)(weighted_rows()[start : start + 2]) for start in range(0, len(weighted_rows()), 2)]
    losses, entropies = [], []
    for batch in batches:
        p = own_logits(sft_policy(), batch)[:, :-1].softmax(-1)[batch["labels"][:, 1:] != -100]
        entropies.append(-(p * p.log()).sum(-1).mean())
    losses += [sft_policy()(**without_weights(batch)).loss for batch in batches[1::2]]  # those of rank 1
    losses += [enable_dss(sft_policy())(**batch).loss for batch in batches[::2]]
    for result in found:
        (logged, last), metrics, _ = result["sft"]
        assert metrics["eval_entropy"] == pytest.approx(torch.stack(entropies).mean().item(), rel=1e-4)
        assert metrics["eval_loss"] == pytest.approx(torch.stack(losses).mean().item(), rel=1e-4)
        assert logged["ce"] > 0
        assert "mean_token_accuracy" in logged
        length = len(weighted_rows()[0]["input_ids"])  # of all rows; each step has two on each rank
        assert (logged["num_tokens"], last["num_tokens"]) == (8 * length, 12 * length)
        for name in ("ce", "entropy", "mean_token_accuracy"):
            assert logged[name] == found[0]["sft"][0][0][name]
