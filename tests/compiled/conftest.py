"""Kernels compiled ahead of time for chips that need not be here. Not in the interpreter's process."""

from __future__ import annotations

import os

import pytest

pytest.importorskip("triton", reason="triton is not installed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = [item for item in items if "/compiled/" in str(item.path)]
    for item in here:
        item.add_marker(pytest.mark.aot)
        if os.environ.get("TRITON_INTERPRET") == "1":
            item.add_marker(pytest.mark.skip(reason="run pytest tests/compiled without TRITON_INTERPRET"))
