"""A share of the matrix on two ranks over gloo: one step of DSSTrainer against the plain formula on the rows alone."""

from __future__ import annotations

import tempfile
from typing import Any

import torch

from fastdss import DSSTrainer, enable_dss
from tests.matrix.cells import KL_SCALE, Case, compare, verdict
from tests.matrix.images import KINDS, image_rows
from tests.matrix.tiny import runnable
from tests.support.ranks import on_two_ranks

# Plain, experts, recurrent, masks of its own, and two whose accepts_loss_kwargs is False.
CLASSES = runnable(
    "LlamaForCausalLM",
    "Gemma2ForCausalLM",
    "MixtralForCausalLM",
    "MambaForCausalLM",
    "GptOssForCausalLM",
    "Llama4ForConditionalGeneration",
    "Qwen2_5_VLForConditionalGeneration",
    "Qwen3VLForConditionalGeneration",
)


def case_of(name: str) -> Case:
    if name in KINDS:
        return Case(name, image_rows(name), **KINDS[name].overrides)
    return Case(name)


def verdicts() -> dict[str, str]:
    """Class -> verdict; each rank has two of the four rows, of very different numbers of labels."""
    with tempfile.TemporaryDirectory() as folder:
        found: dict[str, str] = on_two_ranks(_work, folder)[0]
    return found


def _work(folder: str) -> dict[str, str]:
    return {name: _verdict(name, f"{folder}/{name}") for name in CLASSES}


def _verdict(name: str, folder: str) -> str:
    from transformers import TrainingArguments

    case = case_of(name)
    model: Any = enable_dss(case.fresh(), kl_scale=KL_SCALE)
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    arguments = TrainingArguments(
        folder, per_device_train_batch_size=2, max_steps=1, learning_rate=1.0, optim="sgd", use_cpu=True,
        lr_scheduler_type="constant", max_grad_norm=0.0, report_to="none", save_strategy="no", disable_tqdm=True,
        logging_steps=1, ddp_find_unused_parameters=True,
    )  # fmt: skip
    trainer = DSSTrainer(model, arguments, train_dataset=Listed(case.rows))
    trainer.train()
    moved = {key: before[key] - p.detach() for key, p in model.named_parameters()}
    loss = torch.tensor(trainer.state.log_history[0]["loss"], dtype=torch.float64)
    return verdict(compare(loss, {n: g for n, g in moved.items() if g.norm() > 0}, case.right), 3 * case.tolerance)


class Listed(torch.utils.data.Dataset):
    """Rows with tensors of several shapes, which a table would turn into lists."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]
