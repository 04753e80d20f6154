"""Generated harmless English: topic sentences, grammar frames, lists, numbers, and clumsy variants of them."""

from __future__ import annotations

import re
from collections.abc import Callable
from random import Random

from training import assistant_style as style
from training import formulas, frames
from training import words as word_lists
from training.harmless import PLACEHOLDERS
from training.listing import items, words
from training.private_items import (
    DOMAIN_WORDS,
    PASSWORD_WORDS,
    STREET_WORDS,
    address,
    composed_password,
    email,
    first_name,
    harmless_number,
    invented_word,
    last_name,
    pattern,
    person,
    phone,
    street,
    street_type,
)
from training.topics import TOPICS

_SLOT = re.compile(r"\{(\w+)\}")
_MONTHS = words("January February March April May June July August September October November December")
_CODES = items("""
#####|######|########|##########|#########|###-####|####-####|^^-####|^^^####|^^###|^##|#####-###
^^^-##-@@|@@#@@##|@#@@#@#
|^@@#@##|{w}##|{w}_##|{w}-##|{l}_{l}|{l}{l}##|{l}.txt|{l}_##.csv|{w}{w}|{l}-{l}|{l}.py|#@#@##|##^^##|^###^|{w} ##|{l}#
""")


def number(rng: Random) -> str:
    return str(rng.choice([rng.randint(2, 20), rng.randint(2, 99), rng.randint(10, 999), rng.randint(100, 9999)]))


def big_number(rng: Random) -> str:
    value = rng.randint(10_000, 99_999_999)
    return rng.choice([f"{value:,}", str(value), f"{value:,}".replace(",", " "), f"{value / 1e6:.2f} million"])


def date(rng: Random) -> str:
    day, month, year = rng.randint(1, 28), rng.randint(1, 12), rng.randint(1800, 2035)
    return rng.choice(
        [
            f"{day} {_MONTHS[month - 1]} {year}",
            f"{_MONTHS[month - 1]} {day}, {year}",
            f"{_MONTHS[month - 1]} {day}",
            f"{year}-{month:02}-{day:02}",
            f"{day:02}/{month:02}/{year}",
            f"{month}/{day}/{year % 100:02}",
            f"{day}.{month}.{year}",
        ]
    )


def clock(rng: Random) -> str:
    hour, minute = rng.randint(0, 23), rng.choice([0, 5, 15, 20, 30, 45, 50])
    return rng.choice(
        [f"{hour:02}:{minute:02}", f"{hour % 12 + 1}:{minute:02} pm", f"{hour % 12 + 1} am", f"{hour}.{minute:02}"]
    )


def money(rng: Random) -> str:
    value = rng.choice([rng.uniform(1, 30), rng.uniform(30, 2000), rng.uniform(2000, 900_000)])
    return rng.choice(
        [f"${value:,.2f}", f"{value:.2f} euros", f"€{value:.0f}", f"{value:,.0f} dollars", f"£{value:.2f}"]
    )


def harmless_code(rng: Random) -> str:
    kind = rng.random()
    if kind < 0.45:
        return harmless_number(rng) if kind < 0.3 else composed_password(rng)
    text = pattern(rng, rng.choice(_CODES))
    text = text.replace("{w}", rng.choice(PASSWORD_WORDS)).replace(
        "{l}", rng.choice([*DOMAIN_WORDS, invented_word(rng, 2)])
    )
    return text


def version(rng: Random) -> str:
    return ".".join(str(rng.randint(0, 30)) for _ in range(rng.choice([2, 3, 3])))


def noun(rng: Random) -> str:
    kind = rng.random()
    if kind < 0.6:
        return rng.choice(word_lists.NOUNS)
    return rng.choice(style.LONG_NOUNS) if kind < 0.88 else invented_word(rng, rng.randint(1, 3))


def verb(rng: Random, form: int) -> str:
    if rng.random() < 0.04:
        return invented_word(rng, rng.randint(1, 2)) + ("", "s", "ed", "ing")[form]
    return rng.choice(word_lists.VERBS if rng.random() < 0.7 else style.LONG_VERBS)[form]


