"""How many examples a property test tries."""

from __future__ import annotations

from hypothesis import settings


def examples(count: int) -> settings:
    """``count`` of them in a normal run, twenty times as many under ``--hypothesis-profile=long``."""
    return settings(max_examples=count * settings().max_examples // settings.get_profile("ci").max_examples)
