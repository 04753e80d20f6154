"""What a guard is shown of a conversation: the last exchange or all of it, and never a tool's words as the user's."""

from __future__ import annotations

import pytest

from fastdss.guards.view import View

CHAT = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Who lives there?"},
    {"role": "assistant", "content": '{"name": "look", "arguments": {"at": "door"}}'},  # a call, as a guard reads it
    {"role": "tool", "content": "Ann"},
    {"role": "assistant", "content": "It is Ann."},
]
JOINED = '{"name": "look", "arguments": {"at": "door"}}\n\nAnn\n\nIt is Ann.'


def pairs(turns: list) -> list[tuple[str, object]]:
    return [(turn["role"], turn["content"]) for turn in turns]


def test_the_last_exchange_is_the_last_user_turn_and_all_that_followed() -> None:
    assert pairs(View(turns="exchange")(CHAT)) == [("user", "Who lives there?"), ("assistant", JOINED)]
    kept = View(turns="exchange", system=True, tools=True)(CHAT)
    assert [turn["role"] for turn in kept] == ["system", "user", "assistant", "tool", "assistant"]


def test_a_whole_conversation_alternates_where_the_template_knows_two_roles() -> None:
    shown = View()(CHAT)
    assert pairs(shown)[:2] == [("user", "Hi"), ("assistant", "Hello.")]
    assert [turn["role"] for turn in shown] == ["user", "assistant"] * 2
    assert View(system=True, tools=True)(CHAT) == CHAT


def test_several_user_turns_in_a_row_are_one() -> None:
    chat = [{"role": "user", "content": text} for text in ("One.", "", "Two.")] + CHAT[-1:]
    assert pairs(View()(chat)) == [("user", "One.\n\nTwo."), ("assistant", "It is Ann.")]


def test_a_conversation_that_the_assistant_begins() -> None:
    assert pairs(View(turns="exchange")(CHAT[2:3])) == [("assistant", "Hello.")]
    assert View(prompt="[{prompt}] {response}")(CHAT[2:3])[0]["content"] == "[] Hello."


def test_one_message_of_a_text_and_its_places() -> None:
    """Braces in the content are content: {response} inside a prompt is not filled."""
    chat = [{"role": "user", "content": "Say {response}"}, {"role": "assistant", "content": "{prompt}"}]
    view = View(prompt="P {prompt}\nR {response}\nP {prompt}", system_prompt="You judge.")
    assert pairs(view(chat)) == [("system", "You judge."), ("user", "P Say {response}\nR {prompt}\nP Say {response}")]
    assert view(CHAT)[1]["content"] == f"P Who lives there?\nR {JOINED}\nP Who lives there?"


def test_an_instruction_is_a_last_user_turn_and_parts_are_parts() -> None:
    shown = View(turns="exchange", instruction="Judge.", parts=True)(CHAT)
    assert pairs(shown)[-1] == ("user", [{"type": "text", "text": "Judge."}])


def test_the_response_alone() -> None:
    assert pairs(View(turns="response")(CHAT)) == [("assistant", "It is Ann.")]


def test_unknown_views_are_errors() -> None:
    with pytest.raises(ValueError, match="turns: expected one of conversation, exchange, response, got 'all'"):
        View(turns="all")
    with pytest.raises(ValueError, match=r"prompt: expected a text that holds \{prompt\} and \{response\}"):
        View(prompt="no places")
