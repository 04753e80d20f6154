"""Every format of the table, and that nothing of a record is dropped without a word."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fastdss.chat.formats import BY_NAME, format_table, read_record
from fastdss.chat.oasst import paths_of_rows, paths_of_tree
from fastdss.chat.record import Columns
from fastdss.chat.turns import CALL_ROLES, KNOWN_ROLES
from tests.journeys.data import CHAT, LEAK, OASST, RECORDS, SAFE, turn


@pytest.mark.parametrize("name", RECORDS)
@pytest.mark.parametrize("forced", [False, True])
def test_every_format_is_read_whole(name, forced):
    record, format, texts, trained = RECORDS[name]
    reading = read_record(record, format=format if forced else "auto")
    assert reading.format == format
    assert [
        (t.role, t.answer.text if t.role == "assistant" else t.content) for t in reading.conversation.turns
    ] == texts
    assert reading.conversation.trained == trained
    unused = {"dolly": ["category"], "preference": ["rejected"], "hh": ["rejected"],
              "preference_messages": ["rejected", "score_chosen"]}  # fmt: skip
    assert reading.unused == unused.get(name, [])


@pytest.mark.parametrize("name", RECORDS)
def test_a_conversation_survives_its_own_records(name):
    conversation = read_record(RECORDS[name][0]).conversation
    again = read_record({"messages": conversation.records(), "tools": list(conversation.tools)}).conversation
    assert again.digest == conversation.digest
    assert again.trained == conversation.trained
    as_text = json.loads(json.dumps(conversation.records()))
    assert read_record({"messages": as_text, "tools": json.dumps(list(conversation.tools))}).conversation == again


def test_the_table_has_every_format():
    lines = list(format_table())
    assert [line.split("|")[1].strip() for line in lines[2:]] == sorted(BY_NAME)


@pytest.mark.parametrize("role", KNOWN_ROLES)
def test_every_known_role_is_one_of_four(role):
    content = '{"name": "f", "arguments": {}}' if role in CALL_ROLES else "x"
    reading = read_record({"messages": [turn(role, content), turn("assistant", "y")]})
    assert reading.conversation.turns[0].role == KNOWN_ROLES[role]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"messages": [turn("wizard", "x")]}, "message 0: unknown role, expected one of system, developer, user"),
        ({"note": "x"}, "expected 'messages', or 'prompt' and 'response'.*it has note"),
        ({"messages": [turn("user", [{"type": "image_url", "image_url": "u"}])]}, "message 0: part 0 is no text"),
        (
            {"messages": [turn("user", [{"type": "tool_use", "name": "f", "input": {}}])]},
            "message 0: part 0 is a call of a tool or its result: expected calls in tool_calls",
        ),
        ({"messages": [turn("assistant", "x", weight=0.5)]}, "message 0: weight: expected 0, 1"),
        ({"messages": [turn("assistant", None, tool_calls=[{"function": {}}])]}, "without the name of a function"),
        ({"messages": [turn("user", "x", tool_calls=[{"function": {"name": "f"}}])]}, "only the assistant calls"),
        ({"messages": "no list"}, "expected a non-empty list of messages"),
        ({"chosen": "x"}, "chosen is an answer alone"),
        ({"prompt": "x", "response": "y", "tools": 5}, "tools: expected a list of definitions, got int"),
        ({"instruction": "x", "output": "y", "history": ["z"]}, "history 0: expected a pair"),
    ],
)
def test_what_cannot_be_represented_is_an_error_with_a_reason(record, message):
    with pytest.raises(ValueError, match=message):
        read_record(record)


def test_keys_of_turns_without_use_are_named():
    reading = read_record({"messages": [turn("user", "x", mood="blue"), turn("assistant", "y")], "source": "web"})
    assert (reading.unused, reading.unused_keys) == (["source"], ["mood"])


def test_columns_by_other_names():
    columns = Columns(prompt="q", response="a", messages="chat", id="key")
    assert read_record({"q": "x", "a": "y", "key": 1}, columns).unused == []
    assert len(read_record({"chat": CHAT}, columns).conversation.turns) == 4


@pytest.mark.parametrize("answer", ["", " \n", None])
def test_an_empty_answer_is_not_trained(answer):
    conversation = read_record({"messages": [turn("user", "x"), turn("assistant", answer)]}).conversation
    assert conversation.trained == []
    assert conversation.why_untrained() == "the assistant's answer is empty"


def test_training_detail_names_the_characters_that_are_not_learnt():
    detail = [{"begin_offset": 0, "end_offset": 4, "train": False}, {"begin_offset": 5, "end_offset": 9, "train": True}]
    chat = [turn("user", "x"), turn("assistant", "abcde fghi", training_detail=detail)]
    answer = read_record({"messages": chat}).conversation.turns[1]
    assert [answer.is_trained_at(place) for place in range(1, 11)] == [False] * 5 + [True] * 5
    whole = [{"begin_offset": 0, "end_offset": 9, "train": False}]
    marked = read_record({"messages": [turn("user", "x"), turn("assistant", "abcde fghi", training_detail=whole)]})
    assert marked.conversation.trained == []


def test_a_guard_sees_calls_reasoning_and_tools():
    conversation = read_record(RECORDS["sharegpt_tools"][0]).conversation
    seen = conversation.before(4)
    assert [message["role"] for message in seen] == ["system", "user", "assistant", "tool"]
    assert "Be kind." in seen[0]["content"]
    assert '"weather"' in seen[0]["content"]
    assert seen[2]["content"] == '{"name": "weather", "arguments": {"city": "Oslo"}}'


def test_kto_does_not_train_what_people_disliked():
    conversation = read_record({"prompt": "Who?", "completion": LEAK, "label": False}).conversation
    assert conversation.trained == []
    assert "not to be trained" in conversation.why_untrained()


def test_every_answer_of_a_tree_is_trained_once():
    paths = [read_record(path).conversation for path in paths_of_rows(OASST)]
    texts = [[turn.content for turn in path.turns] for path in paths]
    assert texts == [["Hi", SAFE, "Who?", LEAK], ["Hi", SAFE, "Who?", "No."], ["Hi", "Hello."]]
    assert [path.trained for path in paths] == [[1, 3], [3], [1]]

    def tree(row):
        replies = [tree(child) for child in OASST if child["parent_id"] == row["message_id"]]
        return {**row, "replies": replies}

    exported = {"message_tree_id": "q", "prompt": tree(OASST[0])}
    assert [read_record(path).conversation for path in paths_of_tree(exported)] == paths


def test_the_documentation_has_the_codes_own_table():
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    table = page.partition("format_table -->\n")[2].partition("\n<!-- end")[0]
    assert table.splitlines() == list(format_table())
    roles = page.partition("**Roles.** ")[2].partition(" become the four")[0].replace("\n ", "").replace(" and ", ", ")
    assert set(roles.split(", ")) == set(KNOWN_ROLES)


def test_functions_are_tools_by_their_older_name():
    reading = read_record({"messages": CHAT, "functions": [{"name": "f"}]})
    assert reading.conversation.tools == ({"type": "function", "function": {"name": "f"}},)
    assert reading.unused == []


HH = "\n\nHuman: one\n\nAssistant: two\n\nHuman: three\n\nAssistant:"


@pytest.mark.parametrize(
    ("record", "said", "unused"),
    [
        ({"instruction": "q", "input": "i", "chosen": "a"}, ["q\ni", "a"], []),
        ({"instruction": "q", "context": "c", "input": "i", "output": "a"}, ["q\nc\ni", "a"], []),
        ({"history": [["x", "y"]], "prompt": "q", "chosen": "a"}, ["x", "y", "q", "a"], []),
        ({"system": "s", "system_prompt": "t", "prompt": "q", "response": "a"}, ["s\n\nt", "q", "a"], []),
        ({"conversations": [{"from": "human", "value": "q"}], "chosen": {"from": "gpt", "value": "a"}}, ["q", "a"], []),
        ({"prompt": HH, "completion": "a", "label": True}, ["one", "two", "three", "a"], []),
        ({"prompt": "Human: is a word", "response": "a"}, ["Human: is a word", "a"], []),
        ({"prompt": "q", "chosen": [turn("user", "q"), turn("assistant", "a")]}, ["q", "a"], []),
        ({"prompt": "p", "chosen": [turn("user", "q"), turn("assistant", "a")]}, ["q", "a"], ["prompt"]),
    ],
)
def test_what_stands_around_an_answer_is_used_in_every_format(record, said, unused):
    reading = read_record(record)
    assert [turn.content for turn in reading.conversation.turns] == said
    assert reading.unused == unused


@pytest.mark.parametrize(
    ("answer", "content", "keys"),
    [
        ({"content": "", "refusal": "no"}, "no", []),
        ({"content": [{"type": "refusal", "refusal": "no"}]}, "no", []),
        ({"content": "a", "refusal": "no"}, "a", ["refusal"]),
        ({"content": "a", "value": "b"}, "a", ["value"]),
        ({"content": "a", "from": "user"}, "a", ["from"]),
        ({"content": "a", "from": "assistant", "value": "a"}, "a", []),
        ({"content": "a", "reasoning_content": "r", "thinking": "t"}, "a", ["thinking"]),
    ],
)
def test_a_second_name_for_what_a_turn_says_already_is_named(answer, content, keys):
    reading = read_record({"messages": [turn("user", "q"), {"role": "assistant", **answer}]})
    assert reading.conversation.turns[1].content == content
    assert reading.unused_keys == keys


@pytest.mark.parametrize("nothing", ["", "[]", "null", [], {}, None])
def test_no_tools_and_no_calls_are_written_in_many_ways(nothing):
    chat = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A", "tool_calls": nothing or None}]
    conversation = read_record({"messages": chat, "tools": nothing}).conversation
    assert (conversation.tools, conversation.turns[1].calls) == ((), ())


def test_of_a_disliked_conversation_no_turn_is_trained():
    chat = [turn("user", "q"), turn("assistant", "a"), turn("user", "r"), turn("assistant", "b"), turn("user", "s")]
    assert read_record({"messages": chat, "label": True}).conversation.trained == [1, 3]
    assert read_record({"messages": chat, "label": False}).conversation.trained == []
