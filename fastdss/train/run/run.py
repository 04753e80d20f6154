"""The run behind ``fastdss train``: score the data, prepare rows, compute the reference, train, report.

Scores, reference values and checkpoints are kept on disk as they are finished, so that an interrupted run can go on.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from fastdss.console.threads import use_threads
from fastdss.errors import UserError
from fastdss.loss.objective import FULL_KL, KL
from fastdss.models.causal_lm import logit_scale_and_softcap
from fastdss.models.head_call import head_is_adapted, head_trains
from fastdss.models.sources import find_source, read_config, read_model, read_tokenizer
from fastdss.optional import require
from fastdss.star.scored import ScoredConversation, ScoredResponse
from fastdss.upstream.transformers import commit_of, trackers

from ..enable import bare_model
from ..prepare import pack_dataset
from .card import card
from .checkpoints import check_rows, hash_rows, keep_settings, starting_point
from .data import RowCounts, check_template, holds_scores, score_rows, scored_before, scored_here, training_rows
from .settings import OFTEN, TrainSettings

_log = logging.getLogger(__name__)
_KEPT = 3  # checkpoints that stay on disk, since one of a large model takes gigabytes: a choice


def run(settings: TrainSettings, *, progress: bool = False) -> dict[str, Any]:
    """Run everything, from the data file to ``report.html``; returns what the report shows (on other ranks nothing)."""
    require("fastdss train", "train", "accelerate", "datasets", "peft", "pyarrow")
    from datasets import Dataset

    from .stop import Keeper, Log, NotFinite

    use_threads(settings.threads or None)
    out = Path(settings.out)
    out.mkdir(parents=True, exist_ok=True)
    args = training_arguments(settings, out)
    checkpoint = starting_point(settings, Path(args.output_dir))
    tokenizer = load_tokenizer(settings)
    check_early(settings, args, tokenizer)
    row_counts = RowCounts()
    check_template(settings, tokenizer)
    judged_before = holds_scores(settings)
    if judged_before:
        _log.warning("the data comes with scores (column star), so the guard %s is not asked", settings.guard)
        scored = list(scored_before(settings, row_counts))
    else:
        scored = _scored_now(settings, args, out, row_counts, progress)
    commit = commit_of(find_source("model", settings.model).where, settings.revision or None)
    model = load_model(settings, tokenizer, args.bf16)
    places = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    limit = min(settings.max_length, places or settings.max_length)
    responses = [response for conversation in scored for response in conversation.turns]
    aligned = training_rows(scored, tokenizer, limit, row_counts)
    prepared, held_out = split_rows(settings, Dataset.from_list(aligned))
    rows_hash = hash_rows(prepared)
    check_rows(rows_hash, Path(args.output_dir), resumed=checkpoint is not None)
    trainer = make_trainer(settings, args, model, tokenizer, prepared, held_out, limit, progress=progress)
    keeper = Keeper(settings.save_minutes)
    for callback in (keeper, Log(settings.logging_steps)):
        trainer.add_callback(callback)
    before = trainer.evaluate() if held_out is not None else {}
    if trainer.is_world_process_zero():
        keep_settings(settings, rows_hash, Path(args.output_dir))
    after: dict[str, float] = {}
    stopped = None
    try:
        with keeper.listening():
            trainer.train(resume_from_checkpoint=checkpoint)
        after = trainer.evaluate() if held_out is not None else {}
        trainer.save_model(str(out / "model"))
    except NotFinite as error:
        stopped = error
    rows = {"trained": len(prepared), "held_out": 0 if held_out is None else len(held_out)}
    outcome = {
        "settings": asdict(settings),
        "judged_here": not judged_before,
        "model_commit": commit,  # None where the model is a folder
        "rows": row_counts.as_json() | rows,
        "scores": score_summary(responses),
        "before": before,
        "after": after,
        "log": [entry for entry in trainer.state.log_history if "loss" in entry],
        "stopped": None if stopped is None else str(stopped),
    }
    if trainer.is_world_process_zero():
        write_report(outcome, responses, out)
    if stopped is not None:
        raise stopped
    return outcome if trainer.is_world_process_zero() else {}


def _scored_now(
    settings: TrainSettings, args: Any, out: Path, row_counts: RowCounts, progress: bool
) -> list[ScoredConversation]:
    """The data scored by the guard: by one process of each machine, and then read by all."""
    with args.main_process_first(desc="scoring"):
        if args.local_process_index == 0:
            score_rows(settings, out / "scores", str(args.device), progress=progress)
    return list(scored_here(out / "scores", row_counts))


def split_rows(settings: TrainSettings, rows: Any) -> tuple[Any, Any]:
    """The rows to train on and the rows held out (None where ``eval_share`` is 0 or there is one row only)."""
    if not settings.eval_share or len(rows) < 2:
        return rows, None
    split = rows.train_test_split(test_size=max(1, int(settings.eval_share * len(rows))), seed=settings.seed)
    return split["train"], split["test"]


def write_report(outcome: dict[str, Any], scored: list[ScoredResponse], out: Path) -> None:
    """Write ``report.html`` and ``report.json``, where numbers that are not finite, which JSON lacks, become null; and
    the card of the model, if one was saved."""
    from .report import html

    if outcome["stopped"] is None:
        (out / "model" / "README.md").write_text(card(outcome), encoding="utf-8")
    text = json.dumps(json.loads(json.dumps(outcome), parse_constant=lambda _: None), indent=1)
    (out / "report.json").write_text(text, encoding="utf-8")
    (out / "report.html").write_text(html(outcome, scored), encoding="utf-8")


def check_early(settings: TrainSettings, args: Any, tokenizer: Any) -> None:
    """Raise ``ValueError`` now for what would otherwise fail once the guard has worked for hours: a tracker that is not
    installed, a schedule that needs options, adapters for modules that the model lacks."""
    from transformers import AutoModelForCausalLM, get_scheduler

    try:
        for tracker in trackers(args.report_to):
            tracker()
    except (ImportError, RuntimeError, ValueError) as error:
        raise UserError(f"report_to: {error}") from None
    try:
        optimizer = torch.optim.SGD([torch.zeros(1)])
        get_scheduler(args.lr_scheduler_type, optimizer, num_warmup_steps=1, num_training_steps=2)
    except (TypeError, ValueError) as error:
        raise UserError(f"scheduler: {settings.scheduler} has options that cannot be set here: {error}") from None
    config = read_config(find_source("model", settings.model, settings.revision or None))
    with torch.device("meta"):
        adapted(settings, AutoModelForCausalLM.from_config(config), tokenizer)


def score_summary(scored: list[ScoredResponse]) -> dict[str, Any]:
    """What the scores say of the data: how many chunks are below one half, and how many responses with such a chunk end
    with a score above it, which a verdict on the whole response would have passed."""
    scores = [response.scores.tolist() for response in scored]
    below = [min(values) < 0.5 for values in scores]
    return {
        "responses": len(scored),
        "chunks": sum(map(len, scores)),
        "chunks_below_half": sum(score < 0.5 for values in scores for score in values),
        "responses_with_a_chunk_below_half": sum(below),
        "of_these_whole_response_above_half": sum(
            low and values[-1] >= 0.5 for low, values in zip(below, scores, strict=True)
        ),
        "flags": dict(Counter(str(flag) for response in scored for flag in response.flags)),
    }


def load_tokenizer(settings: TrainSettings) -> Any:
    """The policy's tokenizer; raises ``UserError`` where it has no chat template."""
    tokenizer = read_tokenizer(find_source("model", settings.model, settings.revision or None))
    if tokenizer.chat_template is None:
        raise UserError(f"the tokenizer of {settings.model} has no chat template: use an instruction-tuned model")
    return tokenizer


