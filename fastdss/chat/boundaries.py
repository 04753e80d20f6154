"""Where a response is cut: the character positions at which its prefixes end."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from operator import index as as_index

from fastdss.errors import UserError, UserTypeError

from . import unspaced

TokenSpans = Callable[[str], list[tuple[int, int]]]

_WORD = re.compile(r"\S+")
UNITS = ("word", "token", "sentence", "character")
# Marks that end a sentence wherever they stand (ideographic and full-width ones, danda, those of Arabic, Ethiopic,
# Armenian, Khmer, Burmese, Tibetan); a point, "!", "?" and "…" end one only before white space: "3.14", "a.org/?q".
_ANYWHERE = "。！？｡．।॥؟۔։።፧៕។၊။༎།᠃᠉꓿"
_CLOSING = "\"'”’»)\\]）」』】〉》"
_SENTENCE_END = re.compile(rf"(?:[{_ANYWHERE}][{_ANYWHERE}.!?…]*|[.!?…‼⁇⁈⁉]+[{_ANYWHERE}]*)[{_CLOSING}]*|(?P<line>\n)")
# Abbreviations, in lower case: a point after one does not end a sentence. The list is short, because a wrong guess only
# moves one boundary and loses nothing.
_ABBREVIATED = """dr mr mrs ms mx prof rev gen col sgt capt lt ste mt nr vol pp fig eq ed eds cf vs viz approx inc ltd
corp dept univ est e.g i.e eg ie a.k.a u.s u.k jan feb apr aug sept oct nov dec z.b d.h u.a bzw ca usw ggf evtl abs bsp
vgl sog mme mlle p.ex sr sra srta uds dott т.е т.д т.п ул"""
_ABBREVIATIONS = frozenset(_ABBREVIATED.split())
_BEFORE_POINT = re.compile(r"[\w.\-]*$")


def find_ends(response: str, *, every: int, unit: str, spans: TokenSpans) -> list[int]:
    """Ascending character ends of the prefixes of ``response``; the last covers its last non-whitespace character.

    A prefix ends after every ``every``-th word, token (``spans`` gives the tokens of the response on its own), sentence
    or character. A word is a maximal run of non-whitespace; runs of scripts that put no blanks between words (Chinese,
    Japanese, Thai, Khmer, ...) are divided by ICU's dictionaries. A sentence ends at a mark of any script or at a
    line's end, but not inside of "3.14" or after "Dr.". A prefix never ends on whitespace: such an end is moved back
    over it, and equal ends count once. A response of nothing but whitespace has the one end 0.
    """
    return tidy_ends(response, _unit_ends(response, unit, spans)[every - 1 :: every])


def find_settled_ends(begun: str, *, every: int, unit: str, spans: TokenSpans) -> list[int]:
    """The ends of ``find_ends`` that ``begun``, the text so far, will keep however it goes on.

    The end of ``begun`` itself is among them only if it will stay one. A word is settled once whitespace follows it or,
    in scripts without blanks, at most ``unspaced.WINDOW`` further characters; a sentence once its line has ended or a
    character follows that cannot belong to it. ``spans`` gives the tokens that are settled.
    """
    ends = _unit_ends(begun, unit, spans)
    if unit == "word" and begun and not begun[-1].isspace():
        limit = unspaced.settled_until(begun)
        ends = [end for end in ends[:-1] if end <= limit]
    if unit == "sentence" and ends and ends[-1] == len(begun) and not begun.endswith("\n"):
        ends = ends[:-1]
    return sorted(_moved_back(begun, ends[every - 1 :: every]) - {0})


def _unit_ends(text: str, unit: str, spans: TokenSpans) -> list[int]:
    if unit == "word":
        if unspaced.occurs_in(text):
            return [end for match in _WORD.finditer(text) for end in unspaced.word_ends(text, *match.span())]
        return [match.end() for match in _WORD.finditer(text)]
    if unit == "token":
        return [end for _, end in spans(text)]
    if unit == "sentence":
        return _sentence_ends(text)
    if unit == "character":
        return list(range(1, len(text) + 1))
    raise UserError(f"unit: expected one of {', '.join(UNITS)}, got {unit!r}")


def _sentence_ends(text: str) -> list[int]:
    """The ends of the sentences; a mark is judged by the text before it and by the one character after it."""
    ends: list[int] = []
    start = 0
    for match in _SENTENCE_END.finditer(text):
        end = match.end()
        if match["line"] is None and not _ends_sentence(text, start, match.start(), end):
            continue
        if match["line"] is not None and text[start:end].isspace():
            start = end
            continue
        ends.append(end)
        start = end
    return [*ends, len(text)] if text[start:].strip() else ends


def _ends_sentence(text: str, start: int, mark: int, end: int) -> bool:
    if text[mark] in _ANYWHERE:
        return True
    if end < len(text) and not text[end].isspace():
        # No blank follows, so the mark stands inside a number, a name or an address, or its script writes no blanks.
        return text[mark] != "." and unspaced.occurs_in(text[end])
    if text[mark : mark + 2].rstrip() != ".":
        return True
    # 40 characters hold any abbreviation or number of a list; looking further back would take longer for long texts.
    found = _BEFORE_POINT.search(text, max(start, mark - 40), mark)
    word = found[0] if found else ""
    if word.lower() in _ABBREVIATIONS or (len(word) == 1 and word.isupper()):
        return False
    begun = text[max(start, mark - 40) : mark].rpartition("\n")[2].strip()
    return not (word.isdigit() and begun == word)  # the "1." before an item of a list does not end a sentence


def tidy_ends(response: str, ends: Sequence[int]) -> list[int]:
    """``ends`` moved back over whitespace, sorted, without repetitions, and with the end of the response added."""
    cuts = [_integer(index, end) for index, end in enumerate(ends)]
    for index, end in enumerate(cuts):
        if not 0 <= end <= len(response):
            raise UserError(f"ends[{index}]: boundary {end} lies outside of a response of {len(response)} characters")
    return sorted(_moved_back(response, [*cuts, len(response)]) - {0}) or [0]


def _moved_back(text: str, ends: Sequence[int]) -> set[int]:
    """``ends``, where an end that stands after whitespace becomes the end of the word before it, or 0."""
    words = [0, *(match.end() for match in _WORD.finditer(text))]
    return {end if end and not text[end - 1].isspace() else words[bisect_right(words, end) - 1] for end in ends}


def _integer(place: int, end: int) -> int:
    try:
        return as_index(end)
    except TypeError:
        raise UserTypeError(f"ends[{place}]: expected an integer, got {type(end).__name__}") from None
