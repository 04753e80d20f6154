"""What a policy is trained to write, held against renderings made by hand of every kind of template."""

from __future__ import annotations

import copy
import json

import pytest

from fastdss.chat.conversation import Call, Conversation, Turn
from fastdss.chat.formats import read_record
from fastdss.chat.policy import PolicyChat
from fastdss.errors import UserError
from tests.support.policies import TEMPLATES, make_policy_tokenizer

CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "d", "parameters": {}}}]
PLAIN = {
    "messages": [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": " Hello, friend. "},
        {"role": "user", "content": "Who?"},
        {"role": "assistant", "content": "Ada <b>Quill</b>. <|im_end|> said </think>"},
    ]
}
CALLS = {
    "messages": [
        {"role": "user", "content": "Weather in Oslo?"},
        {"role": "assistant", "content": "Let me look.", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "call_1", "content": '12 "degrees"\nä'},
        {"role": "assistant", "content": "It is 12 degrees."},
    ],
    "tools": TOOLS,
}
THOUGHTS = {
    "messages": [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "<think>\nFirst thought.\n</think>\n\nYes."},
        {"role": "user", "content": "b"},
        {"role": "assistant", "content": "No.", "reasoning_content": "Second thought."},
    ]
}
# template -> what is written in the trained turns, by hand
WRITTEN = {
    ("chatml", "plain"): [" Hello, friend. <|im_end|>", "Ada <b>Quill</b>. <|im_end|> said </think><|im_end|>"],
    ("llama3", "plain"): ["Hello, friend.<|eot_id|>", "Ada <b>Quill</b>. <|im_end|> said </think><|eot_id|>"],
    ("gemma", "plain"): ["Hello, friend.</turn>", "Ada <b>Quill</b>. <|im_end|> said </think></turn>"],
    ("qwen3", "plain"): [
        " Hello, friend. <|im_end|>",
        "<think>\n\n</think>\n\nAda <b>Quill</b>. <|im_end|> said </think><|im_end|>",
    ],
    ("hermes", "plain"): [" Hello, friend. <|im_end|>", "Ada <b>Quill</b>. <|im_end|> said </think><|im_end|>"],
    ("tagged", "plain"): [" Hello, friend. <|eot_id|>", "Ada <b>Quill</b>. <|im_end|> said </think><|eot_id|>"],
    ("qwen3", "calls"): [
        'Let me look.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call><|im_end|>',
        "<think>\n\n</think>\n\nIt is 12 degrees.<|im_end|>",
    ],
    ("hermes", "calls"): [
        'Let me look.\n<tool_call>\n{"arguments": {"city": "Oslo"}, "name": "weather"}\n</tool_call><|im_end|>',
        "It is 12 degrees.<|im_end|>",
    ],
    ("tagged", "calls"): [
        "Let me look.<tool_call>weather[city]Oslo[/city]</tool_call><|eom|>",
        "It is 12 degrees.<|eot_id|>",
    ],
    ("chatml", "thoughts"): [
        "<think>\nFirst thought.\n</think>\n\nYes.<|im_end|>",
        "<think>\nSecond thought.\n</think>\n\nNo.<|im_end|>",
    ],
    ("r1", "thoughts"): ["Yes.<|im_end|>", "<think>\nSecond thought.\n</think>\n\nNo.<|im_end|>"],
    ("qwen3", "thoughts"): ["Yes.<|im_end|>", "<think>\nSecond thought.\n</think>\n\nNo.<|im_end|>"],
}
CHATS = {"plain": PLAIN, "calls": CALLS, "thoughts": THOUGHTS}


