"""Profiles of hypothesis; ``--hypothesis-profile=long`` looks further. And what was skipped, see ``skips``."""

from __future__ import annotations

from hypothesis import Phase, settings

from .skips import (
    pytest_addoption,
    pytest_collection_modifyitems,
    pytest_sessionfinish,
    pytest_terminal_summary,
)

__all__ = [
    "pytest_addoption",
    "pytest_collection_modifyitems",
    "pytest_sessionfinish",
    "pytest_terminal_summary",
]

settings.register_profile("ci", derandomize=True, deadline=None)
settings.register_profile("long", derandomize=False, deadline=None, max_examples=2000, print_blob=True)
# Planted faults: that a test fails is all that matters, not by which smallest example.
settings.register_profile("plant", derandomize=True, deadline=None, phases=(Phase.explicit, Phase.generate))
settings.load_profile("ci")
