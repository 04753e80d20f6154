"""The guards wing: what a guard model is asked and how its verdict is read.
It may import chat, models and prefix.
Start with spec.py, a guard as data; vendors.py has the vendors'; guard.py joins spec, model and tokenizer.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOME = {"find_spec": "known", "with_options": "options", "View": "view"}


def __getattr__(name: str) -> Any:
    """The known specs, such as ``fastdss.guards.LLAMA_GUARD_3``, and ``find_spec``, ``with_options`` and ``View``."""
    if name.startswith("_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME.get(name, 'vendors')}", __name__), name)
