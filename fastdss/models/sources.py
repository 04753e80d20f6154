"""Where models come from: a folder, or an id of the Hub."""

from __future__ import annotations

from pathlib import Path


def check_source(what: str, name: str) -> None:
    """``FileNotFoundError`` where ``name`` can only be a folder and there is none; anything else may be a Hub id."""
    path = Path(name)
    if not path.exists() and (path.is_absolute() or name.startswith((".", "~")) or len(path.parts) > 2):
        raise FileNotFoundError(f"{what}: there is no folder {name}")
