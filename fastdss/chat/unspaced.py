"""Words of scripts that put no blanks between them: Chinese, Japanese, Thai, Lao, Khmer, Burmese, Tibetan.

ICU's dictionaries divide them (``icu4py``, wheels of ICU4C). How ICU divides a run depends on the whole run, so a
stream could not know a word before the run is over. A run is therefore divided window by window: ``WINDOW`` characters
are looked at, the words in their first half are kept, and the next window begins where they end. The same text then
has the same words whether it is read at once or while it is written.
"""

from __future__ import annotations

from collections.abc import Iterator

import regex

WINDOW = 64  # a choice: more characters tell ICU more, fewer let a stream know a word sooner
# lb=SA: the scripts that Unicode calls "complex context", which need a dictionary
_LETTERS = r"[\p{Han}\p{Hiragana}\p{Katakana}\u0F40-\u0FBC\p{lb=SA}\u30FC\uFF70]"
_UNSPACED = regex.compile(_LETTERS)
_LAST_RUN = regex.compile(rf"(?r){_LETTERS}+\Z")  # searched from the end, since a stream asks after every word
_PIECE = regex.compile(rf"(?P<run>{_LETTERS}+)|[^\s{_LETTERS[1:-1]}]+")
_PUNCTUATION = regex.compile(r"[^\w]*")
_OPENING = regex.compile(r"[\p{Ps}\p{Pi}]*$")


def occurs_in(text: str) -> bool:
    """Whether ``text`` has a letter of a script without blanks."""
    return not text.isascii() and _UNSPACED.search(text) is not None


def share(text: str) -> float:
    """The share of the characters of ``text`` that belong to scripts without blanks."""
    return 0.0 if text.isascii() or not text else len(_UNSPACED.findall(text)) / len(text)


def word_ends(text: str, begin: int, end: int) -> list[int]:
    """Ends of the words in ``text[begin:end]``, which holds no white space.

    Punctuation belongs to the word before it, an opening bracket to the one after it.
    """
    ends: list[int] = []
    for match in _PIECE.finditer(text, begin, end):
        if match["run"] is not None:
            ends += (cut for _, cut in _windows(text, *match.span()))
            continue
        word = _PUNCTUATION.match(text, match.start(), match.end()).end()
        if ends and ends[-1] == match.start():
            ends[-1] = _OPENING.search(text, match.start(), word).start()
        if word < match.end():
            ends.append(match.end())
    return ends or [end]


def settled_until(begun: str) -> int:
    """The position up to which no further text can change the words of ``begun``."""
    match = _LAST_RUN.search(begun)
    if match is None:
        return len(begun)
    start = match.start()
    for start, _ in _windows(begun, *match.span()):
        if start + WINDOW > len(begun):
            break
    found: int = start
    return found


def _windows(text: str, begin: int, end: int) -> Iterator[tuple[int, int]]:
    """For each word of a run of letters: where the window begins in which it was found, and where it ends."""
    start = begin
    while start < end:
        cuts = [start + cut for cut in _divided(text[start : min(start + WINDOW, end)])]
        if start + WINDOW < end:
            first_half = [cut for cut in cuts if cut <= start + WINDOW // 2]
            cuts = first_half or cuts[:1]
        yield from ((start, cut) for cut in cuts)
        start = cuts[-1]


def _divided(run: str) -> list[int]:
    """ICU's word ends in ``run``. ICU counts UTF-16 units; an end that would lie inside of a character is left out."""
    try:
        from icu4py.breakers import WordBreaker
    except ImportError as error:
        raise RuntimeError(
            f"words of Chinese, Japanese, Thai and other scripts without blanks need ICU: pip install icu4py ({error})"
        ) from error
    cuts = [end for _, end in WordBreaker(run, "en").segments()]
    if max(run) > "\uffff":
        units = 0
        place = {}
        for index, character in enumerate(run, 1):
            units += 1 + (character > "\uffff")
            place[units] = index
        cuts = [place[cut] for cut in cuts if cut in place]
    return cuts if cuts and cuts[-1] == len(run) else [*cuts, len(run)]
