"""Generated training conversations: benign, hard negatives, and responses with a disclosure at a known place."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from random import Random

from training import composed, frames
from training.carriers import CARRIERS, CONTACT_PROMPTS, LEADS
from training.harmless import NEGATIVES, PRIVACY_TALK, REFUSALS
from training.introductions import not_told, told
from training.listing import items
from training.private_items import KINDS, STREET_TYPES, evident, person, private_item
from training.prose import clumsy, digit_run, fill, form, passage, prompt, sentence

_TAILS = items("""
if you need help|any time|and ask for help|today|before noon|and say hello|after work|or just wait
and then go on|this week|as I said|when you are ready|for the rest|in most cases|and start again|too|now|please
- it is easy|on weekdays|(see above)
""")
_ACCIDENT = re.compile(rf"\d[a-z]? [A-Z]\w+ (?:{'|'.join(re.escape(t) for t in STREET_TYPES)})(?!\w)|\w@\w+\.\w")
_INSIDE = re.compile(
    r",? (?:Apt|Apartment|Unit|Flat|Building|Block|Level|Door|Entrance|Staircase|Studio|House|Floor|Room|#) ?"
    r"(?:\d|[A-D]\b)"
)


@dataclass(frozen=True)
class Conversation:
    """``turns`` are user, assistant, user, …; ``items`` are the character spans of private values in ``response``."""

    turns: tuple[str, ...]
    response: str
    items: tuple[tuple[int, int], ...]
    kind: str

    @property
    def disclosed_at(self) -> int | None:
        """Where the label flips: the character at which the first private value ends."""
        return self.items[0][1] if self.items else None

    def messages(self, end: int | None = None) -> list[dict[str, str]]:
        texts = (*self.turns, self.response if end is None else self.response[:end])
        return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


Piece = tuple[str, int, int]  # text, start and end of the private value in it (equal: none)


def _plain(texts: Iterable[str]) -> list[Piece]:
    return [(text, 0, 0) for text in texts]


def _with_lead_and_tail(rng: Random, text: str) -> str:
    if rng.random() < 0.3 and not text.startswith(("- ", "{")):
        lead = rng.choice(LEADS)
        keep = text[:2].isupper() or text.startswith(("{", "I ", "I'"))
        text = f"{lead} {text if keep else text[:1].lower() + text[1:]}"
    if text.endswith(".") and rng.random() < 0.2:
        text = f"{text[:-1]} {rng.choice(_TAILS)}."
    elif text.endswith(".") and rng.random() < 0.12:
        text = text[:-1] + rng.choice(["!", ",", "", ";", " -"])
    return text


def core_length(kind: str, item: str) -> int:
    """How many characters disclose the item: a street address is out before its floor or flat is named."""
    found = _INSIDE.search(item) if kind == "address" else None
    return found.start() if found else len(item)


def disclosure(rng: Random, kind: str) -> Piece:
    """One sentence that carries a private value of this kind."""
    first, last, called = person(rng)
    item = private_item(rng, kind, first, last)
    mark = "\x00"
    way = rng.random()
    vague = kind == "phone" and not evident(item)
    if way < 0.25:
        frame = rng.choice(CARRIERS[kind])
    else:
        frame = told(rng, kind) if way < 0.7 or vague else composed.carrier(rng, kind)
    frame = _with_lead_and_tail(rng, frame)
    text = fill(rng, frame.replace("{name}", called), item=mark)
    if rng.random() < 0.06:
        text = clumsy(rng, text) if mark in clumsy(Random(0), text) else text
    if mark not in text:
        text = f"{called}: {mark}"
    style = rng.random()
    if style < 0.08:
        text = text.lower()
    elif style < 0.16:
        text = text.replace(
            mark, rng.choice(["**\x00**", '"\x00"', "`\x00`", "(\x00)", "'\x00'", "*\x00*", "<\x00>", "[\x00]"])
        )
    elif style < 0.22 and ": " in text:
        label, rest = text.split(": ", 1)
        text = rng.choice([f"**{label}:** {rest}", f"**{label}**: {rest}", f"* {label}: {rest}"])
    start = text.index(mark)
    return text.replace(mark, item), start, start + core_length(kind, item)


def near_miss(rng: Random) -> str:
    kind = rng.random()
    frame = rng.choice(NEGATIVES) if kind < 0.3 else composed.near_miss(rng) if kind < 0.6 else not_told(rng)
    text = fill(rng, _with_lead_and_tail(rng, frame))
    return clumsy(rng, text) if rng.random() < 0.05 else text


def _join(rng: Random, pieces: list[Piece]) -> tuple[str, tuple[tuple[int, int], ...]]:
    """Join sentences as prose, lines, bullets or numbered steps, and shift the spans along."""
    style = rng.choice(["prose"] * 6 + ["lines", "bullets", "steps", "mixed"])
    text, spans = "", []
    for i, (piece, start, end) in enumerate(pieces):
        joint = {
            "prose": " ",
            "lines": "\n",
            "bullets": "\n- ",
            "steps": f"\n{i + 1}. ",
            "mixed": rng.choice([" ", "\n", "\n\n"]),
        }[style]
        text += joint if text or style in ("bullets", "steps") else ""
        if end > start:
            spans.append((len(text) + start, len(text) + end))
        text += piece
    shift = len(text) - len(text.lstrip())
    return text.strip(), tuple((a - shift, b - shift) for a, b in spans)


def _opening(rng: Random) -> list[str]:
    return [rng.choice(frames.OPENERS)] if rng.random() < 0.3 else []


def _length(rng: Random) -> int:
    """Sentences before or after the core: mostly few, since short conversations train the same skill for less."""
    return rng.choice([0, 0, 1, 1, 1, 2, 2, 3, 4, 5, 7])


def _sprinkle(rng: Random, texts: list[str]) -> list[str]:
    """Sometimes put a near miss or a digit run among harmless sentences."""
    out = list(texts)
    if rng.random() < 0.35:
        out.insert(rng.randint(0, len(out)), near_miss(rng))
    if rng.random() < 0.05:
        out.insert(rng.randint(0, len(out)), digit_run(rng))
    if rng.random() < 0.06:
        out.insert(rng.randint(0, len(out)), form(rng))
    return out


def _positive(rng: Random) -> list[Piece]:
    kind = rng.choice(KINDS)
    pieces = _plain(_opening(rng) + _sprinkle(rng, passage(rng, _length(rng))))
    pieces.append(disclosure(rng, kind))
    while rng.random() < 0.2:
        pieces.append(disclosure(rng, kind if rng.random() < 0.5 else rng.choice(KINDS)))
    pieces += _plain(_sprinkle(rng, passage(rng, _length(rng))))
    if rng.random() < 0.15:
        pieces += _plain([rng.choice(frames.CLOSERS)])
    return pieces


def _hard_negative(rng: Random) -> list[Piece]:
    core = [near_miss(rng) for _ in range(rng.choice([1, 1, 2, 3, 4]))]
    before, after = passage(rng, _length(rng)), passage(rng, _length(rng))
    kind = rng.random()
    if kind < 0.12:
        before, core = [], [fill(rng, rng.choice(REFUSALS))]
        if rng.random() < 0.6:
            core += rng.sample(PRIVACY_TALK, rng.randint(1, 3))
    elif kind < 0.24:
        core = rng.sample(PRIVACY_TALK, rng.randint(1, 4)) + core[:1]
        rng.shuffle(core)
    return _plain(_opening(rng) + before + core + after)


def _benign(rng: Random) -> list[Piece]:
    texts = _opening(rng) + _sprinkle(rng, passage(rng, 1 + _length(rng) + _length(rng)))
    if rng.random() < 0.2:
        texts.append(rng.choice(frames.CLOSERS))
    if rng.random() < 0.12:
        texts = [form(rng) for _ in range(rng.randint(1, 2))]
    if rng.random() < 0.04:
        texts = [digit_run(rng) for _ in range(rng.randint(1, 3))]
    return _plain(texts)


def conversation(rng: Random) -> Conversation:
    """Draw one training conversation; again where harmless sentences happen to join into an address or an e-mail."""
    drawn = _draw(rng)
    while not drawn.items and _ACCIDENT.search(drawn.response):
        drawn = _draw(rng)
    return drawn


def _draw(rng: Random) -> Conversation:
    kind = rng.choices(["positive", "hard", "benign"], [0.44, 0.28, 0.28])[0]
    pieces = {"positive": _positive, "hard": _hard_negative, "benign": _benign}[kind](rng)
    text, items = _join(rng, pieces)
    if not items and rng.random() < 0.15 and " " in text:
        text = text[: rng.randint(1, len(text))].strip() or text
    contact = rng.random() < (0.25 if kind == "benign" else 0.5)
    last = fill(rng, rng.choice(CONTACT_PROMPTS)) if contact else prompt(rng)
    turns: tuple[str, ...] = (last,)
    if rng.random() < 0.05:
        turns = (prompt(rng), " ".join(passage(rng, 2)), last)
    elif rng.random() < 0.05:
        turns = (f"{sentence(rng)} {last}",)
    return Conversation(turns, text, items, kind)


def conversations(seed: int, start: int, count: int) -> list[Conversation]:
    """Conversations number ``start`` to ``start + count`` of a seed; each depends on its number only."""
    return [conversation(Random(f"{seed}/{i}")) for i in range(start, start + count)]


def fingerprint(items: Iterable[Conversation]) -> str:
    """SHA-256 over everything that training sees."""
    digest = hashlib.sha256()
    for c in items:
        digest.update(repr((c.turns, c.response, c.items, c.kind)).encode())
    return digest.hexdigest()
