"""Anthropic's parts: calls and results of tools among a message's text, against the conversation as OpenAI has it."""

import pytest

from fastdss.chat.formats import read_record

ANTHROPIC = {
    "system": "Be brief.",
    "tools": [
        {
            "name": "get_weather",
            "description": "The weather of a place.",
            "input_schema": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
        }
    ],
    "messages": [
        {"role": "user", "content": "Is it warm in Oslo and in Rome?"},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Two places, two calls."},
                {"type": "text", "text": "I look both up."},
                {"type": "tool_use", "id": "t1", "name": "get_weather", "input": {"place": "Oslo"}},
                {"type": "tool_use", "id": "t2", "name": "get_weather", "input": {"place": "Rome"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": "3 degrees"},
                {"type": "tool_result", "tool_use_id": "t2", "content": [{"type": "text", "text": "24 degrees"}]},
                {"type": "text", "text": "In one sentence, "},
                {"type": "text", "text": "please."},
            ],
        },
        {"role": "assistant", "content": [{"type": "text", "text": "Rome is warm, Oslo is not."}]},
    ],
}
OPENAI = {  # written by hand
    "tools": [
        {
            "type": "function",
            "function": {
                "name": "get_weather",
                "description": "The weather of a place.",
                "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
            },
        }
    ],
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Is it warm in Oslo and in Rome?"},
        {
            "role": "assistant",
            "reasoning_content": "Two places, two calls.",
            "content": "I look both up.",
            "tool_calls": [
                {"id": "t1", "type": "function", "function": {"name": "get_weather", "arguments": {"place": "Oslo"}}},
                {"id": "t2", "type": "function", "function": {"name": "get_weather", "arguments": {"place": "Rome"}}},
            ],
        },
        {"role": "tool", "tool_call_id": "t1", "content": "3 degrees"},
        {"role": "tool", "tool_call_id": "t2", "content": "24 degrees"},
        {"role": "user", "content": "In one sentence, please."},
        {"role": "assistant", "content": "Rome is warm, Oslo is not."},
    ],
}


def test_a_conversation_with_tools_is_the_one_that_openai_would_write():
    found, expected = read_record(ANTHROPIC), read_record(OPENAI)
    assert found.conversation == expected.conversation
    assert found.conversation.digest == expected.conversation.digest
    assert [turn.role for turn in found.conversation.turns] == [
        "system", "user", "assistant", "tool", "tool", "user", "assistant",
    ]  # fmt: skip
    call = found.conversation.turns[2].calls[1]
    assert (call.name, call.arguments, call.id) == ("get_weather", {"place": "Rome"}, "t2")
    assert (found.unused, found.unused_keys) == ([], [])


def test_a_result_may_be_empty_and_may_say_that_the_tool_failed():
    result = {"type": "tool_result", "tool_use_id": "t1", "is_error": True}
    chat = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "f", "input": {}}]},
        {"role": "user", "content": [result]},
        {"role": "assistant", "content": "It failed."},
    ]
    found = read_record({"messages": chat})
    assert [turn.role for turn in found.conversation.turns] == ["user", "assistant", "tool", "assistant"]
    assert found.conversation.turns[2].content == ""
    assert found.conversation.turns[1].calls[0].arguments == {}
    assert found.unused_keys == ["is_error"]  # said, since no turn has a place for it


@pytest.mark.parametrize(
    ("role", "parts", "message"),
    [
        (
            "assistant",
            [{"type": "tool_use", "id": "t", "name": "f", "input": {}}, {"type": "text", "text": "and then"}],
            "message 1: part 1 stands after a call of a tool: expected text before the calls",
        ),
        ("assistant", [{"type": "tool_use", "id": "t", "input": {}}], "a tool call without the name of a function"),
        ("user", [{"type": "tool_result", "content": "x"}], "message 1: part 0: expected tool_use_id"),
        ("assistant", [{"type": "tool_result", "tool_use_id": "t", "content": "x"}], "expected calls in tool_calls"),
        (
            "user",
            [{"type": "tool_result", "tool_use_id": "t", "content": [{"type": "image", "source": {}}]}],
            "message 1: part 0 is no text",
        ),
    ],
)
def test_what_has_no_place_in_turns_is_refused(role, parts, message):
    chat = [{"role": "user", "content": "x"}, {"role": role, "content": parts}, {"role": "assistant", "content": "y"}]
    with pytest.raises(ValueError, match=message):
        read_record({"messages": chat})


def test_calls_in_both_places_are_refused():
    both = {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "f", "input": {}}]}
    both["tool_calls"] = [{"function": {"name": "g", "arguments": {}}}]
    with pytest.raises(ValueError, match="expected calls in tool_calls or in parts of content, got both"):
        read_record({"messages": [{"role": "user", "content": "x"}, both]})