def adjective(rng: Random) -> str:
    if rng.random() < 0.05:
        return invented_word(rng, rng.randint(1, 3)) + rng.choice(["", "y", "al", "ish", "ous"])
    return rng.choice(word_lists.ADJECTIVES if rng.random() < 0.6 else style.LONG_ADJECTIVES)


_FILL: dict[str, Callable[[Random], str]] = {
    "noun": noun,
    "nouns": lambda r: noun(r) + "s",
    "odd": lambda r: invented_word(r, r.randint(1, 4)),
    "sym": lambda r: r.choice("@#$%&*+=<>/|^~!?"),
    "s": lambda r: sentence(r),
    "abs": lambda r: r.choice(word_lists.ABSTRACT if r.random() < 0.5 else style.LONG_NOUNS),
    "adj": adjective,
    "adv": lambda r: r.choice(word_lists.ADVERBS),
    "verb": lambda r: verb(r, 0),
    "verb3": lambda r: verb(r, 1),
    "verbd": lambda r: verb(r, 2),
    "verbing": lambda r: verb(r, 3),
    "people": lambda r: r.choice(word_lists.PEOPLE) if r.random() < 0.85 else person(r)[2],
    "subject": lambda r: r.choice(word_lists.SUBJECTS),
    "place": lambda r: r.choice(word_lists.PLACES),
    "unit": lambda r: r.choice(word_lists.UNITS),
    "u": lambda r: r.choice(words("g kg mg ml l cm mm m km kcal W V h min s dB px MB GB")),
    "year": lambda r: str(r.randint(1500, 2035)),
    "d": lambda r: str(r.randint(1, 9)),
    "n": lambda r: str(r.randint(2, 60)),
    "l": lambda r: r.choice("ABCDEFGHKLMNPRSTVXZ"),
    "N": number,
    "big": big_number,
    "weekday": lambda r: r.choice(words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")),
    "date": date,
    "time": clock,
    "money": money,
    "code": harmless_code,
    "v": version,
    "expr": formulas.expression,
    "assign": formulas.assignment,
    "angle": formulas.angle,
    "hex": formulas.hexadecimal,
    "command": lambda r: formulas.command(r, noun(r), noun(r), version(r)),
    "w": lambda r: r.choice(STREET_WORDS),
    "street": lambda r: f"{street(r)} {street_type(r)}",
    "clock": lambda r: f"{r.randint(0, 23)}:{r.randint(0, 59):02}:{r.randint(0, 59):02}",
    "P": lambda r: r.choice(PLACEHOLDERS),
    "name": lambda r: person(r)[2],
    "email": lambda r: email(r, first_name(r), last_name(r)),
    "phone": phone,
    "address": address,
}


def fill(rng: Random, frame: str, **given: str) -> str:
    """Fill the slots of a frame; a capitalised slot name capitalises what is put in."""

    def one(match: re.Match[str]) -> str:
        slot = match.group(1)
        if slot in given:
            return given[slot]
        if slot in _FILL:
            return _FILL[slot](rng)
        text = _FILL[slot.lower()](rng)
        return text[:1].upper() + text[1:]

    return _SLOT.sub(one, frame).replace(",,", ",").replace(",'s", "'s").replace(",.", ".")


def assistant_text(rng: Random) -> list[str]:
    """A few pieces as chat assistants write them: stock phrases, headings, bold bullets, letters, code."""
    kind = rng.random()
    if kind < 0.4:
        return [fill(rng, rng.choice(style.STOCK)) for _ in range(rng.randint(1, 4))]
    if kind < 0.75:
        mark, bullet = rng.choice(["* ", "- ", "1. ", "• ", ""]), rng.choice(style.BULLETS)
        rows = []
        for i in range(rng.randint(2, 5)):
            frame = bullet if rng.random() < 0.7 else rng.choice(style.BULLETS)
            rows.append((f"{i + 1}. " if mark == "1. " else mark) + fill(rng, frame))
        head = [fill(rng, rng.choice(style.HEADINGS))] if rng.random() < 0.5 else []
        return ["\n".join([*head, *rows])]
    if kind < 0.87:
        return [fill(rng, rng.choice(style.CODE)).replace("\\n", "\n"), fill(rng, rng.choice(style.STOCK))]
    body = [fill(rng, rng.choice(style.STOCK)) for _ in range(rng.randint(1, 2))]
    return [
        "\n\n".join([fill(rng, style.LETTERS[rng.randrange(6)]), *body, fill(rng, style.LETTERS[rng.randrange(6, 12)])])
    ]


def form(rng: Random) -> str:
    """A few ``field: value`` entries, as a structured answer has them."""
    joint = rng.choice([". ", ". ", "\n", ", ", "; ", " | "])
    entries = joint.join(fill(rng, f) for f in rng.sample(frames.FIELDS, rng.randint(2, 6)))
    return (
        entries + ("." if joint == ". " else "") + (f" {rng.choice(frames.FIELD_ENDS)}" if rng.random() < 0.4 else "")
    )


def sentence(rng: Random) -> str:
    return fill(rng, rng.choice(frames.SENTENCES))


def digit_run(rng: Random) -> str:
    """Runs of digits such as weak language models write."""
    start, step, count = rng.randint(0, 20), rng.choice([0, 1, 1, 1, 2, 5, 10]), rng.randint(4, 25)
    values = [str(start + step * i) for i in range(count)]
    if rng.random() < 0.3:
        values = [rng.choice("0123456789") for _ in range(count)]
    return rng.choice([" ", ", ", " ", "\n", ". "]).join(values)


def clumsy(rng: Random, text: str) -> str:
    """Drop, repeat, swap or misspell a few words."""
    parts = text.split(" ")
    for _ in range(rng.randint(1, 3)):
        i, kind = rng.randrange(len(parts)), rng.random()
        if kind < 0.25 and len(parts) > 2:
            del parts[i]
        elif kind < 0.45:
            parts.insert(i, parts[i])
        elif kind < 0.6:
            parts[i] = rng.choice(word_lists.NOUNS + word_lists.ABSTRACT)
        elif kind < 0.75:
            parts[i] = invented_word(rng, rng.randint(1, 3))
        elif len(parts[i]) > 3:
            j = rng.randrange(len(parts[i]) - 1)
            parts[i] = parts[i][:j] + parts[i][j + 1] + parts[i][j] + parts[i][j + 2 :]
    return " ".join(parts)


def passage(rng: Random, count: int) -> list[str]:
    """``count`` harmless sentences: one topic, generated prose, or a mixture of both."""
    mix = rng.choice([0.0, 0.2, 0.5, 1.0])
    prompts_and_sentences = rng.choice(TOPICS)
    own = list(prompts_and_sentences[1])
    if rng.random() < 0.4:
        rng.shuffle(own)
    out: list[str] = []
    assistant = rng.choice([0.0, 0.1, 0.5])
    while len(out) < count:
        if rng.random() < assistant:
            out += assistant_text(rng)
            continue
        if rng.random() < 0.05:
            text = fill(rng, rng.choice(formulas.FRAMES))
        elif rng.random() < mix or not own:
            text = sentence(rng) if rng.random() < 0.9 else fill(rng, rng.choice(rng.choice(TOPICS)[1]))
        else:
            text = fill(rng, own.pop(0))
        if rng.random() < 0.08:
            text = clumsy(rng, text)
        out.append(text)
    if out and rng.random() < 0.06:
        out.insert(rng.randrange(len(out)) + 1, rng.choice(out))
    return out


def prompt(rng: Random) -> str:
    frame = rng.choice(rng.choice(TOPICS)[0]) if rng.random() < 0.5 else rng.choice(frames.PROMPTS)
    text = fill(rng, frame)
    if rng.random() < 0.1:
        text += rng.choice(
            [
                " Please help.",
                " Do you have an idea?",
                " I am new to this.",
                " Keep it short.",
                " Thanks!",
                " What now?",
            ]
        )
    return clumsy(rng, text) if rng.random() < 0.05 else text
