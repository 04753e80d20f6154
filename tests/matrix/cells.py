"""The cells of the matrix: one class, one way of training it, against the plain formula on each row alone in float64.

A cell is "right", "refused: WHY" or "WRONG: HOW FAR"; "as the class" where the class itself, padded, says something
else than alone, and fastdss says the same as the class.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastdss import DSSCollator, DSSTrainer, enable_dss, pack, reference_logprobs
from fastdss.errors import UserError
from fastdss.models.inputs import input_names
from tests.matrix.images import KINDS, image_rows
from tests.matrix.tiny import LARGEST, smallest, tiny_model

LENGTHS = (9, 6, 12, 5)
TOLERANCE = 1e-5  # norms, softmax and routers of transformers compute in single precision
KL_SCALE = 0.5
TYPED = {"Molmo2ForConditionalGeneration": "mm_token_type_ids"}  # what a class asks for in training: 0 is text
LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "gate_proj", "in_proj", "x_proj", "q_a_proj", "q_b_proj")
Gradients = dict[str, Tensor]


def make_rows(seed: int = 1) -> list[dict[str, list]]:
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for length in LENGTHS:
        ids = torch.randint(3, 50, (length,), generator=generator).tolist()
        weights = torch.rand(length, generator=generator).tolist()
        reference = (-3 * torch.rand(length, generator=generator)).tolist()
        labels = [-100, -100, *ids[2:]]
        rows.append({"input_ids": ids, "labels": labels, "token_weights": weights, "ref_logprobs": reference})
    return rows


def row_terms(logits: Tensor, row: dict[str, list]) -> Tensor:
    """Equation 3 as it is written, summed over one row's labels; ``logits: [1, T, V]``."""
    labels = torch.tensor(row["labels"])[1:]
    counts = labels != -100
    logits = logits if logits.dtype == torch.float64 else logits.float()
    logp = logits[0, :-1].log_softmax(-1).gather(-1, labels.clamp(min=0)[:, None])[:, 0]
    weights = torch.tensor(row["token_weights"])[1:].to(logp.dtype)
    d = logp - torch.tensor(row["ref_logprobs"])[1:].to(logp.dtype)
    return (weights * -logp + (1 - weights) * KL_SCALE * d * d / 2)[counts].sum()


def labels_of(rows: list[dict[str, list]]) -> int:
    return sum(label != -100 for row in rows for label in row["labels"][1:])


def inputs_of(row: dict[str, Any], dtype: torch.dtype) -> dict[str, Tensor]:
    """The row as a batch of one; images as they are."""
    aligned = ("token_type_ids", "mm_token_type_ids")
    found = {"input_ids": torch.tensor([row["input_ids"]])}
    found |= {name: torch.tensor([row[name]]) for name in aligned if name in row}
    media = set(row) - {"input_ids", "labels", "token_weights", "ref_logprobs", *aligned}
    return found | {name: cast(row[name], dtype) for name in media}


