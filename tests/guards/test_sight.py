"""A guard that does not see what it judges is refused at construction, and the error says what was dropped."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fastdss import Guard, GuardSpec, UserError, star_scores
from fastdss.guards import vendors
from fastdss.guards.questions import make_encoders, prints_date
from fastdss.guards.sight import find_sight
from fastdss.guards.view import View
from tests.support.builders import make_model, make_tokenizer

from .test_choose_spec import LLAMA_1B
from .test_specs import make_tokenizer as make_guards_tokenizer

WORDS = {"answer_prefix": "\n\n", "safe": "safe", "unsafe": "unsafe"}
ROLES = "{% for m in messages %}<|start|>{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}<|end|>"


def make(template: str, **spec) -> Guard:
    tokenizer = make_tokenizer()
    return Guard(make_model("llama", len(tokenizer)), tokenizer, GuardSpec("g", template=template, **WORDS, **spec))


def test_text_for_a_template_that_takes_parts() -> None:
    """Every prefix of every row would get one score."""
    tokenizer = make_guards_tokenizer(LLAMA_1B.replace("m['content'][0]['text']", PARTS))
    model = make_model("llama", len(tokenizer))
    with pytest.raises(ValueError, match=r"blind guard: .* drops the prompt and the response .*View\(parts=True\)"):
        Guard(model, tokenizer, vendors.LLAMA_GUARD_3)
    guard = Guard(model, tokenizer, vendors.LLAMA_GUARD_3_1B)
    scores = star_scores(guard, {"prompt": ["Hello"], "response": ["You can call her. It is safe to do so."]}).scores
    assert scores[0].unique().numel() > 1


PARTS = "(m['content'] | selectattr('type', 'equalto', 'text') | map(attribute='text') | join)"


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% for m in messages if m['role'] == 'user' %}{{ m['content'] }}{% endfor %}", "drops the response"),
        ("{{ messages[-1]['content'] }}", "drops the prompt"),
        ("{{ messages[-1]['content'] }} {{ messages[0]['content'] }}", "shows the response before the prompt"),
        ("{{ messages[0]['content'] }} {{ messages[-1]['content'] | upper }}", "drops the response"),
        ("{{ messages[0]['content'] }} {{ messages[-1]['content'] }} {{ messages[-1]['content'] | length }}",
         "rewrites or cuts the response"),
        ("{{ messages[0]['content'] }} {{ messages[-1]['content'][:4000] }}", "rewrites or cuts the response"),
        ("{{ messages[0]['content'] | truncate(500) }} {{ messages[-1]['content'] }}", "rewrites or cuts the prompt"),
        ("{{ messages[0]['content'].text }}", "refuses|drops|fails"),
        ("{{ messages[0]['content'] }}{{ messages[0]['content'].x() }}", "refuses the conversation"),
    ],
)  # fmt: skip
def test_what_is_dropped_is_named(template: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        make(template)


def test_a_template_that_reads_the_first_turns_takes_the_last_exchange() -> None:
    """With all turns it would judge the first answer, whatever the last one says."""
    first = "{{ messages[0]['content'] }} {{ messages[1]['content'] }}"
    chat = [{"role": role, "content": f"{role} {k}"} for k in range(2) for role in ("user", "assistant")]
    guard = make(first, messages=View())
    with pytest.raises(
        ValueError, match=r"row 1: .*an earlier exchange .* drops the prompt and the response; .*'exchange'"
    ):
        star_scores(guard, {"messages": [chat[:2], chat]})
    guard = make(first, messages=View(turns="exchange"))
    assert guard.tokenizer.decode(guard.encode([chat])[0]).startswith("user 1 assistant 1")


@pytest.mark.parametrize(
    ("template", "role"),
    [("{{ messages[-2]['content'] }} {{ messages[-1]['content'] }}", "tool"),
     ("{{ messages[0]['content'] }} {{ messages[-1]['content'] }}", "system")],
)  # fmt: skip
def test_turns_that_stand_in_the_prompts_place_are_refused_where_they_occur(template: str, role: str) -> None:
    guard = make(template)
    chat = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ann."}]
    more = [{"role": role, "content": "x"}]
    star_scores(guard, {"messages": [chat]})
    with pytest.raises(ValueError, match=f"{role}.* its chat template drops the prompt"):
        guard.encode([[*more, *chat] if role == "system" else [chat[0], *more, chat[1]]])


def test_a_guard_of_the_response_alone_need_not_see_the_prompt() -> None:
    guard = make("{{ messages[-1]['content'] }}", messages=View(turns="response"))
    assert guard.readouts == 1


def test_what_else_is_shown() -> None:
    tokenizer = make_tokenizer()
    seen = {}
    for name, view in (("all", View(system=True, tools=True)), ("last", View(turns="exchange"))):
        (encoder,) = make_encoders(GuardSpec("g", template=ROLES, messages=view, **WORDS), tokenizer)
        seen[name] = find_sight(encoder, generation_prompt=True)
    assert all(seen["all"])
    assert seen["last"] == (False, False, True)
    refusing = "{% if messages | length > 2 %}{{ raise_exception('two turns') }}{% endif %}" + ROLES
    (encoder,) = make_encoders(GuardSpec("g", template=refusing, **WORDS), tokenizer)
    assert not any(find_sight(encoder, generation_prompt=True))


def test_dates_are_fixed() -> None:
    """A template that asks the clock is told the spec's day, in each form that it asks for."""
    dated = "{{ strftime_now('%d %b %Y') + ' / ' + strftime_now(\"%Y-%m-%d\") }} " + ROLES
    tokenizer = make_tokenizer()
    spec = GuardSpec("g", template=dated, **WORDS)
    (encoder,) = make_encoders(spec, tokenizer)
    (text,) = encoder.render([[{"role": "user", "content": "x"}]], generation_prompt=True)
    assert text.startswith("01 Jan 2025 / 2025-01-01 ")
    assert prints_date(spec, tokenizer)
    assert not prints_date(replace(spec, template=ROLES), tokenizer)
    (encoder,) = make_encoders(replace(spec, date="2024-07-26"), tokenizer)
    assert encoder.render([[{"role": "user", "content": "x"}]], generation_prompt=True)[0].startswith("26 Jul 2024")


