"""The generated data: reproducible, correctly labelled, and apart from the held-out data."""

from __future__ import annotations

import re
from itertools import pairwise
from random import Random

import pytest

from training import carriers, harmless, held_out, held_out_text, private_items
from training.batches import IGNORE, label_at, word_ends
from training.conversations import Conversation, conversations, core_length, fingerprint
from training.evaluate_tiny_guard import auc, boundaries, wilson
from training.topics import TOPICS

SAMPLE = conversations(seed=0, start=0, count=1500)


def test_generation_depends_on_the_seed_and_the_number_only() -> None:
    assert fingerprint(SAMPLE[200:300]) == fingerprint(conversations(0, 200, 100))
    assert fingerprint(SAMPLE[:100]) != fingerprint(conversations(1, 0, 100))


def test_spans_hold_what_they_say() -> None:
    for c in SAMPLE:
        assert c.response == c.response.strip()
        assert c.response
        assert all(0 <= a < b <= len(c.response) for a, b in c.items)
        assert all(b <= a for (_, b), (a, _) in pairwise(c.items))
        assert all(c.response[a:b] == c.response[a:b].strip() for a, b in c.items)


def test_every_kind_is_there_in_quantity() -> None:
    positive = sum(bool(c.items) for c in SAMPLE)
    assert 0.35 * len(SAMPLE) < positive < 0.55 * len(SAMPLE)
    assert any("@" in c.response[a:b] for c in SAMPLE for a, b in c.items)


def test_no_disclosure_hides_in_a_benign_response() -> None:
    mail = re.compile(r"\w@\w+\.\w")
    street = re.compile(r"\b\d+[a-z]? [A-Z]\w+ (?:Street|Road|Lane|Avenue|Drive|Court|Way)\b")
    for c in SAMPLE:
        if not c.items:
            assert not mail.search(c.response)
            assert not street.search(c.response)


def test_label_flips_where_the_value_ends() -> None:
    c = Conversation(("Hi",), "Call 555 0142 now.", ((5, 13),), "phone")
    assert [label_at(c, e) for e in word_ends(c.response)] == [0.0, 0.0, 1.0, 1.0]
    assert label_at(c, 12) == IGNORE
    assert c.disclosed_at == 13


@pytest.mark.parametrize(
    ("item", "core"),
    [
        ("12 Elm Lane, Apt 4", "12 Elm Lane"),
        ("12 Elm Lane", "12 Elm Lane"),
        ("Flat 2, 12 Elm Lane", "Flat 2, 12 Elm Lane"),
    ],
)
def test_an_address_is_out_before_its_flat_is_named(item: str, core: str) -> None:
    assert item[: core_length("address", item)] == core


def test_training_and_held_out_share_no_names_formats_carriers_or_topics() -> None:
    def apart(train: list[str], held: list[str]) -> None:
        assert not {t.lower() for t in train} & {h.lower() for h in held}

    apart(private_items.FIRST_NAMES, held_out_text.FIRST_NAMES)
    apart(private_items.LAST_NAMES, held_out_text.LAST_NAMES)
    apart(private_items.ROLES, held_out_text.RELATIONS)
    apart(private_items.PHONE_FORMATS, held_out_text.PHONE_FORMATS)
    apart(private_items.PASSWORD_FORMATS, held_out_text.PASSWORD_FORMATS)
    apart(private_items.PASSWORD_WORDS, held_out_text.PASSWORD_WORDS)
    apart(private_items.STREET_TYPES, held_out_text.STREET_KINDS)
    apart(private_items.MORE_STREET_TYPES, held_out_text.STREET_KINDS)
    apart(private_items.STREET_WORDS, held_out_text.STREETS)
    for kind, frames in carriers.CARRIERS.items():
        apart(frames, held_out_text.CARRIERS[kind])
    apart(harmless.NEGATIVES + harmless.PRIVACY_TALK + harmless.REFUSALS, held_out_text.NEAR_MISSES)
    apart([s for _, own in TOPICS for s in own], [s for own in held_out_text.BENIGN_TOPICS for s in own])


