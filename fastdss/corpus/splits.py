"""The split that a file belongs to, by its name."""

from __future__ import annotations

import re
from pathlib import Path

from fastdss.errors import UserError

_SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "eval", "evaluation"),
    "test": ("test", "testing"),
}
_SPLIT = re.compile(
    r"(?:^|[\W_\d])(" + "|".join(word for words in _SPLIT_WORDS.values() for word in words) + r")(?=$|[\W_\d])",
    re.IGNORECASE,
)


def split_of(path: Path) -> str:
    """The split that the name of a file or of one of its folders contains; ``"train"`` where none does."""
    for part in (path.with_suffix("").name, *reversed(path.parts[:-1])):
        words_in_name = _SPLIT.findall(part)
        if words_in_name:
            word = words_in_name[-1].lower()
            return next(name for name, words in _SPLIT_WORDS.items() if word in words)
    return "train"


def check_split(path: str, split: str | None, *own: str | None) -> None:
    """Raise ``ValueError`` where ``split`` is asked of what holds no splits, and neither its path names that one nor is
    it among its ``own`` names."""
    if split is None or split in own:
        return
    named = {split_of(Path(path)), split_of(Path(Path(path).name))}
    if split not in named:
        raise UserError(
            f"split: {path} holds no splits, and its path names {' and '.join(sorted(named))}; got {split!r}: leave it "
            "out"
        )
