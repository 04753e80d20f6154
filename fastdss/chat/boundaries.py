"""Where a response is cut: character ends of its prefixes."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from operator import index as as_index

from fastdss.errors import UserError, UserTypeError

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
    return tidy_ends(response, _unit_ends(response, unit, spans)[every - 1 :: every])


def find_settled_ends(begun: str, *, every: int, unit: str, spans: TokenSpans) -> list[int]:
    """Those of ``find_ends`` that every continuation of ``begun`` has too, its own last end among them or not.

    A word is settled by the whitespace after it, a sentence by its line's end or by a character that cannot belong to
    it. ``spans`` gives the tokens that are settled.
    """
    ends = _unit_ends(begun, unit, spans)
    if unit == "word" and begun and not begun[-1].isspace():
        ends = ends[:-1]
    if unit == "sentence" and ends and ends[-1] == len(begun) and not begun.endswith("\n"):
        ends = ends[:-1]
    return sorted(_moved_back(begun, ends[every - 1 :: every]) - {0})


def _unit_ends(text: str, unit: str, spans: TokenSpans) -> list[int]:
    if unit == "word":
        return [match.end() for match in _WORD.finditer(text)]
    if unit == "token":
        return [end for _, end in spans(text)]
    if unit == "sentence":
        return [match.end() for match in _SENTENCE.finditer(text) if match[0].strip()]
    if unit == "character":
        return list(range(1, len(text) + 1))
    raise UserError(f"unit: expected one of {UNITS}, got {unit!r}")


def tidy_ends(response: str, ends: Sequence[int]) -> list[int]:
    """``ends`` moved back over whitespace, ascending, each once, closed by the end of the response's text."""
    cuts = [_integer(index, end) for index, end in enumerate(ends)]
    for index, end in enumerate(cuts):
        if not 0 <= end <= len(response):
            raise UserError(f"ends[{index}]: boundary {end} lies outside of a response of {len(response)} characters")
    return sorted(_moved_back(response, [*cuts, len(response)]) - {0}) or [0]


def _moved_back(text: str, ends: Sequence[int]) -> set[int]:
    words = [0, *(match.end() for match in _WORD.finditer(text))]
    return {end if end and not text[end - 1].isspace() else words[bisect_right(words, end) - 1] for end in ends}


def _integer(place: int, end: int) -> int:
    try:
        return as_index(end)
    except TypeError:
        raise UserTypeError(f"ends[{place}]: expected an integer, got {type(end).__name__}") from None