def load_model(settings: TrainSettings, tokenizer: Any, bf16: bool) -> Any:
    """The policy. With LoRA the frozen weights are bf16 where training computes in bf16; trained weights are fp32."""
    lora = settings.method == "lora"
    dtype = torch.bfloat16 if bf16 and lora else torch.float32
    source = find_source("model", settings.model, settings.revision or None)
    return adapted(settings, read_model(source, dtype), tokenizer)


def adapted(settings: TrainSettings, model: Any, tokenizer: Any) -> Any:
    """The model, with adapters where ``method`` is ``lora``; raises ``ValueError`` where tokenizer or adapters do not
    fit the model."""
    rows = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        raise UserError(f"model: expected an embedding for its tokenizer's {len(tokenizer)} tokens, got {rows} rows")
    if settings.method == "lora":
        from peft import LoraConfig, get_peft_model

        targets = [target.strip() for target in settings.lora_targets.split(",")]
        modules = [f".{name}" for name, _ in model.named_modules() if name]
        for target in targets:  # PEFT raises an error only where it finds none of them
            if target != "all-linear" and not any(name.endswith(f".{target}") for name in modules):
                raise UserError(f"lora_targets: expected names of the model's modules, got {target!r}")
        config = LoraConfig(
            task_type="CAUSAL_LM",
            r=settings.lora_rank,
            lora_alpha=2 * settings.lora_rank,
            target_modules="all-linear" if targets == ["all-linear"] else targets,
            revision=settings.revision or None,  # else the saved adapter would be put on the latest commit
        )
        torch.manual_seed(settings.seed)
        model = get_peft_model(model, config)
        base = Path(settings.model).expanduser()
        if base.exists():  # the adapter is loaded from other folders, where a relative path would lead elsewhere
            model.peft_config["default"].base_model_name_or_path = str(base.resolve())
        if settings.checkpointing:
            model.enable_input_require_grads()
    return model


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
        save_total_limit=_KEPT,
        logging_steps=settings.logging_steps or OFTEN,
        logging_first_step=True,
        report_to=settings.report_to,
        seed=settings.seed,
        use_cpu=settings.cpu,
    )


