"""The guards wing: what a guard model is asked and how its verdict is read.
It may import chat, models and prefix.
Start with spec.py, a guard as data; known.py lists the vendors' guards; guard.py joins spec, model and tokenizer.
"""

from __future__ import annotations

import importlib
from typing import Any

_KNOWN = ("nemotron_guard", "polyguard", "wildguard", "granite_guardian_4", "with_stated_fields", "find_spec")


def __getattr__(name: str) -> Any:
    """The known specs, as ``fastdss.guards.LLAMA_GUARD_3`` or ``fastdss.guards.wildguard(...)``."""
    if name.isupper() or name in _KNOWN:
        return getattr(importlib.import_module(".known", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
