"""Long modes are asked for by name: ``--hypothesis-profile=long``, and ``--soak`` for the slow tests of hardening."""

from __future__ import annotations

import pytest
from hypothesis import Phase, settings

settings.register_profile("ci", derandomize=True, deadline=None)
settings.register_profile("long", derandomize=False, deadline=None, max_examples=2000, print_blob=True)
# Planted faults: that a test fails is all that matters, not by which smallest example.
settings.register_profile("plant", derandomize=True, deadline=None, phases=(Phase.explicit, Phase.generate))
settings.load_profile("ci")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak", action="store_true", help="run what tests/hardening marks slow")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if "/hardening/" in str(item.path) and item.get_closest_marker("slow") and not config.getoption("--soak"):
            item.add_marker(pytest.mark.skip(reason="takes minutes: pytest tests/hardening --soak"))
