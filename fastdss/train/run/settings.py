"""The settings of a run of ``fastdss train``, given by flags or in a YAML file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from fastdss.chat.boundaries import UNITS
from fastdss.chat.conversation import WHICH_TURNS
from fastdss.chat.formats import BY_NAME
from fastdss.chat.record import Columns
from fastdss.corpus.option_help import HELP
from fastdss.corpus.rows import DataOptions
from fastdss.errors import UserError
from fastdss.loss.checks import BACKENDS
from fastdss.loss.objective import KL
from fastdss.models.sources import check_revision
from fastdss.star.options import ScoringOptions

from ..config import DSSConfig

CHOICES = {
    "unit": UNITS,
    "format": ("auto", *BY_NAME),
    "turns": WHICH_TURNS,
    "kl": tuple(KL),
    "backend": BACKENDS,
    "method": ("lora", "full"),
    "precision": ("auto", "bf16", "fp32"),
}


_LEAST = {
    **dict.fromkeys(("every", "lora_rank", "batch_size", "accumulation", "max_length", "max_bytes"), 1),
    **dict.fromkeys(("kl_scale", "epochs", "learning_rate", "warmup_steps", "weight_decay", "seed", "max_tokens"), 0),
    **dict.fromkeys(("csft_beta", "save_steps", "save_minutes", "threads", "logging_steps"), 0),
}


OFTEN = 10  # steps between log lines, at most, where nothing is said
_LARGEST_SEED = 2**32 - 1  # numpy takes no larger one


def _set(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class TrainSettings:
    """One run: data, models, loss, optimisation. The names are the flags' and the YAML file's."""

    data: str = _set("", f"{HELP['data']}; with scores or without")
    model: str = _set("", "causal LM to fine-tune: smollm2, a folder, a GGUF file or a Hub id")
    guard: str = _set("tiny", HELP["guard"])
    revision: str = _set("", "commit, tag or branch of the model on the Hub")
    guard_revision: str = _set("", HELP["revision"])
    out: str = _set("fastdss_run", "folder for scores, checkpoints, the model and the report")
    every: int = _set(ScoringOptions.every, HELP["every"])
    unit: str = _set(ScoringOptions.unit, HELP["unit"])
    max_tokens: int = _set(0, f"{HELP['max_tokens']}; 0: no limit but that context")
    format: str = _set(DataOptions.format, HELP["format"])
    split: str = _set("", HELP["split"])
    config_name: str = _set("", HELP["config"])
    turns: str = _set(DataOptions.turns, HELP["turns"])
    prompt_column: str = _set(Columns.prompt, HELP["prompt_column"])
    response_column: str = _set(Columns.response, HELP["response_column"])
    messages_column: str = _set(Columns.messages, HELP["messages_column"])
    id_column: str = _set(Columns.id, HELP["id_column"])
    number_rows: bool = _set(False, HELP["number_rows"])
    max_bytes: int = _set(DataOptions.max_bytes, HELP["max_bytes"])
    kl: str = _set(str(DSSConfig.kl), "form of the KL term")
    kl_scale: float = _set(DSSConfig.kl_scale, "factor of the KL term, lambda in the paper")
    dft: bool = _set(DSSConfig.dft, "dynamic fine-tuning: weigh each token of the cross-entropy by its probability")
    csft_beta: float = _set(
        0.0, "constrained fine-tuning: bound the pull at labels that the reference finds less likely; 0: no"
    )
    live_reference: bool = _set(False, "for the forward KL, run the reference at every step instead of once before")
    grad_tol: float = _set(0.0, "share of the logits' gradient that the head's GEMMs may leave out; 0: exact")
    backend: str = _set(DSSConfig.backend, "which implementation computes the loss")
    chunk_bytes: int = _set(0, "most bytes of logits that exist at one time; 0: by the device")
    method: str = _set("lora", "what is trained: adapters, or the full model")
    lora_rank: int = _set(16, "rank of the adapters")
    lora_targets: str = _set("all-linear", "modules with adapters, separated by commas")
    epochs: float = _set(3.0, "passes over the data")
    max_steps: int = _set(-1, "optimiser steps after which to stop, in place of epochs; -1: by epochs")
    batch_size: int = _set(8, "rows per device and micro-batch")
    accumulation: int = _set(1, "micro-batches per optimiser step")
    learning_rate: float = _set(2e-4, "peak of the schedule")
    scheduler: str = _set("cosine", "learning rate schedule of transformers")
    warmup_steps: float = _set(0.03, "steps until the peak: a number, or below 1 a share of all steps")
    weight_decay: float = _set(0.0, "weight decay of AdamW")
    max_length: int = _set(2048, "tokens per row; longer rows are cut")
    packing: bool = _set(False, "join short rows to long ones, without padding")
    checkpointing: bool = _set(False, "recompute activations in the backward pass, to save memory")
    precision: str = _set("auto", "precision of matrix products")
    eval_share: float = _set(0.1, "share of rows held out")
    save_steps: int = _set(0, "steps between checkpoints; 0: once an epoch")
    save_minutes: float = _set(10.0, "most minutes between checkpoints; 0: by steps or epochs alone")
    logging_steps: int = _set(0, "steps between log lines and points of the chart; 0: 10, fewer in a short run")
    report_to: str = _set("none", "tracker of transformers: none, wandb, tensorboard, …")
    seed: int = _set(0, "seed of the held-out rows, the adapters and the order of rows")
    resume: bool = _set(False, "go on from the last finished checkpoint in the folder, with the same settings")
    cpu: bool = _set(False, "do not use a GPU")
    threads: int = _set(0, "CPU threads; 0: PyTorch's choice")

    def __post_init__(self) -> None:
        for name in ("data", "model"):
            if not getattr(self, name):
                raise UserError(f"--{name} is required, by flag or in the YAML file")
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise UserError(f"{name}: expected one of {', '.join(choices)}, got {getattr(self, name)!r}")
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if not least <= value < math.inf:
                raise UserError(f"{name}: expected a number of at least {least}, got {value}")
        check_revision("revision", self.model, self.revision)
        check_revision("guard_revision", self.guard, self.guard_revision)
        _ = self.dss  # making a DSSConfig checks the loss's options
        if not self.epochs and self.max_steps == -1:
            raise UserError("epochs: 0 of them train nothing; expected more, or max_steps")
        if self.max_steps != -1 and self.max_steps < 1:  # 0 would train for all epochs
            raise UserError(f"max_steps: expected a positive number, or -1, got {self.max_steps}")
        if self.seed > _LARGEST_SEED:
            raise UserError(f"seed: expected at most {_LARGEST_SEED}, got {self.seed}")
        if not 0 <= self.eval_share < 1:
            raise UserError(f"eval_share: expected a share in [0, 1), got {self.eval_share}")

    @property
    def dss(self) -> DSSConfig:
        """The shaped loss's options. A flag cannot say None, so 0 stands for it."""
        return DSSConfig(
            kl=self.kl,  # type: ignore[arg-type]  # one of CHOICES
            kl_scale=self.kl_scale,
            backend=self.backend,  # type: ignore[arg-type]
            chunk_bytes=self.chunk_bytes or None,
            grad_tol=self.grad_tol or None,
            dft=self.dft,
            csft_beta=self.csft_beta or None,
        )


