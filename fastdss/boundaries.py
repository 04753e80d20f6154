"""Where a response is cut: character ends of its prefixes."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from operator import index as as_index

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
    cuts = [_integer(index, end) for index, end in enumerate(ends)]
    for index, end in enumerate(cuts):
        if not 0 <= end <= len(response):
            raise ValueError(f"ends[{index}]: boundary {end} lies outside of a response of {len(response)} characters")
    words = [0, *(match.end() for match in _WORD.finditer(response))]
    tidy = {end if end and not response[end - 1].isspace() else words[bisect_right(words, end) - 1] for end in cuts}
    return sorted((tidy | {words[-1]}) - {0}) or [0]


def _integer(place: int, end: int) -> int:
    try:
        return as_index(end)
    except TypeError:
        raise TypeError(f"ends[{place}]: expected an integer, got {type(end).__name__}") from None
