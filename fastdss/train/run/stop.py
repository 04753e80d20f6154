"""When ``fastdss train`` saves and stops: by the clock, at Ctrl-C, and where a loss or a weight is NaN or infinite."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import TrainerCallback

from fastdss.console.output import progress_bar
from fastdss.errors import UserError

from ..trainer import DSSTrainer
from .settings import OFTEN

_log = logging.getLogger(__name__)


class Keeper(TrainerCallback):
    """Saves a checkpoint every ``minutes`` (0: never); at Ctrl-C it lets the present step finish, saves, and stops.

    A second Ctrl-C stops at once. In a job of several processes a signal reaches each of them at another step, so there
    the first Ctrl-C stops at once, and all processes go by the clock of the first.
    """

    def __init__(self, minutes: float) -> None:
        self.minutes, self.interrupted, self.last = minutes, False, time.monotonic()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within the context Ctrl-C only marks that training shall stop; ``KeyboardInterrupt`` is raised at its end."""
        if dist.is_initialized() or threading.current_thread() is not threading.main_thread():
            yield
            return

        def ask(*_: object) -> None:
            self.interrupted = True
            signal.signal(signal.SIGINT, before)
            _log.warning("stopping after this step, and saving it; Ctrl-C again stops at once")

        before = signal.signal(signal.SIGINT, ask)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)
        if self.interrupted:
            raise KeyboardInterrupt

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.interrupted:
            control.should_save = control.should_training_stop = True
        elif self.minutes and self._due():
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.last = time.monotonic()

    def _due(self) -> bool:
        due = time.monotonic() - self.last >= 60 * self.minutes
        if dist.is_initialized():
            from_first = [due]
            dist.broadcast_object_list(from_first, src=0)
            due = from_first[0]
        return due


class StepBar(TrainerCallback):
    """A progress bar over all steps, with the last logged loss."""

    def __init__(self, shown: bool) -> None:
        self.shown = shown
        self.bar: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        shown = self.shown and state.is_world_process_zero
        self.bar = progress_bar(state.max_steps, "training", "steps", done=state.global_step, shown=shown)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        assert self.bar is not None
        self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if self.bar is not None and logs and "loss" in logs:
            self.bar.set_postfix_str(f"loss {logs['loss']:.4g}", refresh=False)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


class Log(TrainerCallback):
    """How often a run logs that was not told: every OFTEN steps, in a short one so that its chart has 20 points."""

    def __init__(self, every: int) -> None:
        self.every = every

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        state.logging_steps = self.every or min(OFTEN, max(1, state.max_steps // 20))


class NotFinite(UserError, RuntimeError):
    """Training stopped, and no model was saved."""


class StoppingTrainer(DSSTrainer):
    """A ``DSSTrainer`` that raises ``NotFinite`` for a NaN or infinite loss, and instead of saving such weights."""

    def train(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().train(*args, **kwargs)
        finally:  # after an error too, or the bar's last state would be written below its message
            for callback in self.callback_handler.callbacks:
                if isinstance(callback, StepBar):
                    callback.close()

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        loss = super().training_step(*args, **kwargs)
        self._refuse(loss, f"step {self.state.global_step + 1}: the loss is {loss.item()}")
        return loss

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        metrics = super().evaluate(*args, **kwargs)
        loss = metrics["eval_loss"]
        self._refuse(
            torch.tensor(loss), f"after step {self.state.global_step}: the loss of the held-out rows is {loss}"
        )
        return metrics

    def save_model(self, *args: Any, **kwargs: Any) -> None:
        assert self.model is not None
        for name, weight in self.model.named_parameters():
            if weight.requires_grad:
                local = weight.to_local() if hasattr(weight, "to_local") else weight
                self._refuse(local, f"after step {self.state.global_step}: {name} has weights that are not finite")
        super().save_model(*args, **kwargs)

    def _refuse(self, values: Tensor, what: str) -> None:
        if not values.isfinite().all():
            raise NotFinite(
                f"{what}: stopped, and no model was saved. A learning_rate below {self.args.learning_rate:g} may help, "
                "in a new folder: checkpoints written before may be ruined already"
            )
