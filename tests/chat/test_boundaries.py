"""Where responses are cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastdss.chat.boundaries import find_ends, tidy_ends
from fastdss.chat.encoder import token_offsets
from tests.support.builders import make_tokenizer
from tests.support.profiles import examples


def spans(text: str) -> list[tuple[int, int]]:
    return token_offsets(make_tokenizer("unsplit"), text)[1]


def ends(text: str, every: int = 1, unit: str = "word") -> list[int]:
    return find_ends(text, every=every, unit=unit, spans=spans)


def test_words_are_runs_of_non_whitespace():
    text = "  one two\n\nthree\tfour  five "
    assert [text[:end].split()[-1] for end in ends(text)] == ["one", "two", "three", "four", "five"]
    assert [len(text[:end].split()) for end in ends(text, 2)] == [2, 4, 5]
    assert ends("one two", 5) == [7]


def test_sentences():
    text = 'One. Two?! "Three." Four\n\nFive... six'
    last_words = [text[:end].rsplit(None, 1)[-1] for end in ends(text, unit="sentence")]
    assert last_words == ["One.", "Two?!", '"Three."', "Four", "Five...", "six"]


def test_characters_skip_whitespace():
    assert ends("a b  c", unit="character") == [1, 3, 6]


def test_an_unknown_unit_is_an_error():
    with pytest.raises(ValueError, match="unit"):
        ends("a", unit="line")


@examples(200)
@given(st.text(max_size=60), st.integers(1, 7), st.sampled_from(["word", "token", "sentence", "character"]))
def test_ends_are_ascending_never_after_whitespace_and_cover_the_text(text, every, unit):
    text = text.encode("utf-8", "ignore").decode()
    found = ends(text, every, unit)
    assert found == sorted(set(found))
    assert found[-1] == len(text.rstrip())
    assert all(not text[end - 1].isspace() for end in found if end)
    assert (0 in found) == (not text.strip())


def test_given_ends_are_tidied_and_checked():
    assert tidy_ends("ab cd  ", [3, 2, 7]) == [2, 5]
    with pytest.raises(ValueError, match="boundary 9 lies outside"):
        tidy_ends("ab", [9])
