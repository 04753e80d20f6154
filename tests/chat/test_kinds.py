"""Records as trainers, vendors and well-known data sets have them, each beside the conversation that a reader of its
documentation would write down: who says what, and which turns are learnt (marked ``!``)."""

import json

import pytest

from fastdss.chat.formats import read_record
from fastdss.chat.nulls import as_meant
from fastdss.errors import UserError
from tests.journeys.data import LEAK, SAFE, turn

OSLO, ROME = (f'{{"name": "weather", "arguments": {{"city": "{city}"}}}}' for city in ("Oslo", "Rome"))
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
WEATHER = {"type": "function", "function": {"name": "weather", "description": "of a city", "parameters": SCHEMA}}
CALLED = turn(
    "assistant", None, tool_calls=[{"id": "1", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}]
)


def said(conversation):
    """The conversation as lines: who speaks, ``!`` where it is learnt, and the text."""
    return [
        f"{t.role}{'!' if i in conversation.trained else ''}: {t.answer.text if t.role == 'assistant' else t.content}"
        for i, t in enumerate(conversation.turns)
    ]


KINDS = {
    "gemini": (
        {
            "systemInstruction": {"role": "system", "parts": [{"text": "Be "}, {"text": "kind."}]},
            "contents": [
                {"role": "user", "parts": [{"text": "Weather?"}]},
                {"role": "model", "parts": [{"functionCall": {"name": "weather", "args": {"city": "Oslo"}}}]},
                {"role": "user", "parts": [{"functionResponse": {"name": "weather", "response": {"degrees": 12}}}]},
                {"role": "model", "parts": [{"text": "I think.", "thought": True}, {"text": SAFE}]},
            ],
            "tools": [{"functionDeclarations": [WEATHER["function"]]}],
        },
        [
            "system: Be kind.", "user: Weather?", f"assistant!: {OSLO}", 'tool: {"degrees": 12}',
            f"assistant!: <think>\nI think.\n</think>\n\n{SAFE}",
        ],
    ),
    "bedrock": (
        {
            "schemaVersion": "bedrock-conversation-2024",
            "system": [{"text": "Be kind."}],
            "messages": [
                turn("user", [{"text": "Weather?"}]),
                turn("assistant", [{"toolUse": {"toolUseId": "1", "name": "weather", "input": {"city": "Oslo"}}}]),
                turn("user", [{"toolResult": {"toolUseId": "1", "content": [{"json": {"degrees": 12}}]}}]),
                turn("assistant", [{"text": SAFE}]),
            ],
        },
        ["system: Be kind.", "user: Weather?", f"assistant!: {OSLO}", 'tool: {"degrees": 12}', f"assistant!: {SAFE}"],
    ),
    "anthropic's system of parts": (
        {
            "system": [{"type": "text", "text": "Be kind.", "cache_control": {"type": "ephemeral"}}],
            "messages": [turn("user", "Who?"), turn("assistant", [{"type": "text", "text": LEAK}])],
        },
        ["system: Be kind.", "user: Who?", f"assistant!: {LEAK}"],
    ),
    "openai's preferences": (
        {
            "input": {"messages": [turn("user", "Who?")], "tools": [WEATHER], "parallel_tool_calls": True},
            "preferred_output": [turn("assistant", SAFE)],
            "non_preferred_output": [turn("assistant", LEAK)],
        },
        ["user: Who?", f"assistant!: {SAFE}"],
    ),
    "xlam": (
        {
            "query": "Weather?",
            "answers": json.dumps([{"name": "weather", "arguments": {"city": c}} for c in ("Oslo", "Rome")]),
            "tools": json.dumps([{"name": "weather", "description": "of a city", "parameters": SCHEMA}]),
        },
        ["user: Weather?", f"assistant!: {OSLO}\n{ROME}"],
    ),
    "capybara": (
        {"conversation": [{"input": "Hi", "output": SAFE}, {"input": "Who?", "output": LEAK}]},
        ["user: Hi", f"assistant!: {SAFE}", "user: Who?", f"assistant!: {LEAK}"],
    ),
    "xtuner": (
        {
            "conversation": [
                {"system": "Be kind.", "input": "Hi", "output": LEAK, "output_with_loss": False},
                {"input": "Bread?", "output": SAFE, "output_with_loss": True},
            ]
        },
        ["system: Be kind.", "user: Hi", f"assistant: {LEAK}", "user: Bread?", f"assistant!: {SAFE}"],
    ),
    "xtuner's texts without a question": (
        {"conversation": [{"input": "", "output": SAFE}]},
        [f"assistant!: {SAFE}"],
    ),
    "firefly": ({"conversation": [{"human": "Hi", "assistant": SAFE}]}, ["user: Hi", f"assistant!: {SAFE}"]),
    "ms-swift's calls": (
        {
            "messages": [
                turn("user", "Weather?"), turn("assistant", "I look."), turn("tool_call", OSLO),
                turn("tool_call", ROME), turn("tool_response", '{"t": 1}'), turn("tool_response", '{"t": 2}'),
                turn("assistant", SAFE),
            ]
        },
        [
            "user: Weather?", f"assistant!: I look.\n{OSLO}\n{ROME}", 'tool: {"t": 1}', 'tool: {"t": 2}',
            f"assistant!: {SAFE}",
        ],
    ),
    "langchain": (
        {
            "messages": [
                {"type": "human", "content": "Weather?"},
                {"type": "ai", "content": "", "tool_calls": [{"name": "weather", "args": {"city": "Oslo"}, "id": "1"}]},
                {"type": "tool", "content": "12", "tool_call_id": "1"},
                {"type": "ai", "data": {"content": SAFE}},
            ]
        },
        ["user: Weather?", f"assistant!: {OSLO}", "tool: 12", f"assistant!: {SAFE}"],
    ),
    "a sequence of mappings": (
        {"conversations": {"from": ["human", "gpt"], "value": ["Who?", LEAK]}}, ["user: Who?", f"assistant!: {LEAK}"],
    ),
    "other names of keys": (
        {"messages": [{"speaker": "human", "text": "Who?"}, {"speaker": "AI", "text": LEAK}]},
        ["user: Who?", f"assistant!: {LEAK}"],
    ),
    "axolotl": (
        {
            "messages": [
                turn("user", "Who?"), turn("assistant", LEAK, training=False), turn("user", "Bread?"),
                turn("assistant", SAFE, training=True),
            ]
        },
        ["user: Who?", f"assistant: {LEAK}", "user: Bread?", f"assistant!: {SAFE}"],
    ),
    "disliked, TRL's numbers": (
        {"prompt": "Who?", "completion": LEAK, "label": 0}, ["user: Who?", f"assistant: {LEAK}"],
    ),
    "disliked, a cell": ({"prompt": "Who?", "completion": LEAK, "label": "0"}, ["user: Who?", f"assistant: {LEAK}"]),
    "disliked, any answer": (
        {"query": "Who?", "response": LEAK, "label": False}, ["user: Who?", f"assistant: {LEAK}"],
    ),
    "disliked, LLaMA-Factory": (
        {"instruction": "Who?", "input": "", "output": LEAK, "kto_tag": False}, ["user: Who?", f"assistant: {LEAK}"],
    ),
    "liked": ({"prompt": "Bread?", "completion": SAFE, "label": 1}, ["user: Bread?", f"assistant!: {SAFE}"]),
    "a class and no liking": ({"prompt": "x", "response": SAFE, "label": 0}, ["user: x", f"assistant!: {SAFE}"]),
    "instruction and question": (
        {"instruction": "In one word.", "question": "Who?", "answer": "Ada."},
        ["user: In one word.\nWho?", "assistant!: Ada."],
    ),
    "an instruction that its input holds": (
        {"instruction": "Who?", "input": "Guess Who? is a game. Whoever", "output": "Ada."},
        ["user: Who?\nGuess Who? is a game. Whoever", "assistant!: Ada."],
    ),
    "an input that its instruction holds": (
        {"instruction": "Say cat in French.", "input": "cat", "output": "Chat."},
        ["user: Say cat in French.\ncat", "assistant!: Chat."],
    ),
    "a prompt that its context holds": (
        {"prompt": "Who?", "context": "It asks: Who?", "response": "Ada."},
        ["user: Who?\nIt asks: Who?", "assistant!: Ada."],
    ),
    "instruction and prompt": (
        {"prompt": "Who?", "instruction": "In one word.", "completion": "Ada."},
        ["user: In one word.\nWho?", "assistant!: Ada."],
    ),
    "a prompt that was made of its columns": (
        {"prompt": "Note: Ada. Who?", "context": "Note: Ada.", "instruction": "Who?", "response": "Ada."},
        ["user: Note: Ada. Who?", "assistant!: Ada."],
    ),
    "messages alone in their columns": (
        {"prompt": turn("user", "Who?"), "completion": turn("assistant", "Ada.")}, ["user: Who?", "assistant!: Ada."],
    ),
    "HH-RLHF's rounds out of a CSV file of Windows": (
        {"chosen": "\r\n\r\nHuman: Who?\r\n\r\nAssistant: Ada."}, ["user: Who?", "assistant!: Ada."],
    ),
    "aya": ({"inputs": "Who?", "targets": "Ada."}, ["user: Who?", "assistant!: Ada."]),
    "capital names": ({"Prompt": "Who?", " Response ": "Ada."}, ["user: Who?", "assistant!: Ada."]),
    "an answer that is JSON": (
        {"prompt": "x", "response": '[{"value": 3}, {"from": "Oslo", "value": 4}]'},
        ["user: x", 'assistant!: [{"value": 3}, {"from": "Oslo", "value": 4}]'],
    ),
    "an answer that is a list of values": (
        {"prompt": "x", "response": '[{"value": 3}]'},
        ["user: x", 'assistant!: [{"value": 3}]'],
    ),
    "data as a tool's result": (
        {"messages": [turn("user", "Weather?"), CALLED, turn("tool", {"content": "sun", "t": 12}), turn("gpt", SAFE)]},
        ["user: Weather?", f"assistant!: {OSLO}", 'tool: {"content": "sun", "t": 12}', f"assistant!: {SAFE}"],
    ),
    "a list as a tool's result": (
        {"messages": [turn("user", "Weather?"), CALLED, turn("tool", ["sun", {"type": "Point"}]), turn("gpt", SAFE)]},
        ["user: Weather?", f"assistant!: {OSLO}", 'tool: ["sun", {"type": "Point"}]', f"assistant!: {SAFE}"],
    ),
    "parts as a tool's result": (
        {"messages": [turn("user", "Weather?"), CALLED, turn("tool", [{"type": "text", "text": "12"}])]},
        ["user: Weather?", f"assistant!: {OSLO}", "tool: 12"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_who_says_what_and_what_is_learnt(name):
    record, expected = KINDS[name]
    assert said(read_record(record).conversation) == expected


def test_characters_that_axolotl_masks_are_not_learnt():
    masked = [{"begin_offset": 0, "end_offset": 3, "train": False}]
    chat = [{"from": "human", "value": "x"}, {"from": "gpt", "value": "abcd efgh", "train_detail": masked}]
    reading = read_record({"conversations": chat})
    assert [reading.conversation.turns[1].is_trained_at(place) for place in range(1, 10)] == [False] * 4 + [True] * 5
    assert reading.unused_keys == []


@pytest.mark.parametrize(
    "tools",
    [
        [WEATHER],
        [WEATHER["function"]],
        [{"type": "function", **WEATHER["function"]}],
        [{"name": "weather", "description": "of a city", "input_schema": SCHEMA, "cache_control": {"type": "x"}}],
        [{"toolSpec": {"name": "weather", "description": "of a city", "inputSchema": {"json": SCHEMA}}}],
        [{"functionDeclarations": [WEATHER["function"]]}],
        [{"name": "weather", "description": "of a city", "inputSchema": SCHEMA}],
        [{**WEATHER["function"], "parameters": json.dumps(SCHEMA)}],
        [{"type": "function", "function": {**WEATHER["function"], "parameters": json.dumps(SCHEMA)}}],
        [{"type": "function", "function": json.dumps(WEATHER["function"])}],
    ],
    ids=["openai", "llama-factory", "responses", "anthropic", "bedrock", "gemini", "mcp", "text", "texts", "function"],
)
@pytest.mark.parametrize("place", ["column", "cell", "system turn"])
def test_a_definition_of_a_tool_is_the_same_in_every_form_and_place(tools, place):
    chat = [turn("system", "Be kind."), turn("user", "Weather?"), turn("assistant", SAFE)]
    record = {"messages": chat, "tools": json.dumps(tools) if place == "cell" else tools}
    if place == "system turn":
        record = {"messages": [{**chat[0], "tools": tools}, *chat[1:]]}
    reading = read_record(record)
    assert reading.conversation.tools == (WEATHER,)
    assert (reading.unused, reading.unused_keys) == ([], [])


def test_a_null_is_an_argument_where_arrow_did_not_put_it():
    call = {"function": {"name": "weather", "arguments": {"city": "Oslo", "unit": None}}}
    by_hand = {"messages": [turn("user", "x"), turn("assistant", None, tool_calls=[call])]}
    of_arrow = {"messages": [turn("user", "x", tool_calls=None), turn("assistant", None, tool_calls=[call])]}
    alike = {"messages": [turn("user", "x", tool_calls=[]), turn("assistant", None, tool_calls=[call])]}
    unlike = {"messages": [turn("user", "x"), turn("assistant", None, name=None, tool_calls=[call])]}
    records = (by_hand, alike, unlike, of_arrow)
    answers = [read_record(as_meant(record)).conversation.turns[1].answer.text for record in records]
    assert answers == ['{"name": "weather", "arguments": {"city": "Oslo", "unit": null}}'] * 3 + [OSLO]


def test_a_rating_that_is_called_star_is_no_score():
    reading = read_record({"prompt": "x", "response": "y", "star": 5})
    assert (reading.scored, reading.unused) == (False, ["star"])
    assert all(read_record({"prompt": "x", "response": "y", "star": star}).scored for star in ([], "[]", [{"turn": 1}]))


@pytest.mark.parametrize("channel", ["analysis", "commentary"])
def test_a_channel_that_is_no_answer_is_refused(channel):
    """It was learnt as an answer of its own: what gpt-oss thinks, and its calls."""
    chat = [turn("user", "x"), turn("assistant", "y", channel=channel), turn("assistant", "z", channel="final")]
    with pytest.raises(UserError, match=f"message 1: channel: expected the turn's final text alone, got its {channel}"):
        read_record({"messages": chat})
    assert said(read_record({"messages": [chat[0], chat[2]]}).conversation) == ["user: x", "assistant!: z"]


def test_arguments_that_were_written_as_json_twice_are_an_object():
    """Templates wrote the text in quotes, and the policy learnt it so."""
    call = {"function": {"name": "weather", "arguments": json.dumps(json.dumps({"city": "Oslo"}))}}
    reading = read_record({"messages": [turn("user", "x"), turn("assistant", None, tool_calls=[call])]})
    assert reading.conversation.turns[1].answer.text == OSLO


def test_the_names_in_a_result_that_is_data_are_no_keys_without_use():
    result = turn("tool", [{"temperature": 12, "unit": "C"}])
    reading = read_record({"messages": [turn("user", "x"), result, turn("assistant", "y")]})
    assert reading.conversation.turns[1].content == '[{"temperature": 12, "unit": "C"}]'
    assert reading.unused_keys == []


def test_messages_may_be_json_texts_in_a_list():
    chat = [turn("user", "x"), turn("assistant", "{y}")]
    reading = read_record({"messages": [json.dumps(message) for message in chat]})
    assert said(reading.conversation) == ["user: x", "assistant!: {y}"]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"messages": [turn("assistant", "", tool_calls=[{"name": "f", "kwargs": {}}])]}, "a tool call without argum"),
        ({"image": "a.jpg", "messages": [turn("user", "<image>\nWho?"), turn("assistant", "x")]}, "image: images, aud"),
        ({"messages": [turn("user", "Who?", images=["a"]), turn("assistant", "x")]}, "message 0: images, audio and f"),
        ({"prompt": "x", "completion": "y", "label": None}, "label: expected true or false, got none"),
        ({"prompt": "x", "response": None}, "it has prompt; without a value: response"),
        ({"role": "user", "content": "x"}, "it is one message: expected a conversation a row"),
        ({"text": "### Human: x### Assistant: y"}, "text alone does not tell who speaks"),
        ({"data": "['a'\n 'b']"}, "neither JSON nor Python's notation of a list: save it as JSON or Parquet"),
        ({"input": "x", "preferred_output": [turn("assistant", "y")]}, "neither JSON"),
    ],
)
def test_what_cannot_be_read_says_what_helps(record, message):
    with pytest.raises(ValueError, match=message):
        read_record(record)


def test_what_stands_beside_is_named():
    part = {"type": "text", "text": "x", "citations": ["a"]}
    call = {"id": "1", "function": {"name": "f", "arguments": {}, "score": 2}}
    record = {
        "messages": [turn("user", [part]), turn("assistant", None, tool_calls=[call])],
        "images": [],
        "label": 3,
    }
    reading = read_record(record)
    assert (reading.unused, reading.unused_keys) == (["images", "label"], ["citations", "score"])
    inner = {"messages": [turn("user", "x")], "parallel_tool_calls": True}
    reading = read_record({"input": inner, "preferred_output": [turn("assistant", "y")], "non_preferred_output": []})
    assert (reading.unused, reading.unused_keys) == (["non_preferred_output"], ["input.parallel_tool_calls"])
