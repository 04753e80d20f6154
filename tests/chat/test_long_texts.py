"""Texts that strangers write to keep a reader busy: the time to read one grows with its length, not with its square."""

import time

import pytest

from fastdss.chat.boundaries import find_ends, find_settled_ends
from fastdss.chat.conversation import Turn
from fastdss.chat.own_tags import with_calls, without_tags
from fastdss.chat.turns import read_turn
from fastdss.corpus.csv_files import encoding_of

MANY = 100_000
BLANKS = " " * MANY


def read(role, content):
    turn = without_tags(with_calls(read_turn(0, {"role": role, "content": content})))
    assert (turn.content, turn.calls, turn.is_empty) == (content, (), False)


def cut(text, unit):
    assert find_ends(text, every=1, unit=unit, spans=None)[-1] == len(text)
    find_settled_ends(text, every=1, unit=unit, spans=None)


LONG = {
    "a block of reasoning without an end": lambda: read("assistant", "<think>" + BLANKS + "x"),
    "blanks": lambda: read("assistant", "a" + BLANKS + "x"),
    "lines": lambda: read("assistant", "a" + "\n" * MANY + "</think>x"),
    "tags of calls": lambda: read("assistant", "<tool_call>" * (MANY // 10)),
    "a call and blanks": lambda: read("assistant", "<tool_call>{}</tool_call>" + BLANKS + "x"),
    "a result without an end": lambda: read("tool", "<tool_response>" + BLANKS + "x"),
    "points": lambda: cut("a." * MANY, "sentence"),
    "lines of points": lambda: cut("a.\n" * MANY + "b", "sentence"),
    "signs of another code page": lambda: encoding_of(b"\xa1" * MANY),
    "letters of another code page": lambda: encoding_of(b"\xa1\xc0" * MANY),
}  # fmt: skip


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", LONG)
def test_a_long_text_takes_no_longer_than_its_length(name):
    begun = time.process_time()
    LONG[name]()
    assert time.process_time() - begun < 10


@pytest.mark.timeout(60)
def test_a_stream_of_one_long_run_of_letters_looks_at_its_end_only():
    text = "字" * 20_000 + " a" * 20_000 + "字"
    begun = time.process_time()
    for _ in range(5):
        find_settled_ends(text, every=1, unit="word", spans=None)
    assert time.process_time() - begun < 5


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_reasoning_whose_beginning_was_in_the_prompt_ends_on_a_line_of_its_own(newline):
    turn = read_turn(0, {"role": "assistant", "content": f"I think.{newline}</think>{newline * 2}Yes."})
    assert (turn.reasoning, turn.content) == ("I think.", "Yes.")
    assert read_turn(0, {"role": "assistant", "content": "I think.</think> Yes."}).reasoning == ""


def test_reasoning_in_a_field_and_in_tags_is_written_once():
    content = "<think>\nI think.\n</think>\n\nYes."
    given = {"role": "assistant", "content": content, "reasoning_content": "I think."}
    assert read_turn(0, given).answer == read_turn(0, {"role": "assistant", "content": content}).answer
    assert read_turn(0, given | {"reasoning_content": "Another."}).answer.text.count("think>") == 4


@pytest.mark.parametrize("thought", ["think", "t", ">", "<think"])
def test_a_thought_that_its_tag_spells_too_stands_behind_the_tag(thought):
    content = f" <think>{thought}</think>Yes."
    (part, said) = Turn("assistant", content).answer.parts
    assert part.begin == len(" <think>")
    assert content[part.begin :].startswith(f"{thought}</think>")
    assert content[said.begin :] == "Yes."
