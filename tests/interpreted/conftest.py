"""Kernels in Triton's interpreter. The mode is fixed when triton is imported, so this folder needs its own process."""

from __future__ import annotations

import os

import pytest

pytest.importorskip("triton", reason="triton is not installed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = [item for item in items if "/interpreted/" in str(item.path)]
    if os.environ.get("TRITON_INTERPRET") == "1":
        marks = [pytest.mark.interpreter]
    else:
        marks = [pytest.mark.skip(reason="run TRITON_INTERPRET=1 pytest tests/interpreted, in a process of its own")]
    for item in here:
        for mark in marks:
            item.add_marker(mark)