def cast(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if torch.is_tensor(value) and value.is_floating_point() else value


def gradients(model: Any, loss: Tensor) -> Gradients:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def truth(model: Any, rows: list[dict[str, Any]]) -> tuple[Tensor, Gradients]:
    """Loss and gradients by the formula, each row alone through the class as it is."""
    items = labels_of(rows)
    terms = [row_terms(model(**inputs_of(row, model.dtype), use_cache=False).logits, row) for row in rows]
    loss = torch.stack(terms).sum() / items
    return loss.detach(), gradients(model, loss)


def compare(loss: Tensor, found: Gradients, right: tuple[Tensor, Gradients]) -> float:
    """The larger of the loss's relative error and that of all gradients together."""
    expected_loss, expected = right
    names = found.keys() | expected.keys()
    none = torch.zeros(())
    difference = sum((found.get(n, none) - expected.get(n, none)).double().norm() ** 2 for n in names) ** 0.5
    size = sum(gradient.double().norm() ** 2 for gradient in expected.values()) ** 0.5
    off = abs((loss - expected_loss) / expected_loss).item()
    return max(off, float(difference / size))


def verdict(error: float, tolerance: float) -> str:
    return "right" if error <= tolerance else f"WRONG: off by {error:.1e}"


def through(model: Any, batch: dict[str, Any]) -> tuple[Tensor, Gradients]:
    batch = {name: cast(value, model.dtype) for name, value in batch.items()}
    output = model(**batch)
    return output.loss.detach(), gradients(model, output.loss)


def left_padded(row: dict[str, Any], pads: int = 3) -> dict[str, Any]:
    fillers = {"input_ids": 0, "labels": -100, "token_weights": 0.0, "ref_logprobs": 0.0}
    padded = {name: [fillers[name]] * pads + row[name] for name in fillers}
    return padded | {"attention_mask": [0] * pads + [1] * len(row["input_ids"])}


class Case:
    """One class of transformers, tiny, with its rows and their right answer."""

    dtype, tolerance = torch.float64, TOLERANCE

    def __init__(self, name: str, rows: list[dict[str, Any]] | None = None, **overrides: Any) -> None:
        self.name, self.rows, self.overrides = name, rows or make_rows(), overrides
        if name in TYPED:
            self.rows = [{TYPED[name]: [0] * len(row["input_ids"])} | row for row in self.rows]
        try:
            self.plain = self.fresh()
            self.right = truth(self.plain, self.rows)
        except RuntimeError:  # some kernels know no double precision
            self.dtype, self.tolerance = torch.float32, 1e-3
            self.plain = self.fresh()
            self.right = truth(self.plain, self.rows)

    def fresh(self) -> Any:
        return tiny_model(self.name, self.dtype, **self.overrides)

    def enabled(self) -> Any:
        return enable_dss(self.fresh(), kl_scale=KL_SCALE)

    def padded(self) -> str:
        model = self.enabled()
        batch = DSSCollator(0, model_inputs=input_names(model))(self.rows)
        found = through(model, batch)
        error = compare(*found, self.right)
        if error > self.tolerance and compare(*found, self.own_padded(batch)) <= self.tolerance:
            return f"as the class, which reads its padding: {error:.1e} from the rows alone"
        return verdict(error, self.tolerance)

    def own_padded(self, batch: dict[str, Any]) -> tuple[Tensor, Gradients]:
        logits = self.plain(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
        ).logits
        terms = [
            row_terms(row_logits[None, : len(r["labels"])], r) for row_logits, r in zip(logits, self.rows, strict=True)
        ]
        loss = torch.stack(terms).sum() / labels_of(self.rows)
        return loss.detach(), gradients(self.plain, loss)

    def left(self) -> str:
        alone = [DSSCollator(0)([left_padded(row)]) for row in self.rows]
        model, items = self.enabled(), labels_of(self.rows)
        parts = [model(**{n: cast(v, model.dtype) for n, v in b.items()}, num_items_in_batch=items) for b in alone]
        loss = torch.stack([part.loss for part in parts]).sum()
        return verdict(compare(loss.detach(), gradients(model, loss), self.right), self.tolerance)

    def packed(self) -> str:
        batch = DSSCollator(0, padding_free=True)(list(pack(self.rows, 64)))
        return verdict(compare(*through(self.enabled(), batch), self.right), self.tolerance)

    def accumulated(self) -> str:
        """Two micro-batches of two rows, one step of plain descent: what the weights lost is the gradient."""
        from datasets import Dataset
        from transformers import TrainingArguments

        model = self.enabled()
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                folder, per_device_train_batch_size=2, gradient_accumulation_steps=2, max_steps=1, learning_rate=1.0,
                optim="sgd", lr_scheduler_type="constant", max_grad_norm=0.0, report_to="none", use_cpu=True,
                save_strategy="no", disable_tqdm=True, logging_steps=1,
            )  # fmt: skip
            trainer = DSSTrainer(model, arguments, train_dataset=Dataset.from_list(self.rows))
            trainer.train()
        if self.is_random_in_training():
            return "not compared: the class is random in training"
        moved = {name: before[name] - p.detach() for name, p in model.named_parameters()}
        loss = torch.tensor(trainer.state.log_history[0]["loss"], dtype=torch.float64)
        return verdict(compare(loss, {n: g for n, g in moved.items() if g.norm() > 0}, self.right), 3 * self.tolerance)

    def is_random_in_training(self) -> bool:
        """Sampled experts, say: then no two steps are one."""
        model, row = self.fresh().train(), inputs_of(self.rows[0], self.dtype)
        return not torch.equal(model(**row, use_cache=False).logits, model(**row, use_cache=False).logits)

    def lora(self) -> str:
        import peft

        torch.manual_seed(0)
        model = self.fresh()
        try:
            model = peft.get_peft_model(
                model, peft.LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
            )
            truth(model.to(self.dtype), self.rows[:1])
        except Exception:  # not every class takes adapters everywhere
            targets = [name for name, part in self.fresh().named_modules() if name.endswith(LORA_TARGETS)]
            config = peft.LoraConfig(r=2, target_modules=targets, init_lora_weights=False)
            model = peft.get_peft_model(self.fresh(), config).to(self.dtype)
        right = truth(model, self.rows)
        enable_dss(model, kl_scale=KL_SCALE)
        return verdict(compare(*through(model, DSSCollator(0)(self.rows)), right), self.tolerance)

    def bf16(self) -> str:
        """Not further from float64 than twice the formula on the class's own bf16 logits, or a rounding."""
        model = self.fresh().bfloat16()
        try:
            noise = compare(*truth(model, self.rows), self.right)
        except RuntimeError:
            return "not compared: the class does not run in bf16"
        enable_dss(model, kl_scale=KL_SCALE)
        error = compare(*through(model, DSSCollator(0)(self.rows)), self.right)
        return verdict(error, 2 * noise + 2**-8)

    def reference(self) -> str:
        found = reference_logprobs(self.fresh(), self.rows)
        worst = 0.0
        for row, logp in zip(self.rows, found, strict=True):
            with torch.no_grad():
                logits = self.plain(**inputs_of(row, self.plain.dtype), use_cache=False).logits[0, :-1].log_softmax(-1)
            labels = torch.tensor(row["labels"])
            expected = logits.gather(-1, labels[1:].clamp(min=0)[:, None])[:, 0]
            worst = max(worst, ((logp[1:] - expected)[labels[1:] != -100]).abs().max().item())
        return verdict(worst, self.tolerance)