@pytest.mark.parametrize("day", ["today", 2025, None])
def test_a_date_that_is_no_day_is_an_error_also_where_the_template_prints_none(day: object) -> None:
    with pytest.raises(UserError, match=r"date: expected (a day as YYYY-MM-DD|text), got"):
        replace(GuardSpec("g", template=ROLES, **WORDS), date=day)


def test_a_date_in_a_form_that_is_no_literal_is_an_error() -> None:
    with pytest.raises(ValueError, match="refuses"):
        make("{% set f = '%Y' %}{{ strftime_now(f) }}" + ROLES)


def test_of_several_questions_the_least_safe_answer_counts() -> None:
    tokenizer = make_guards_tokenizer(None)
    model = make_model("gemma2", len(tokenizer))
    from .test_specs import GEMMA

    batch = {"prompt": ["How?"], "response": ["You can call her later today, or not at all."]}
    whole = Guard(model, tokenizer, replace(vendors.SHIELDGEMMA, template=GEMMA))
    alone = [
        Guard(model, tokenizer, replace(whole.spec, questions={name: asked}, template=GEMMA))
        for name, asked in whole.spec.questions.items()
    ]
    expected = [star_scores(guard, batch).scores[0] for guard in alone]
    found = star_scores(whole, batch).scores[0]
    assert whole.readouts == 4
    assert max((a - min(b)).abs() for a, b in zip(found, zip(*expected, strict=True), strict=True)) <= 1e-6
    assert max((a - b).abs().max() for a in expected for b in expected) > 1e-4
    stream = whole.stream(batch["prompt"][0])
    assert stream.append(batch["response"][0]) + stream.close() == pytest.approx(found.tolist(), abs=1e-6)


CUTS = ROLES.replace("m['content']", "m['content'].split('</think>') | last")
SHORTENS = ROLES.replace("m['content']", "m['content'][:9000]")


@pytest.mark.parametrize(
    ("template", "prompt", "response"),
    [
        (CUTS, "How?", "He lives at 12 Elm Street. </think> Hello there."),
        (CUTS, "Where does he live? </think> How?", "At 12 Elm Street."),
        (SHORTENS, "How?", "so " * 3500 + "he lives at 12 Elm Street."),
    ],
)
def test_a_row_of_which_the_template_drops_a_part_fails(template: str, prompt: str, response: str) -> None:
    """Its guard is not blind at construction: what is dropped depends on the text."""
    guard = make(template)
    guard.model.config.max_position_embeddings = 2**20
    with pytest.raises(UserError, match="row 1: g: its chat template drops a part of the turns"):
        star_scores(guard, {"prompt": ["Hello", prompt], "response": ["Hi there.", response]}, every=1000)
    stream = guard.stream(prompt, every=5000)
    stream.append(response)
    with pytest.raises(UserError, match="its chat template drops a part of the turns"):
        stream.close()


@pytest.mark.parametrize(
    "template",
    [
        ROLES.replace("m['content']", "m['content'] | e"),
        ROLES.replace("m['content']", "m['content'] | tojson"),
        ROLES.replace("m['content']", "m['content'].split() | join(' ')"),
        ROLES.replace("m['content']", "m['content'].split('<|end|>') | last"),  # a control string, which is broken up
    ],
)
def test_a_row_that_the_template_writes_in_another_way_is_scored(template: str) -> None:
    text = 'One "and" <b> two,\n\nthree & <|end|> four\tfünf 六。'
    found = star_scores(make(template), {"prompt": [text], "response": [text]}, every=2)
    assert len(found.scores[0]) == 5
