"""The trainer of ``fastdss train``: stops where a loss or a weight is no number any more."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastdss.errors import UserError

from ..trainer import DSSTrainer


class NotFinite(UserError, RuntimeError):
    """Training stopped, and no model was saved."""


class StoppingTrainer(DSSTrainer):
    """``DSSTrainer`` that raises ``NotFinite`` for a NaN or infinite loss, and before such weights would be saved."""

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
