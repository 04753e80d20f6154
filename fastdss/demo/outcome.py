"""The result of a demonstration: every arm with all that was measured of it."""

from __future__ import annotations

import platform
from dataclasses import dataclass, field

import torch

from fastdss.star.scores import StarScores
from fastdss.version import __version__

from .arms import Arm
from .conversations import Conversation
from .evaluate import Count, Result
from .policy import Policy
from .settings import Settings
from .training import Curves, Recipe, Row


@dataclass
class Run:
    """One arm with all that was measured of it; ``trained_rows`` is how many rows it trained on."""

    arm: Arm
    result: Result
    curves: Curves = field(default_factory=Curves)
    trained_rows: int = 0
    seconds: float = 0.0

    @property
    def name(self) -> str:
        """A name for people: the arm, and whose verdicts it used."""
        return f"{self.arm.title} ({self.arm.setting})" if self.arm.setting else self.arm.title


@dataclass
class Demo:
    """What the page and the JSON file show."""

    settings: Settings
    versions: dict[str, str]
    policy: str
    recipe: Recipe
    trained_layers: str
    conversations: list[Conversation]
    rows: list[Row]
    scores: dict[str, StarScores]
    facts: dict[str, dict[str, Count]]  # by verdicts, then what was counted
    weights: dict[str, dict[str, float]]  # by verdicts, then by part of the response
    runs: list[Run]
    seconds: float = 0.0


def versions(policy: Policy) -> dict[str, str]:
    import transformers

    device = torch.cuda.get_device_name(policy.device) if policy.device.type == "cuda" else platform.machine()
    return {
        "fastdss": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": f"{policy.device.type} ({device}, {torch.get_num_threads()} threads)",
        "GEMM precision": str(policy.dtype).removeprefix("torch."),
    }
