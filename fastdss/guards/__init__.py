"""The guards wing: what a guard model is asked and how its verdict is read.
It may import chat, models and prefix.
Start with spec.py, a guard as data; vendors.py and classifiers.py have the vendors'; guard.py joins a spec with model
and tokenizer.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOME = {"find_spec": "known", "with_options": "options", "View": "view"}


def __getattr__(name: str) -> Any:
    """The known specs, such as ``fastdss.guards.LLAMA_GUARD_3``, and ``find_spec``, ``with_options`` and ``View``."""
    if name.startswith("_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    homes = (_HOME[name],) if name in _HOME else ("vendors", "classifiers")
    modules = [importlib.import_module(f".{home}", __name__) for home in homes]
    return getattr(next((module for module in modules if hasattr(module, name)), modules[0]), name)
