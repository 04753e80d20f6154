"""At which tokens a model stops generating, to compare with the tokens that end its training data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def stop_tokens(model: Any) -> frozenset[int]:
    """The ids at which ``model.generate`` stops; empty where the model sets none."""
    for config in (getattr(model, "generation_config", None), model.config.get_text_config(decoder=True)):
        ids = getattr(config, "eos_token_id", None)
        if ids is not None:
            return frozenset([int(ids)] if isinstance(ids, int) else map(int, ids))
    return frozenset()


def unstopped(labels: Sequence[Sequence[int]], stops: frozenset[int], ignored: int = -100) -> bool:
    """Whether none of the rows ends with a label in ``stops``: a model trained on them would never end an answer."""
    last = [next((label for label in reversed(row) if label != ignored), None) for row in labels]
    known = [label for label in last if label is not None]
    return bool(stops and known) and not any(label in stops for label in known)
