"""Answers that spell what the policy's template writes itself, against transformers' own ids for the same messages.

To transformers a tag in content is the tag's token, which is what the policy was taught and will write.
"""

import pytest

from fastdss.chat.formats import read_record
from fastdss.chat.policy import PolicyChat
from tests.support.policies import make_policy_tokenizer

EMPTY = "<think>\n\n</think>\n\n"
CHATS = {
    "no block": ["Hello.", "Hello, friend."],
    "empty block": [EMPTY + "Hello, friend."],
    "past empty blocks": [EMPTY + "Hello.", EMPTY + "Hello, friend."],
    "one empty block": ["Hello.", EMPTY + "Hello, friend."],
    "a block": [EMPTY + "Hello.", "<think>\nWell.\n</think>\n\nHello, friend."],
}


def messages(answers):
    return [
        {"role": role, "content": text} for answer in answers for role, text in (("user", "Hi"), ("assistant", answer))
    ]


@pytest.mark.parametrize("template", ["chatml", "qwen3", "hermes"])
@pytest.mark.parametrize("name", CHATS)
def test_blocks_of_reasoning_are_written_once_and_as_tokens(template, name):
    """Qwen3's answers without reasoning have an empty block, which was written twice, once letter by letter."""
    expect_own_ids(template, CHATS[name])


@pytest.mark.parametrize("name", CHATS)
def test_where_the_template_drops_blocks_the_last_answer_keeps_its_own(name):
    """R1's template drops the block of every answer, also of the one that is to be learnt."""
    tokenizer = make_policy_tokenizer("r1")
    conversation = read_record({"messages": messages(CHATS[name])}).conversation
    rendered = PolicyChat(tokenizer).render(conversation, conversation.trained)
    said = [rendered.encoding.ids[written.first : written.last + 1] for written in rendered.written.values()]
    expected = ["Hello.<|im_end|>"] * (len(said) - 1) + [CHATS[name][-1] + "<|im_end|>"]
    assert said == [tokenizer(text, add_special_tokens=False)["input_ids"] for text in expected]


def test_an_answer_whose_reasoning_the_prompt_opened_is_the_whole_block():
    expect_own_ids("qwen3", ["Well, well.\n</think>\n\nHello, friend."])
    (turn,) = read_record({"messages": messages(["Well.\n</think>\nYes."])}).conversation.turns[1:]
    assert (turn.reasoning, turn.content) == ("Well.", "Yes.")
    assert turn.answer.text == "<think>\nWell.\n</think>\n\nYes."


@pytest.mark.parametrize(
    "text",
    ["To close it write </think> here.", "a\n</think>\nb\n</think>\nc", "\n</think>\nYes.", "<think> a\n</think>"],
)
def test_other_tags_are_text_of_the_answer(text):
    (turn,) = read_record({"messages": messages(["x", text])}).conversation.turns[3:]
    assert (turn.content, turn.reasoning) == (text, "")


@pytest.mark.parametrize("block", ["<think>\n\n</think>\n\n", "<think></think>", " <think> </think> \n"])
def test_an_empty_block_alone_is_no_answer(block):
    conversation = read_record({"messages": messages([block])}).conversation
    assert conversation.trained == []
    assert conversation.why_untrained() == "the assistant's answer is empty"


def expect_own_ids(template, answers):
    tokenizer = make_policy_tokenizer(template)
    chat = messages(answers)
    conversation = read_record({"messages": chat}).conversation
    rendered = PolicyChat(tokenizer).render(conversation, conversation.trained)
    assert rendered.encoding.ids == tokenizer.apply_chat_template(chat)["input_ids"]
    last = rendered.written[len(chat) - 1]
    assert "friend" in tokenizer.decode(rendered.encoding.ids[last.first : last.last + 1])
    assert last.place(len(rendered.encoding.text)) == len(conversation.turns[-1].answer.text)


WEATHER = {"name": "weather", "arguments": {"city": "Oslo", "name": "é"}}
SPELLED = {
    "after text": 'I look.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo", "name": "é"}}\n</tool_call>',
    "arguments first": '<tool_call>\n{"arguments": {"city": "Oslo", "name": "é"}, "name": "weather"}\n</tool_call>\n',
    "two": "\n".join(['<tool_call>{"name":"weather", "arguments":{"city":"Oslo","name":"é"}}</tool_call>'] * 2),
}
CALLED = {"after text": ("I look.", 1), "arguments first": ("", 1), "two": ("", 2)}


def called(text, calls, result):
    call = {"type": "function", "function": WEATHER}
    return [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": text, "tool_calls": [call] * calls},
        {"role": "tool", "content": result},
        {"role": "assistant", "content": "Mild, friend."},
    ]


@pytest.mark.parametrize("template", ["qwen3", "hermes"])
@pytest.mark.parametrize("name", SPELLED)
def test_calls_and_results_in_tags_are_the_templates_own(template, name):
    """Against transformers' ids for the conversation as OpenAI has it; spelled, the tags were learnt as letters."""
    tokenizer = make_policy_tokenizer(template)
    chat = called("", 0, "<tool_response>\n12\n</tool_response>")
    chat[1] = {"role": "assistant", "content": SPELLED[name]}
    conversation = read_record({"messages": chat}).conversation
    rendered = PolicyChat(tokenizer).render(conversation, conversation.trained)
    own = tokenizer.apply_chat_template(called(*CALLED[name], "12"))["input_ids"]
    assert rendered.encoding.ids == own
    judged = conversation.turns[1].answer.text
    assert judged == SPELLED[name]
    pieces = [(rendered.encoding.text[p.begin : p.end], judged[p.at :]) for p in rendered.written[1].pieces]
    assert all(there.startswith(written) for written, there in pieces)
    assert sum(written == "weather" for written, _ in pieces) == CALLED[name][1]
    assert "Oslo" in "".join(written for written, _ in pieces)


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>\nweather(Oslo)\n</tool_call>",
        '<tool_call>{"name": "f", "arguments": "x"}</tool_call>',
        '<tool_call>{"name": "f", "arguments": {}}</tool_call> is how one calls.',
        '<tool_call>{"name": "f", "arguments": {}',
        '<tool_call>[{"name": "f", "arguments": {}}]</tool_call>',
    ],
)
def test_what_is_no_call_at_the_end_stays_text(text):
    tokenizer = make_policy_tokenizer("qwen3")
    conversation = read_record({"messages": messages([text])}).conversation
    rendered = PolicyChat(tokenizer).render(conversation, conversation.trained)
    assert tokenizer.convert_tokens_to_ids("<tool_call>") not in rendered.encoding.ids
    assert text in tokenizer.decode(rendered.encoding.ids)


def test_a_policy_whose_template_knows_no_calls_gets_the_text():
    tokenizer = make_policy_tokenizer("chatml")
    chat = messages([SPELLED["after text"]])
    conversation = read_record({"messages": chat}).conversation
    rendered = PolicyChat(tokenizer).render(conversation, conversation.trained)
    assert rendered.encoding.ids == tokenizer.apply_chat_template(chat)["input_ids"]
