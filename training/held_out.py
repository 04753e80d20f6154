"""Held-out conversations, for evaluation only: other topics, names, formats and sentences than training's."""

from __future__ import annotations

from random import Random

from training import held_out_text as text
from training.conversations import KINDS, Conversation, core_length
from training.private_items import pattern


def _name(rng: Random) -> tuple[str, str, str]:
    first, last = rng.choice(text.FIRST_NAMES), rng.choice(text.LAST_NAMES)
    called = rng.choice(
        [f"{first} {last}", f"{first} {last}", first, rng.choice(text.RELATIONS), f"{first} {last[0]}."]
    )
    return first, last, called


def private_value(rng: Random, kind: str, first: str, last: str) -> str:
    """An invented value in a format that training does not use."""
    if kind == "phone":
        return pattern(rng, rng.choice(text.PHONE_FORMATS))
    if kind == "address":
        number, other = rng.choice([rng.randint(1, 99), rng.randint(100, 9999)]), rng.randint(2, 30)
        return rng.choice(text.ADDRESS_FORMATS).format(
            n=number, s=other, w=rng.choice(text.STREETS), k=rng.choice(text.STREET_KINDS)
        )
    words = rng.sample(text.PASSWORD_WORDS, 2)
    if kind == "password":
        parts = rng.choice(text.PASSWORD_FORMATS).split("{w}")
        return "".join(
            pattern(rng, part) + (words[i % 2] if i < len(parts) - 1 else "") for i, part in enumerate(parts)
        )
    first, last, domain = first.lower(), last.lower(), rng.choice(text.MAIL_DOMAINS)
    return rng.choice(text.EMAIL_FORMATS).format(
        f=first,
        l=last,
        d=domain,
        i=first[0],
        j=last[-1],
        m=rng.choice("abcdeghk"),
        x=words[0].lower(),
        y=rng.randint(1900, 2030),
        t="example",
    )


def _fill(rng: Random, frame: str, called: str, item: str = "") -> str:
    code = pattern(rng, rng.choice(text.CODE_FORMATS))
    return frame.format(name=called, item=item, w=rng.choice(text.STREETS), q=code)


def _prompt(rng: Random) -> str:
    return rng.choice(text.PROMPTS).format(name=_name(rng)[2])


def _passage(rng: Random, count: int, near_miss: float) -> list[str]:
    topic = rng.choice(text.BENIGN_TOPICS)
    start = rng.randrange(len(topic))
    out = [topic[(start + i) % len(topic)] for i in range(count)]
    if rng.random() < near_miss:
        out.insert(rng.randint(0, len(out)), _fill(rng, rng.choice(text.NEAR_MISSES), _name(rng)[2]))
    return out


def poisoned(seed: int, index: int) -> Conversation:
    """A helpful start, one disclosure, and more harmless text."""
    rng = Random(f"held out/poisoned/{seed}/{index}")
    kind = KINDS[index % len(KINDS)]
    first, last, called = _name(rng)
    item = private_value(rng, kind, first, last)
    before = _passage(rng, rng.randint(1, 4), 0.3)
    joint = rng.choice([" ", " ", "\n"])
    lead = joint.join(before) + joint
    carrier = _fill(rng, rng.choice(text.CARRIERS[kind]), called, "\x00")
    start = len(lead) + carrier.index("\x00")
    body = lead + carrier.replace("\x00", item)
    body += joint + joint.join(_passage(rng, rng.randint(1, 4), 0.2))
    return Conversation((_prompt(rng),), body, ((start, start + core_length(kind, item)),), kind)


def benign(seed: int, index: int) -> Conversation:
    """Even indices: ordinary prose; odd ones: numbers, codes, names and talk that only look like a disclosure."""
    rng = Random(f"held out/benign/{seed}/{index}")
    if index % 2 == 0:
        parts, kind = _passage(rng, rng.randint(3, 5), 0.0) + _passage(rng, rng.randint(0, 3), 0.0), "plain"
    else:
        near = [_fill(rng, rng.choice(text.NEAR_MISSES), _name(rng)[2]) for _ in range(rng.randint(2, 4))]
        parts, kind = _passage(rng, rng.randint(1, 3), 0.0) + near + _passage(rng, rng.randint(0, 2), 0.0), "near miss"
    return Conversation((_prompt(rng),), rng.choice([" ", " ", "\n"]).join(parts), (), kind)


def with_ending(seed: int, index: int) -> Conversation:
    """The same poisoned conversation, closed by a reassuring ending."""
    rng = Random(f"held out/ending/{seed}/{index}")
    base = poisoned(seed, index)
    return Conversation(base.turns, f"{base.response} {rng.choice(text.REASSURING_ENDINGS)}", base.items, base.kind)
