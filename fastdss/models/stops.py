"""At which tokens a model stops writing, to compare with those that end what it is trained to write."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def stop_tokens(model: Any) -> frozenset[int]:
    """The ids at which ``model.generate`` stops; empty where it knows none."""
    for config in (getattr(model, "generation_config", None), model.config.get_text_config(decoder=True)):
        ids = getattr(config, "eos_token_id", None)
        if ids is not None:
            return frozenset([int(ids)] if isinstance(ids, int) else map(int, ids))
    return frozenset()


def unstopped(labels: Sequence[Sequence[int]], stops: frozenset[int], ignored: int = -100) -> bool:
    """Whether no row's last label that counts is one of ``stops``: a model that learns these rows never ends."""
    last = [next((label for label in reversed(row) if label != ignored), None) for row in labels]
    known = [label for label in last if label is not None]
    return bool(stops and known) and not any(label in stops for label in known)
