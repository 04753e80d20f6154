"""The run behind ``fastdss train``: score, prepare, reference, train, report; each finished piece is kept on disk."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch

from .collator import DSSCollator, pack_dataset, prepare_dss_dataset
from .losses import KL
from .objective import FULL_KL
from .train_command import TrainSettings

_log = logging.getLogger(__name__)
_SCORED_AT_ONCE = 32


def run(settings: TrainSettings) -> dict[str, Any]:
    """Everything from the data file to ``report.html``; returns what the report shows."""
    try:
        import accelerate  # noqa: F401
        from datasets import Dataset
    except ImportError as error:
        raise RuntimeError(f"fastdss train needs the train extra: pip install 'fastdss[train]' ({error})") from error
    out = Path(settings.out)
    out.mkdir(parents=True, exist_ok=True)
    args = training_arguments(settings, out)
    rows = read_rows(settings.data)
    with args.main_process_first(desc="scoring"):
        scored = score_rows(rows, settings, out / "scores.jsonl", str(args.device))
    tokenizer, model = load_model(settings, args.bf16)
    limit = min(settings.max_length, getattr(model.config.get_text_config(), "max_position_embeddings", math.inf))
    prepared = prepare_dss_dataset(Dataset.from_list(scored), tokenizer, max_length=int(limit))
    held_out = None
    if settings.eval_share and len(prepared) > 1:
        split = prepared.train_test_split(
            test_size=max(1, int(settings.eval_share * len(prepared))), seed=settings.seed
        )
        prepared, held_out = split["train"], split["test"]
    trainer = make_trainer(settings, args, model, tokenizer, prepared, held_out, int(limit))
    before = trainer.evaluate() if held_out is not None else {}
    trainer.train(resume_from_checkpoint=settings.resume or None)
    after = trainer.evaluate() if held_out is not None else {}
    trainer.save_model(str(out / "model"))
    if not trainer.is_world_process_zero():
        return {}
    tokenizer.save_pretrained(out / "model")
    found = {
        "settings": asdict(settings),
        "rows": {"read": len(rows), "trained": len(prepared), "held_out": 0 if held_out is None else len(held_out)},
        "scores": score_summary(scored),
        "before": before,
        "after": after,
        "log": [entry for entry in trainer.state.log_history if "loss" in entry],
    }
    (out / "report.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    from .train_report import html

    (out / "report.html").write_text(html(found, scored), encoding="utf-8")
    _log.info("wrote %s", out / "report.html")
    return found


def read_rows(path: str) -> list[dict[str, Any]]:
    """Conversations of a JSONL or Parquet file, each as ``prompt`` (text or messages) and ``response``."""
    from datasets import load_dataset

    kind = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}.get(Path(path).suffix)
    if kind is None:
        raise ValueError(f"data: expected a .jsonl, .json or .parquet file, got {path!r}")
    if not Path(path).is_file():
        raise ValueError(f"data: {path} does not exist")
    rows = []
    for index, row in enumerate(load_dataset(kind, data_files=path, split="train")):
        if row.get("messages"):
            *prompt, last = row["messages"]
            row = {"prompt": prompt, "response": last["content"]}
        if row.get("prompt") is None or row.get("response") is None:
            raise ValueError(f"data: row {index} has neither messages nor prompt and response; it has {sorted(row)}")
        rows.append({"prompt": row["prompt"], "response": row["response"]})
    if not rows:
        raise ValueError(f"data: {path} has no rows")
    return rows


def score_rows(rows: list[dict[str, Any]], settings: TrainSettings, store: Path, device: str) -> list[dict[str, Any]]:
    """Rows with ``scores``, ``ends`` and ``flags``; scores already in ``store`` for this data and guard are read.

    Rows on which the guard failed are left out and counted in the log: they never default to safe.
    """
    key = {"guard": settings.guard, "every": settings.every, "unit": settings.unit, "data": _digest(rows)}
    known = _read_scores(store, key)
    if len(known) < len(rows):
        from tqdm.auto import tqdm

        from .scoring import star_scores

        guard = load_guard(settings.guard, device)
        with (
            store.open("a", encoding="utf-8") as file,
            tqdm(total=len(rows), initial=len(known), desc="scoring") as bar,
        ):
            for start in range(len(known), len(rows), _SCORED_AT_ONCE):
                part = rows[start : start + _SCORED_AT_ONCE]
                batch = {name: [row[name] for row in part] for name in ("prompt", "response")}
                found = star_scores(guard, batch, every=settings.every, unit=settings.unit)
                lines = [
                    {"scores": scores.tolist(), "ends": ends, "flags": sorted(flags)}
                    for scores, ends, flags in zip(found.scores, found.ends, found.flags, strict=True)
                ]
                file.writelines(json.dumps(line) + "\n" for line in lines)
                file.flush()
                known += lines
                bar.update(len(part))
    scored = [row | line for row, line in zip(rows, known, strict=True) if "failed" not in line["flags"]]
    if len(scored) < len(rows):
        _log.warning("the guard failed on %d of %d rows: left out", len(rows) - len(scored), len(rows))
    return scored


def _read_scores(store: Path, key: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Finished lines of a store with this key; any other store is started anew. A half-written last line is cut off."""
    lines = store.read_text(encoding="utf-8").split("\n") if store.exists() else []
    header, *finished = lines[:-1] or [""]
    if header != json.dumps(key):
        store.write_text(json.dumps(key) + "\n", encoding="utf-8")
        return []
    if lines[-1]:
        store.write_text("\n".join(lines[:-1]) + "\n", encoding="utf-8")
    return [json.loads(line) for line in finished]


