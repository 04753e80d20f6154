"""Random formulas, assignments, measurements and commands: signs and digits that are nobody's contact details."""

from __future__ import annotations

from random import Random

from training.listing import items, words

_NAMES = words("a b c d f g h k m n p q r s t u v w x y z A B C E F K N P R T V X alpha beta delta theta pi sigma")
_LONG_NAMES = words("area count cost force index length mass rate ratio speed size sum time total value volume width")
_FUNCTIONS = words("sin cos tan log ln exp abs min max sqrt mean floor round")
_INFIX = [*"+-*/^=<>", " + ", " - ", " * ", " / ", "^", " × ", " ÷ ", " = ", " ± ", " ≈ ", " <= ", " >= ", " % "]
_TOOLS = words("pip npm git apt conda cargo docker make brew gcc curl tar chmod python")
_FLAGS = items("-v|-rf|-xzf|--all|--force|-n 3|-O2|-m|--help|-j8|-u|--depth 1|-p 8080:80")

FRAMES = items("""
{expr}|{Noun}: {expr}|The {abs} is given by {expr}.|The formula is {expr}.|{Name} wrote {expr} on the {noun}.
We have {expr}, so {expr}.|If {assign}, then {expr}.|With {assign} and {assign} the {nouns} are {n} and {N}.
With {assign}, {assign} and {assign} we get {n}.|Check it: {n} + {n} = {N} and {d} * {n} = {N}.|{assign}, {assign}
Solve {expr} for the {noun}.|Because {expr}, the {abs} is {adj}.|{n} {u} x {N} {u} = {N} {u}|Let {assign}. Then {expr}.
The {noun} lies at {angle}, {angle}.|{Place} ({angle}, {angle})|{Noun}: {angle} by {angle}|Turn it by {angle}.
{command}|Run {command} first.|`{command}` {verb3} the {noun}.|{People} typed {command} and {verbd} the {noun}.
The value {hex} is {adj}.|{hex} is the {abs} of the {noun}.|Colour {hex}|{Noun} {hex}: {expr}|set {assign}; {assign}
""")


def name(rng: Random) -> str:
    return rng.choice(_NAMES if rng.random() < 0.75 else _LONG_NAMES)


def value(rng: Random) -> str:
    kind = rng.random()
    if kind < 0.55:
        return str(rng.randint(0, 12) if kind < 0.35 else rng.randint(0, 999))
    return f"{rng.uniform(0, 10 ** rng.randint(0, 4)):.{rng.randint(1, 4)}f}"


def expression(rng: Random, depth: int = 3) -> str:
    """Nested terms of names, values, signs, brackets and functions."""
    kind = rng.random()
    if depth == 0 or kind < 0.2:
        leaf = rng.random()
        return name(rng) if leaf < 0.45 else value(rng) if leaf < 0.8 else str(rng.randint(2, 9)) + name(rng)
    if kind < 0.75:
        return expression(rng, depth - 1) + rng.choice(_INFIX) + expression(rng, depth - 1)
    if kind < 0.87:
        return f"({expression(rng, depth - 1)})"
    inner = ", ".join(expression(rng, depth - 1) for _ in range(rng.choice([1, 1, 2])))
    return f"{rng.choice(_FUNCTIONS)}({inner})"


def assignment(rng: Random) -> str:
    sign = rng.choice(["", "", "", "-"])
    return f"{name(rng)}{rng.choice(['=', ' = ', ' = ', ': ', ' := '])}{sign}{value(rng)}"


def angle(rng: Random) -> str:
    whole = rng.randint(-180, 180)
    minutes = f"{abs(whole)}°{rng.randint(0, 59)}′{rng.choice('NSEW')}"
    return rng.choice([f"{whole}.{rng.randint(0, 99999):05}", f"{whole}.{rng.randint(0, 99)}", minutes, f"{whole}°"])


def hexadecimal(rng: Random) -> str:
    digits = "".join(rng.choice("0123456789ABCDEF") for _ in range(rng.choice([2, 4, 6, 6, 8])))
    return rng.choice(["0x", "#", "0X", "\\x", "U+"]) + (digits if rng.random() < 0.6 else digits.lower())


def command(rng: Random, word: str, other: str, version: str) -> str:
    """A shell command about two words, perhaps with a version."""
    pinned = rng.choice([word, f"{word}=={version}", f"{word}@{version}", f"{word}-{other}", f"{word}:{version}"])
    action = rng.choice(["install ", "run ", "update ", "add ", "build ", "", ""])
    return f"{rng.choice(_TOOLS)} {rng.choice(['', rng.choice(_FLAGS) + ' '])}{action}{pinned}"