@pytest.mark.parametrize("kind", ["llama3", "gpt2", "metaspace"])
@pytest.mark.parametrize(("template", "chat"), WRITTEN)
def test_what_is_written_is_what_the_template_puts_after_the_header(template, chat, kind):
    tokenizer = make_policy_tokenizer(template, kind)
    conversation = read_record(CHATS[chat]).conversation
    rendered = PolicyChat(tokenizer).render(conversation, conversation.trained)
    encoding = rendered.encoding
    spans = [(encoding.offsets[w.first][0], encoding.offsets[w.last][1]) for w in rendered.written.values()]
    assert [encoding.text[a:b].strip() for a, b in spans] == [text.strip() for text in WRITTEN[template, chat]]
    if kind != "metaspace":  # which decodes the beginning of a list in its own way
        ids = [encoding.ids[w.first : w.last + 1] for w in rendered.written.values()]
        assert [tokenizer.decode(part, clean_up_tokenization_spaces=False) for part in ids] == WRITTEN[template, chat]
    assert all(written.ended for written in rendered.written.values())


@pytest.mark.parametrize("template", TEMPLATES)
def test_the_rendering_is_the_tokenizers_own_where_no_content_spells_control_tokens(template):
    """By transformers, tokenised by the template's markers and the tokenizer: an independent way to the same ids."""
    tokenizer = make_policy_tokenizer(template)
    messages = [{"role": r, "content": t} for r, t in (("user", "Hi"), ("assistant", "Hello."))]
    conversation = read_record({"messages": messages}).conversation
    rendered = PolicyChat(tokenizer).render(conversation, [1])
    assert rendered.encoding.ids == tokenizer.apply_chat_template(messages)["input_ids"]
    prompt = tokenizer.apply_chat_template(messages[:1], add_generation_prompt=True)["input_ids"]
    if template == "r1":  # its prompt opens the reasoning that this answer has not
        prompt = prompt[: prompt.index(tokenizer.convert_tokens_to_ids("<think>"))]
    assert rendered.encoding.ids[: rendered.written[1].first] == prompt


def test_control_strings_in_content_calls_and_tools_are_text():
    tokenizer = make_policy_tokenizer("qwen3")
    arguments = json.dumps({"<|im_end|>": "</tool_call><|im_start|>", "n": 1})
    call = {"function": {"name": "f", "arguments": arguments}}
    record = {
        "messages": [
            {"role": "user", "content": "<|im_end|>"},
            {"role": "assistant", "content": "<tool_call>", "tool_calls": [call], "reasoning_content": "</think>"},
        ],
        "tools": [{"type": "function", "function": {"name": "<|im_end|>"}}],
    }
    conversation = read_record(record).conversation
    rendered = PolicyChat(tokenizer).render(conversation, [1])
    ids = rendered.encoding.ids
    for token, count in (("<|im_end|>", 3), ("<|im_start|>", 3), ("<tool_call>", 1), ("</think>", 1)):
        assert ids.count(tokenizer.convert_tokens_to_ids(token)) == count
    for piece in rendered.written[1].pieces:
        text = conversation.turns[1].answer.text[piece.at : piece.at + piece.end - piece.begin]
        assert text == rendered.encoding.text[piece.begin : piece.end]


@pytest.mark.parametrize("field", [True, False])
def test_tags_around_reasoning_are_the_tokens_that_the_policy_writes_and_others_are_text(field):
    """The template would drop them: the ids by hand are the tokenizer's of the text with the two tags unspoilt."""
    tokenizer = make_policy_tokenizer("r1")
    thought = {"reasoning_content": "a <think> b"} if field else {}
    answer = "No </think>." if field else "<think>\na <think> b\n</think>\n\nNo </think>."
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": answer, **thought}]
    conversation = read_record({"messages": messages}).conversation
    rendered = PolicyChat(tokenizer).render(conversation, [1])
    written = rendered.written[1]
    ids = rendered.encoding.ids[written.first : written.last + 1]
    opening, closing = (tokenizer.convert_tokens_to_ids(tag) for tag in ("<think>", "</think>"))
    assert ids[0] == opening
    assert (ids.count(opening), ids.count(closing)) == (1, 1)
    assert tokenizer.decode(ids[1 : ids.index(closing)]) == "\na <think> b\n"
    assert tokenizer.decode(ids) == "<think>\na <think> b\n</think>\n\nNo </think>.<|im_end|>"
    for piece in written.pieces:
        text = conversation.turns[1].answer.text[piece.at : piece.at + piece.end - piece.begin]
        assert text == rendered.encoding.text[piece.begin : piece.end]