def _digest(rows: list[dict[str, Any]]) -> str:
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()


def score_summary(scored: list[dict[str, Any]]) -> dict[str, Any]:
    """What the guard thought of the data: chunks, how many below one half, responses that end safe but were not."""
    chunks = [score for row in scored for score in row["scores"]]
    below = [min(row["scores"]) < 0.5 for row in scored]
    return {
        "chunks": len(chunks),
        "chunks_below_half": sum(score < 0.5 for score in chunks),
        "responses_with_a_chunk_below_half": sum(below),
        "of_these_whole_response_above_half": sum(
            b and row["scores"][-1] >= 0.5 for b, row in zip(below, scored, strict=True)
        ),
        "flags": {flag: sum(flag in row["flags"] for row in scored) for row in scored for flag in row["flags"]},
    }


def load_guard(name: str, device: str) -> Any:
    from .guard import Guard

    guard = Guard.tiny() if name == "tiny" else Guard.from_pretrained(name)
    guard.model.to(device)
    return guard


def load_model(settings: TrainSettings, bf16: bool) -> tuple[Any, Any]:
    """Tokenizer and policy: adapters over a model in bf16 where the hardware has it, else fp32 weights."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    lora = settings.method == "lora"
    tokenizer = AutoTokenizer.from_pretrained(settings.model)
    if tokenizer.chat_template is None:
        raise ValueError(f"the tokenizer of {settings.model} has no chat template: use an instruction-tuned model")
    dtype = torch.bfloat16 if bf16 and lora else torch.float32
    model: Any = AutoModelForCausalLM.from_pretrained(settings.model, dtype=dtype)
    if lora:
        from peft import LoraConfig, get_peft_model

        targets = settings.lora_targets
        config = LoraConfig(
            task_type="CAUSAL_LM",
            r=settings.lora_rank,
            lora_alpha=2 * settings.lora_rank,
            target_modules=targets if targets == "all-linear" else targets.split(","),
        )
        torch.manual_seed(settings.seed)
        model = get_peft_model(model, config)
        if settings.checkpointing:
            model.enable_input_require_grads()
    return tokenizer, model


def training_arguments(settings: TrainSettings, out: Path) -> Any:
    from transformers import TrainingArguments

    gpu = torch.cuda.is_available() and not settings.cpu
    bf16 = settings.precision == "bf16" or (settings.precision == "auto" and gpu and torch.cuda.is_bf16_supported())
    return TrainingArguments(
        output_dir=str(out / "checkpoints"),
        num_train_epochs=settings.epochs,
        max_steps=settings.max_steps,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.accumulation,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.scheduler,
        warmup_steps=settings.warmup_steps,
        weight_decay=settings.weight_decay,
        bf16=bf16,
        gradient_checkpointing=settings.checkpointing,
        save_strategy="steps" if settings.save_steps else "epoch",
        save_steps=settings.save_steps or 500,
        logging_steps=settings.logging_steps,
        logging_first_step=True,
        report_to=settings.report_to,
        seed=settings.seed,
        use_cpu=settings.cpu,
    )


def make_trainer(
    settings: TrainSettings, args: Any, model: Any, tokenizer: Any, train: Any, held_out: Any, limit: int
) -> Any:
    """A trainer with its reference: values computed once for the label forms, a live one for the full KL."""
    from .reference import reference_logprobs
    from .trainer import DSSTrainer

    reference: Any = None
    if settings.kl in FULL_KL:
        reference = "adapter" if settings.method == "lora" else load_model(settings, args.bf16)[1]
    else:
        model.to(args.device)
        device_type = torch.device(args.device).type

        def with_reference(rows: Any) -> Any:
            without_adapter = model.disable_adapter() if settings.method == "lora" else nullcontext()
            with without_adapter, torch.autocast(device_type, dtype=torch.bfloat16, enabled=args.bf16):
                values = reference_logprobs(model, rows, cache_dir=Path(settings.out) / "reference", progress=True)
            return rows.add_column("ref_logprobs", [row.tolist() for row in values])

        train = with_reference(train)
        held_out = None if held_out is None else with_reference(held_out)
    if settings.packing:
        train = pack_dataset(train, limit)
        held_out = None if held_out is None else pack_dataset(held_out, limit)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return DSSTrainer(
        model=model,
        args=args,
        train_dataset=train,
        eval_dataset=held_out,
        processing_class=tokenizer,
        data_collator=DSSCollator(pad or 0, kl_scale=settings.kl_scale, padding_free=settings.packing),
        kl=cast(KL, settings.kl),
        kl_scale=settings.kl_scale,
        reference=reference,
    )