CELLS: dict[str, Callable[[Case], str]] = {
    "padded": Case.padded,
    "left-padded": Case.left,
    "packed": Case.packed,
    "accumulated": Case.accumulated,
    "LoRA": Case.lora,
    "bf16": Case.bf16,
    "reference": Case.reference,
}


def with_images(name: str) -> str:
    case = Case(name, image_rows(name), **KINDS[name].overrides)
    worst = [found for found in (case.padded(), case.accumulated(), case.reference()) if found != "right"]
    return worst[0] if worst else "right"


def run_class(name: str, cells: tuple[str, ...] = tuple(CELLS)) -> dict[str, str]:
    """Every cell of one class; a class that cannot be made tiny, or run alone, says so instead."""
    warnings.filterwarnings("ignore")
    try:
        if (size := smallest(name)) > LARGEST:
            return {"not tried": f"{size / 1e6:.0f} million parameters are left when all known fields are small"}
        case = Case(name)
    except Exception as error:
        return {"not tried": f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"}
    found = {}
    for cell in [*cells, *(["images"] if name in KINDS else [])]:
        try:
            found[cell] = with_images(name) if cell == "images" else CELLS[cell](case)
        except UserError as error:
            found[cell] = f"refused: {' '.join(str(error).split())[:200]}"
        except Exception as error:
            found[cell] = f"ERROR: {type(error).__name__}: {' '.join(str(error).split())[:160]}"
    return found