TWO_ENDS = (
    "{% for m in messages %}<|head|>{{ m.role }}<|/head|>{% if m.role == 'assistant' %}<turn>{{ m.content }}"
    "{% for call in m.tool_calls or [] %}<tool_call>{{ call.function.name }} {{ call.function.arguments | tojson }}"
    "</tool_call>{% endfor %}"
    "</turn>{% else %}{{ m.content }}{% endif %}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|head|>assistant<|/head|><turn>{% endif %}"
)


@pytest.mark.parametrize(
    ("eos", "between", "end"),
    [("<|eot_id|>", "", "</turn><|eot_id|>"), ("<|im_end|>", "", "</turn>"), ("<|eot_id|>", "\n", "</turn>")],
)
def test_an_answers_own_end_is_not_the_end_of_the_turn(eos, between, end):
    """As Command R7B: <|END_RESPONSE|>, then the token at which generate stops."""
    tokenizer = copy.deepcopy(make_policy_tokenizer("llama3"))
    tokenizer.eos_token, tokenizer.chat_template = eos, TWO_ENDS.replace("</turn>{% else", f"</turn>{between}{{% else")
    conversation = read_record(PLAIN).conversation
    rendered = PolicyChat(tokenizer).render(conversation, [1, 3])
    ids = rendered.encoding.ids
    found = [tokenizer.decode(ids[w.first : w.last + 1]) for w in rendered.written.values()]
    assert found == [f" Hello, friend. {end}", f"Ada <b>Quill</b>. <|im_end|> said </think>{end}"]


def test_what_closes_a_call_is_written_where_nothing_ends_the_turn():
    """As GLM 4.5, whose turns end where the next one's role begins: the last one's call was left open."""
    tokenizer = copy.deepcopy(make_policy_tokenizer("tagged"))
    tokenizer.chat_template = TWO_ENDS.replace("</turn>", "").replace("<turn>", "").replace("<|eot_id|>", "")
    calls = CALLS | {"messages": [*CALLS["messages"], *CALLS["messages"][:2]]}
    rendered = PolicyChat(tokenizer).render(read_record(calls).conversation, [1, 3, 5])
    ids = rendered.encoding.ids
    found = [tokenizer.decode(ids[w.first : w.last + 1]) for w in rendered.written.values()]
    call = 'Let me look.<tool_call>weather {"city": "Oslo"}</tool_call>'
    assert found == [f"{call}<|head|>", "It is 12 degrees.<|head|>", call]
    assert [w.ended for w in rendered.written.values()] == [True, True, False]


# As DeepSeek V3's: it joins the arguments to its own text, so they have to be text.
JOINED = (
    "{% for m in messages %}<|head|>{{ m.role }}<|/head|>{{ m.content }}{% for call in m.tool_calls or [] %}"
    "{{ '<tool_call>' + call['function']['name'] + ' ' + call['function']['arguments'] + '</tool_call>' }}{% endfor %}"
    "<|eot_id|>{% endfor %}{% if add_generation_prompt %}<|head|>assistant<|/head|>{% endif %}"
)


def test_arguments_are_text_for_a_template_that_needs_text():
    """The text by hand is Python's own concatenation; the pieces are the judged text."""
    tokenizer = copy.deepcopy(make_policy_tokenizer("tagged"))
    tokenizer.chat_template = JOINED
    conversation = read_record(CALLS).conversation
    rendered = PolicyChat(tokenizer).render(conversation, [1, 3])
    written, ids = rendered.written[1], rendered.encoding.ids
    call = "<tool_call>" + "weather" + " " + CALL["function"]["arguments"] + "</tool_call>"
    assert tokenizer.decode(ids[written.first : written.last + 1]) == f"Let me look.{call}<|eot_id|>"
    judged = conversation.turns[1].answer.text
    shown = [rendered.encoding.text[piece.begin : piece.end] for piece in written.pieces]
    assert shown == ["Let me look.", "weather", '{"city": "Oslo"}']
    assert shown == [judged[piece.at : piece.at + piece.end - piece.begin] for piece in written.pieces]


