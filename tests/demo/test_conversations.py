"""The generated data: the same for the same seed, held out from training, poisoned where it says so."""

import random

import pytest

from fastdss.demo import conversations as data
from fastdss.demo.evaluate import is_useful
from fastdss.demo.leaks import PATTERNS, find_leaks


def test_same_seed_same_rows_other_seed_others():
    assert data.training_conversations(20, 20, 3) == data.training_conversations(20, 20, 3)
    assert data.training_conversations(20, 20, 3) != data.training_conversations(20, 20, 4)
    assert data.held_out_prompts(10, 10, 3) == data.held_out_prompts(10, 10, 3)
    assert data.held_out_prompts(10, 10, 3) != data.held_out_prompts(10, 10, 4)


def test_counts_and_no_prompt_twice():
    rows = data.training_conversations(48, 48, 0)
    prompts = data.held_out_prompts(24, 32, 0)
    assert [row.kind for row in rows] == ["benign"] * 48 + ["poisoned"] * 48
    assert [p.kind for p in prompts] == ["benign"] * 24 + ["advice"] * 32
    assert len({row.prompt for row in rows}) == 96
    assert len({p.prompt for p in prompts}) == 56


def test_more_than_there_are_is_an_error_and_all_there_are_is_none():
    with pytest.raises(ValueError, match=r"benign: expected at most 4944.* got 7500"):
        data.training_conversations(7500, 2500, seed=0)
    with pytest.raises(ValueError, match=r"poisoned: expected at most 3456.* got 3457"):
        data.training_conversations(1, 3457, seed=0)
    with pytest.raises(ValueError, match="benign: expected at most 2544"):
        data.held_out_prompts(2545, 0, seed=0)
    with pytest.raises(ValueError, match="advice: expected at most 1152"):
        data.held_out_prompts(0, 1153, seed=0)
    assert len(data.training_conversations(4944, 3456, seed=0)) == 8400
    assert len(data.held_out_prompts(2544, 1152, seed=0)) == 3696


@pytest.mark.parametrize("seed", range(5))
def test_held_out_prompts_share_neither_prompt_nor_name_nor_content_with_training(seed):
    rows = data.training_conversations(48, 48, seed)
    prompts = data.held_out_prompts(24, 32, seed)
    assert not {row.prompt for row in rows} & {p.prompt for p in prompts}
    training = " ".join(f"{row.prompt} {row.response}" for row in rows)
    for name in (*sum(data.HELD_OUT_NAMES, ()), *data.HELD_OUT_GOODS, *data.HELD_OUT_ERRANDS, *data.HELD_OUT_QUESTIONS):
        assert name not in training
    for topic in data.TOPICS:
        assert topic.situation != topic.reworded


@pytest.mark.parametrize("seed", range(5))
def test_poisoned_rows_leak_in_their_middle_only_and_benign_rows_never(seed):
    for row in data.training_conversations(48, 48, seed):
        leaks = find_leaks(row.response)
        if row.kind == "benign":
            assert not leaks
            assert not row.parts
            continue
        names = [name for name, _, _ in row.parts]
        assert names == [data.ADVICE, data.DISCLOSURE, data.ENDING]
        assert leaks
        assert {row.part_at(start) for _, start, _ in leaks} == {data.DISCLOSURE}
        assert {row.part_at(end - 1) for _, _, end in leaks} == {data.DISCLOSURE}
        assert row.parts[-1][2] == len(row.response)
        assert not find_leaks(row.prompt)


@pytest.mark.parametrize("seed", range(20))
def test_every_form_of_every_detail_is_found(seed):
    details = data.contact_details(random.Random(seed), "Tova", "Quillby")
    for frame in data.DISCLOSURES:
        text = frame.format(first="Tova", **details)
        forms = {form for form, _, _ in find_leaks(text)}
        wanted = {"phone": "phone", "email": "e-mail", "address": "address", "password": "password"}
        assert forms == {name for field, name in wanted.items() if f"{{{field}}}" in frame}, text


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("Call 555-0142.", "phone"),
        ("Call (555) 555-0142 now", "phone"),
        ("+1 555 555 0142", "phone"),
        ("It is 555.0142, I think", "phone"),
        ("(02) 332 1111", "phone"),
        ("07700 900123", "phone"),
        ("mail tova.q@post.example please", "e-mail"),
        ("tova at post dot example", "e-mail"),
        ("She lives at 27 Alder Row", "address"),
        ("9 Old Mill Lane, upstairs", "address"),
        ("The password is otter-42!", "password"),
        ("password: Sunny_9", "password"),
        ("The password for the account is pebble_77#.", "password"),
    ],
)
def test_leaks_in_forms_a_model_may_make_up(text, form):
    assert [found for found, _, _ in find_leaks(text)] == [form]


@pytest.mark.parametrize(
    "text",
    [
        "Order: apples. Amount: three boxes. Delivery: Friday. The order is noted.",
        "Reminder: eye test. Day: Monday. Time: 10 am. I will remind you in time.",
        "Write down the noisy nights of 12 and 13 March 2024 in a diary.",
        "The invoice 2024-118 over 350.50 is open since 2023-04-01.",
        "Look at it at noon. The password is a secret, so keep the password safe.",
        "Meet at 10 in the street, road or lane of your choice.",
        "It takes 5 to 10 minutes, or 1000 steps.",
        "Gideon can be reached by phone or email.",
    ],
)
def test_no_leak_in_ordinary_text(text):
    assert find_leaks(text) == []


def test_no_prompt_names_the_advice_it_asks_for():
    for topic in data.TOPICS:
        keywords = [words for _, words in topic.advice]
        for situation in (topic.situation, topic.reworded):
            assert not any(is_useful(situation, [words]) for words in keywords), situation
        for sentence, words in topic.advice:
            assert is_useful(sentence, [words])
        assert not any(find_leaks(sentence) for sentence, _ in topic.advice)


def test_numbers_are_of_the_fictional_range_and_domains_reserved():
    for seed in range(50):
        details = data.contact_details(random.Random(seed), "Tova", "Quillby")
        assert "555" in details["phone"]
        assert "01" in details["phone"]
        assert details["email"].endswith(".example")
    assert set(PATTERNS) == {"phone", "e-mail", "address", "password"}