def make_trainer(
    settings: TrainSettings,
    args: Any,
    model: Any,
    tokenizer: Any,
    train: Any,
    held_out: Any,
    limit: int,
    *,
    progress: bool = False,
) -> Any:
    """The trainer with one progress bar in place of its own, and with a reference: columns computed once where that is
    possible, else a model that is asked at every step."""
    from transformers import PrinterCallback, ProgressCallback

    from .stop import StepBar, StoppingTrainer

    if settings.packing:  # before the reference's columns, which would make the rows to pack many times larger
        train = pack_dataset(train, limit)
        held_out = None if held_out is None else pack_dataset(held_out, limit)
    reference: Any = None
    if computed_before(settings, model):
        train = with_reference(settings, args, model, train, progress)
        held_out = None if held_out is None else with_reference(settings, args, model, held_out, progress)
    else:
        reference = "adapter" if settings.method == "lora" else load_model(settings, tokenizer, args.bf16)
    trainer = StoppingTrainer(
        model=model,
        args=args,
        train_dataset=train,
        eval_dataset=held_out,
        processing_class=tokenizer,
        config=settings.dss,
        ref_model=reference,
    )
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    trainer.add_callback(StepBar(progress))
    return trainer


def computed_before(settings: TrainSettings, model: Any) -> bool:
    """Whether columns of the data can hold all that the KL term needs of the reference.

    They can for k1, k2 and k3, and for the forward KL if policy and reference share a frozen head without softcap.
    """
    if settings.kl not in FULL_KL or not settings.kl_scale:
        return True
    bare = bare_model(model)
    shared_head = not head_trains(bare) and not head_is_adapted(bare) and logit_scale_and_softcap(bare)[1] is None
    return settings.kl == KL.FORWARD and shared_head and not settings.live_reference


def with_reference(settings: TrainSettings, args: Any, model: Any, rows: Any, progress: bool) -> Any:
    """``rows`` with the columns that the loss needs of the model before training, computed in training's precision."""
    from ..reference import add_reference_logprobs

    if not settings.dss.needs_reference:
        return rows
    model.to(args.device)
    options: dict[str, Any] = {"cache_dir": Path(settings.out) / "reference", "progress": progress}
    without_adapter = model.disable_adapter() if settings.method == "lora" else nullcontext()
    device_type = torch.device(args.device).type
    with without_adapter, torch.autocast(device_type, dtype=torch.bfloat16, enabled=args.bf16):
        forward_kl = settings.kl == KL.FORWARD and settings.kl_scale > 0
        return add_reference_logprobs(rows, model, forward_kl=forward_kl, **options)
