"""Where a response is cut: character ends of its prefixes."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

TokenSpans = Callable[[str], list[tuple[int, int]]]

_WORD = re.compile(r"\S+")
_SENTENCE = re.compile(r"[^.!?。！？\n]*(?:[.!?。！？]+[\"'”’)\]]*|\n|$)")
UNITS = ("word", "token", "sentence", "character")


def find_ends(response: str, *, every: int, unit: str, spans: TokenSpans) -> list[int]:
    """Ascending character ends of the prefixes of ``response``; the last covers its last non-whitespace character.

    Ends of every ``every``-th word (maximal run of non-whitespace), token (``spans`` gives the tokens of the response
    on its own), sentence or character. A prefix never ends on whitespace, so an end is moved back over it, and equal
    ends count once. A response of whitespace only has the one end 0.
    """
    if unit == "word":
        ends = [match.end() for match in _WORD.finditer(response)]
    elif unit == "token":
        ends = [end for _, end in spans(response)]
    elif unit == "sentence":
        ends = [match.end() for match in _SENTENCE.finditer(response) if match[0].strip()]
    elif unit == "character":
        ends = list(range(1, len(response) + 1))
    else:
        raise ValueError(f"unit: expected one of {UNITS}, got {unit!r}")
    return tidy_ends(response, ends[every - 1 :: every])


def tidy_ends(response: str, ends: Sequence[int]) -> list[int]:
    """``ends`` moved back over whitespace, ascending, each once, closed by the end of the response's text."""
    for end in ends:
        if not 0 <= end <= len(response):
            raise ValueError(f"boundary {end} lies outside of a response of {len(response)} characters")
    whole = len(response.rstrip())
    tidy = {len(response[:end].rstrip()) for end in ends} | {whole}
    return sorted(tidy - {0}) or [0]
