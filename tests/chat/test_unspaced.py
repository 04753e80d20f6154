"""Words and sentences of all scripts, the same at once and in a stream."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastdss.chat import unspaced
from fastdss.chat.boundaries import find_ends, find_settled_ends
from tests.support.profiles import examples

ALPHABET = "我喜欢苹果你呢今日はいい天気ですスーパーสวัสดีครับผมชื่อខ្ញុំស្រលាញ់𠀀𠀁，。（）「」！?.1ab \n"


def pieces(text: str, unit: str = "word", every: int = 1) -> list[str]:
    ends = find_ends(text, every=every, unit=unit, spans=lambda text: [])
    return [text[a:b].strip() for a, b in zip([0, *ends], ends, strict=False)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("我喜欢苹果，你呢？", ["我", "喜欢", "苹果，", "你", "呢？"]),
        ("今日はいい天気ですね。", ["今日", "は", "いい", "天気", "です", "ね。"]),
        ("สวัสดีครับผมชอบกินข้าว", ["สวัสดี", "ครับ", "ผม", "ชอบ", "กิน", "ข้าว"]),
        ("ខ្ញុំស្រលាញ់កម្ពុជា", ["ខ្ញុំ", "ស្រលាញ់", "កម្ពុជា"]),
        ("བཀྲ་ཤིས་བདེ་ལེགས།", ["བཀྲ་", "ཤིས་", "བདེ་", "ལེགས།"]),
        ("用Python写（好的）代码", ["用", "Python", "写", "（好的）", "代码"]),
        ("𠀀我喜欢", ["𠀀", "我", "喜欢"]),  # beyond the plane that ICU counts in single units
        ("plain words, and 你好 too", ["plain", "words,", "and", "你好", "too"]),
    ],
)
def test_words_of_scripts_without_blanks(text, words):
    assert pieces(text) == words


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("It is 3.14 at www.example.org/?q=1 now. Yes.", ["It is 3.14 at www.example.org/?q=1 now.", "Yes."]),
        ("Dr. Smith, e.g. J. K. Doe, agrees. Fine!", ["Dr. Smith, e.g. J. K. Doe, agrees.", "Fine!"]),
        ("1. Mix it.\n2. Bake it.", ["1. Mix it.", "2. Bake it."]),
        ("It was in 1999. Then it ended.", ["It was in 1999.", "Then it ended."]),
        ("यह एक है। दूसरा है।", ["यह एक है।", "दूसरा है।"]),
        ("هل هذا سؤال؟ نعم.", ["هل هذا سؤال؟", "نعم."]),
        ("今天天气好。是吗？“好。”对", ["今天天气好。", "是吗？", "“好。”", "对"]),
    ],
)
def test_sentences_of_all_scripts(text, sentences):
    assert pieces(text, "sentence") == sentences


@examples(300)
@given(st.text(ALPHABET, max_size=200), st.integers(1, 4), st.sampled_from(["word", "sentence"]), st.data())
def test_a_stream_settles_only_what_the_whole_text_has(text, every, unit, data):
    cut = data.draw(st.integers(0, len(text)))
    whole = find_ends(text, every=every, unit=unit, spans=lambda text: [])
    settled = find_settled_ends(text[:cut], every=every, unit=unit, spans=lambda text: [])
    assert settled == whole[: len(settled)]


def test_a_stream_does_not_wait_for_the_end_of_a_run():
    text = "我喜欢吃苹果也喜欢喝茶" * 40
    settled = find_settled_ends(text, every=1, unit="word", spans=lambda text: [])
    assert len(text) - settled[-1] <= unspaced.WINDOW


def test_the_share_of_such_scripts():
    assert unspaced.share("abc") == unspaced.share("") == 0
    assert unspaced.share("ab我们") == 0.5