def read_settings(given: Mapping[str, Any], config: str | None = None) -> TrainSettings:
    """The settings of a run: a flag (``given``; None where it is absent) wins over the YAML file ``config``, and that
    over the default.

    Raises ``ValueError`` for unknown names and values of the wrong type.
    """
    values: dict[str, Any] = {}
    if config is not None:
        import yaml

        try:
            text = Path(config).read_text(encoding="utf-8")
            loader = yaml.SafeLoader(text)
            named = loader.get_single_node()
            values = {} if named is None else loader.construct_document(named)
        except UnicodeDecodeError as error:
            raise UserError(f"{config}: expected text in UTF-8, got other bytes at position {error.start}") from None
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            where = "" if mark is None else f", line {mark.line + 1}"
            raise UserError(f"{config}{where}: not a YAML file of settings ({type(error).__name__})") from None
        values = {} if values is None else values
        if not isinstance(values, dict):
            raise UserError(f"{config}: expected a mapping of settings, got {type(values).__name__}")
        names = [key.value for key, _ in named.value] if values else []
        for name in names:
            if names.count(name) > 1:  # PyYAML would silently take the last
                raise UserError(f"{config}: {name!r} is set {names.count(name)} times")
    values |= {name: value for name, value in given.items() if value is not None}
    known = {f.name: type(f.default) for f in fields(TrainSettings)}
    for name, value in values.items():
        if name not in known:
            near = get_close_matches(str(name), known, 1)
            meant = f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(known)}"
            raise UserError(f"unknown setting {name!r}{meant}")
        values[name] = _typed(name, value, known[name])
    return TrainSettings(**values)


def _typed(name: str, value: Any, kind: type) -> Any:
    if kind is float and isinstance(value, str | int) and not isinstance(value, bool):
        try:
            return float(value)  # YAML reads 5e-6 as text
        except ValueError:
            pass
        except OverflowError:
            raise UserError(f"{name}: expected float, got an integer beyond the largest float") from None
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise UserError(f"{name}: expected {kind.__name__}, got {value!r}")
    return value