def test_random_phone_numbers_never_take_a_held_out_shape() -> None:
    def shape(text: str) -> str:
        return re.sub(r"[0-9#%]", "#", text)

    rng = Random(0)
    held = {shape(f) for f in held_out_text.PHONE_FORMATS}
    assert not held & {shape(private_items.composed_phone(rng)) for _ in range(20_000)}
    assert not held & {shape(f) for f in private_items.PHONE_FORMATS}


def test_random_passwords_and_addresses_never_take_a_held_out_form() -> None:
    """One format is no form of its own: a word, four letters and two digits is a longer word and two digits."""
    classes = {"#": "[0-9]", "%": "[2-9]", "@": "[a-z]", "^": "[A-Z]", "W": "[A-Z][a-z]+"}
    rng = Random(0)
    drawn = [private_items.composed_password(rng) for _ in range(5000)]
    for form in sorted({*held_out_text.PASSWORD_FORMATS} - {"{w}@@@@##"}):
        like = re.compile("".join(classes.get(c, re.escape(c)) for c in form.replace("{w}", "W")))
        assert not [text for text in drawn if like.fullmatch(text)]
    held = re.compile(r"\b(?:Upper|Rue|Floor|Room|Suite)\b|\d/\d")
    assert not [text for text in (private_items.address(rng) for _ in range(5000)) if held.search(text)]


def test_a_number_that_means_nothing_does_not_look_like_a_phone_number_on_its_own() -> None:
    rng = Random(0)
    assert not [n for n in (private_items.harmless_number(rng) for _ in range(500)) if private_items.evident(n)]
    assert private_items.evident("+999 12 345")
    assert not private_items.evident("41=22=907")


def test_no_held_out_name_is_generated_for_training() -> None:
    held = {*held_out_text.FIRST_NAMES, *held_out_text.LAST_NAMES}
    for c in SAMPLE:
        assert not held & set(re.findall(r"[A-Z]\w+(?:-\w+)?", c.response))


def test_reassuring_endings_are_nowhere_in_training() -> None:
    text = "\n".join(c.response for c in SAMPLE)
    assert not any(ending in text for ending in held_out_text.REASSURING_ENDINGS)
    after = "\n".join(c.response[c.disclosed_at :] for c in SAMPLE if c.items)
    assert not any(line in after for line in harmless.PRIVACY_TALK + harmless.REFUSALS)


def test_held_out_conversations() -> None:
    for i in range(80):
        bad, good, ended = held_out.poisoned(3, i), held_out.benign(3, i), held_out.with_ending(3, i)
        ((a, b),) = bad.items
        assert len(bad.response[a:b]) >= 5
        assert "{" not in bad.response[a:b]
        assert not good.items
        assert ended.response.startswith(bad.response)
        assert any(ended.response.endswith(e) for e in held_out_text.REASSURING_ENDINGS)


def test_boundaries_are_every_fifth_word_and_the_last() -> None:
    text = "a b  c\nd e f g."
    assert [text[:e] for e in boundaries(text)] == ["a b  c\nd e", text]
    assert boundaries("one") == [3]
    assert boundaries("1 2 3 4 5") == [9]


def test_auc_and_interval_against_brute_force() -> None:
    rng = Random(0)
    scored = [(rng.choice([0.1, 0.2, 0.5, 0.9]), rng.random() < 0.4) for _ in range(60)]
    pairs = [(s, t) for s, bad in scored if bad for t, worse in scored if not worse]
    assert auc(scored) == pytest.approx(sum((s < t) + 0.5 * (s == t) for s, t in pairs) / len(pairs))
    low, high = wilson(45, 50)
    assert low == pytest.approx(0.7864, abs=1e-3)
    assert high == pytest.approx(0.9565, abs=1e-3)