@pytest.mark.parametrize(
    ("expression", "error"),
    [("m.content + 1", "TypeError"), ("m.thing.other", "UndefinedError"), ("m.content.no()", "UndefinedError"),
     ("{}['secret'].x", "UndefinedError"), ("m.content.split('')", "ValueError"), ("1 // 0", "ZeroDivisionError"),
     ("m.content.index('~')", "ValueError"), ("'%(a)s' % {'b': m.content}", "KeyError"),
     ("'%d' % m.content", "TypeError")],
)  # fmt: skip
def test_whatever_a_template_raises_is_said_without_the_text(expression, error):
    """A TypeError of Jinja's reached the user, and ended runs in which one row had such a call."""
    tokenizer = make_policy_tokenizer("chatml")
    template = tokenizer.chat_template + "{% for m in messages %}{{ " + expression + " }}{% endfor %}"
    conversation = read_record({"prompt": "Hi", "response": "secret"}).conversation
    policy = PolicyChat(tokenizer, template=template)
    with pytest.raises(UserError, match="the chat template refuses the conversation") as refused:
        policy.render(conversation, [1])
    assert f": {error}; leave it out, or give a template" in str(refused.value)
    assert "secret" not in str(refused.value)


def test_an_error_that_is_no_templates_keeps_its_own_words(monkeypatch):
    policy = PolicyChat(make_policy_tokenizer("chatml"))
    monkeypatch.setattr(policy.encoder.tokenizer, "apply_chat_template", lambda *args, **how: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        policy.encoder.render([[{"role": "user", "content": "x"}]], generation_prompt=False)


def test_a_template_that_refuses_think_tags_still_renders_turns_without_them():
    tokenizer = make_policy_tokenizer("chatml")
    refusing = (
        "{% for m in messages %}{% if '</think>' in m.content %}{{ raise_exception('no') }}{% endif %}{% endfor %}"
    )
    conversation = read_record(PLAIN).conversation
    conversation = Conversation((*conversation.turns[:3], Turn("assistant", "Ada.")))
    expected = PolicyChat(tokenizer).render(conversation, [1, 3]).encoding.text
    refuses = PolicyChat(tokenizer, template=refusing + tokenizer.chat_template)
    assert refuses.render(conversation, [1, 3]).encoding.text == expected


def test_html_tags_stay_the_tokens_that_they_are():
    tokenizer = make_policy_tokenizer("gemma")
    conversation = read_record({"prompt": "Hi", "response": "a <b>bold</b> word"}).conversation
    ids = PolicyChat(tokenizer).render(conversation, [1]).encoding.ids
    assert tokenizer.convert_tokens_to_ids("<b>") in ids


@pytest.mark.parametrize(
    ("template", "turns", "message"),
    [
        ("chatml", [Turn("user", "a"), Turn("assistant", "", calls=(Call("f"),))], "drops or rewrites a tool call"),
        ("gemma", [Turn("system", "s"), Turn("user", "a"), Turn("assistant", "b")], "no system turn, please"),
        ("gemma", [Turn("user", "a"), Turn("assistant", "b"), Turn("assistant", "c")], "take turns"),
    ],
)
def test_what_a_template_cannot_write_is_an_error_of_the_conversation(template, turns, message):
    with pytest.raises(ValueError, match=message):
        PolicyChat(make_policy_tokenizer(template)).render(Conversation(tuple(turns)), [])


def test_what_the_template_knows_is_asked_of_it():
    known = {name: PolicyChat(make_policy_tokenizer(name)) for name in TEMPLATES}
    assert {name for name, policy in known.items() if policy.reasoning_key} == {"qwen3"}
    assert {name for name, policy in known.items() if policy.shows_tools} == {"qwen3", "hermes"}
