"""The settings of `fastdss demo`. Nothing heavy is imported, so that the command line shows the defaults quickly."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from fastdss.errors import UserError

QUICK = 6  # by which --quick divides steps, rows, prompts and answers' lengths
LEAST = {"steps": 1, "batch_size": 2, "every": 1, "rows": 4, "prompts": 2, "new_tokens": 1, "layers": 0, "kl_scale": 0}


@dataclass(frozen=True)
class Settings:
    """All that decides the results, and the file to which they are written."""

    out: str = "demo_report.html"
    seed: int = 0
    arms: tuple[str, ...] = ("none", "sft", "rs", "dss-k2", "dss-reverse")
    verdicts: tuple[str, ...] = ("guard", "labelled")
    policy: str | None = None
    device: str = "auto"
    precision: str = "auto"
    steps: int = 24
    batch_size: int = 8
    learning_rate: float = 2e-4
    kl_scale: float = 0.5
    layers: int | None = None
    every: int = 5
    rows: int = 96
    prompts: int = 56
    new_tokens: int = 48
    threads: int | None = None
    quick: bool = False

    def checked(self) -> Settings:
        """The settings with --quick applied and "auto" resolved; raises ``ValueError`` for impossible ones."""
        chosen = self
        if self.quick:
            smaller = {
                name: max(4, getattr(self, name) // QUICK) for name in ("steps", "rows", "prompts", "new_tokens")
            }
            chosen = replace(self, **smaller)
        for name, least in LEAST.items():
            value = getattr(chosen, name)
            if value is not None and not least <= value < math.inf:
                raise UserError(f"{name}: expected a number of at least {least}, got {value}")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise UserError(f"learning_rate: expected a positive number, got {self.learning_rate}")
        import torch

        from .arms import choose_arms

        device = self.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            raise UserError(f"device: expected one that works here, got {self.device!r}: {error}") from error
        choose_arms(self.arms, self.verdicts)
        return replace(chosen, device=device)
