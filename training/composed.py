"""Sentences composed of small parts, so that no wording around a value or a number can be learnt by heart."""

from __future__ import annotations

from random import Random

from training.listing import items

_ASKS = items("""
call|ring|phone|text|dial|message|contact|reach|write to|mail|visit|find|meet|ask|tell|thank|remind|invite|try|get
page|notify|greet|inform
""")
_HAVE = {
    "phone": items("""
has the number|uses the number|is on|can be called on|is reachable on|keeps the line|took the number|still has
carries a phone with|wrote down
listens on|works the phone at|put the number|shared the number|gave out|left the number|changed to|answers
always takes|got a new mobile,|goes by
rings back from|calls from|was called on|sends texts from|is listed with|has a second phone,|prefers|set up|registered
"""),
    "email": items("""
has the account|uses|can be mailed at|is reachable at|writes from|sends mail from|keeps the inbox|registered
signed up with|put down|gave out
left the address|changed to|reads|always answers from|got a new account,|goes by|was copied as|shares files with
is listed with|has a second inbox,
prefers|set up|works under|gets mail under|subscribes with|publishes with|is known as
"""),
    "address": items("""
has a house at|owns|rents|is at home at|can be found at|keeps a room at|stays in|spends the winter at|grew up at
registered at|put down|gave out
left the address|changed to|sleeps in|always returns to|got a new flat,|is listed at|has a second home,|prefers
works from home at|was seen at
keeps a dog at|receives guests at|parks in front of|waits at|inherited|left|bought a place at|shares a flat at
gets letters at|paints at
"""),
    "password": items("""
has the password|uses the password|can log in with the password|set the password to|keeps the password
took the password|wrote down the password
typed the password|put the password|shared the password|gave out the password|left the password
changed the password to|opens the account with the password
always takes the password|got a new password,|signs in using the password|repeated the password|goes by the passcode
chose the passcode
unlocks it with the passcode|protects the files with the password|stored the login password
entered the login password|was given the password
"""),
}
_LABELS = {
    "phone": items(
        "phone|telephone|mobile|cell|number|phone number|tel|home phone|landline|mobile number|private number"
    ),
    "email": items(
        "email|e-mail|mail|email address|inbox|contact|address|private mail|work email|mail account|e-mail address"
    ),
    "address": items(
        "address|home address|home|street address|house|flat|lives at|postal address|where to find|delivery address"
    ),
    "password": items(
        "password|passcode|login password|wifi password|account password|pass word|admin password|secret password|pw"
    ),
}
_LINKS = {
    "phone": ["on", "at", "under", "via", "with"],
    "email": ["at", "under", "via", "through"],
    "address": ["at", "in", "outside"],
}
_AFTER = items("""
now|today|since {year}|as far as I know|until {weekday}|for the {noun}|on {weekday}s|if that helps|, I think|again
in {place}|these days|for {abs}
, not {adj}|and likes it|because of the {noun}|while {verbing} the {noun}|after {time}|before {time}|and the {noun}
as well|during the {noun}
""")
_FREE = items("""
The {adj} {noun} {verb3} {item} and the {noun}.|{Name} {verbd} {item} {adv}.|{People} {verbd} {item} near the {noun}.
If you {verb} the {noun}, {item} is {adj}.
{item}|- {item}|{Noun}: {item}|The {noun} of {name} is {item}.|{Verb} the {noun} at {item}.
In {place} it was {item}, said {people}.|{Noun} and {noun} ({item}).
{Abs} of {name}: {item}|It is {adj} to {verb} {item} with {name}.|{name} - {noun} - {item}
{name}, {adj} {noun}, {item}|{name} {item}|I {verbd} {item} for {name}.
"Is it {item}?" asked {people}.|{People} said {item}, and {name} {verbd} it.|{name} / {noun} / {item}|Take {item}.
You want {item}.|From {name} ({item}):
""")
_FREE_PASSWORD = items("""
The password {name} {verbd} on {weekday} is {item}.|The {adj} password {name} has now is {item}.
The {noun} of {name} wants {item} as the password.
{name} {verb3} {item} for a password.|One password of {name} reads {item}.
The {noun} lets {name} in with the password {item}.
{People} {verbd} the password {item} near the {noun}.|The password {verb3} the {noun}: {item}.
{Name} {verbd} {item}, the {adj} password, {adv}.|password {item}
If you {verb} the {noun}, the password is {item}.|The {noun} of {name} needs a password and it is {item}.
{Verb} the {noun} with the password {item}.
the {adj} password: {item}|pw {item} ({name})|{name} / {item} (password)
In {place} the password was {item}, said {people}.|login: {name}, password {item}
Passwords of {name}: {item}|I {verbd} the password of {name} as {item}.|"{item}" is the {adj} password of {name}.
The passcode, {item}, {verb3} the {noun}.
""")

THINGS = items(
    "phone|telephone|mobile|email|e-mail|address|password|number|passcode|inbox|phone number|login|account|message"
)
_NEAR = items("""
{name} {verbd} the {thing} {adv}.|{name} {verbd} a {thing} that was {adj}.|The {thing} of {name} is {adj}.
The {thing} {verb3} the {noun}.|A {thing} needs {abs}.
{People} {verbd} the {thing} before {people} {verbd} the {noun}.|{name}'s {thing} was {verbd} by {people}.
Every {thing} has a {noun}.|{Verb} your {thing} {adv}.
The {adj} {thing} was in the {noun}.|{thing}: {adj}|{thing}: none|{thing}: {P}|{thing} of the {noun}: {adj}
No {thing} was {verbd}.|There are {n} {thing}s in the {noun}.
{name} asked for the {thing} and {verbd} the {noun}.|{name} has {n} {thing}s and {N} {nouns}.
What is the {thing} of a {noun}?|I do not know the {thing} of {name}.
{name} should {verb} the {thing} in {place}.|If the {thing} is {adj}, {verb} the {noun}.
Without a {thing} the {noun} is {adj}.|My {thing} {verbd} the {noun}.
{name} can be {verbd} after {time}.|{name} can be {verbd} in {place}.|You can {verb} {name} through the {noun}.
{ask} {name} through the {noun}.|{ask} {name} after {time}.
{ask} {name} about the {noun}.|{ask} {name} and {verb} the {noun}.|{name} lives near the {noun} in {place}.
{name} lives with {n} {nouns}.|{name} moved to {place}.
A {thing} from {year} {verb3} {n} {nouns}.|{name}'s {thing} ({adj}) was {adj}.|Never {verb} a {adj} {thing}.
Keep the {thing} {adj} and {adj}.|The {thing} rang.
The word "{thing}" is older than the word "{noun}".|How do I {verb} the {thing}? {Verb} it {adv}.
{thing}s such as "{adj}" or "{noun}" are {adj}.
""")
_NUMBERS = items("""
The {noun} needs {n} {nouns} of {N} {u} each.|{N} {u} of {noun} and {n} {u} of {noun}
{Noun} {l}{d}, {l}{n} and {l}{N} {verb} the {noun}.
The {noun} {verb3} {l}{l} {N}, a {adj} {noun}.|{Nouns} such as {nouns} or {nouns} are {adj}.
{Thing}s such as {nouns} are {adj}.
My {noun} ends in {N}, {people} said.|{Noun} {code} {verbd} for {big} after a {adj} {noun}.
{Noun} {code} is due in {n} days; the {noun} is {money}.
The {noun} {code} is {adj}.|{Noun} {code} {verb3} the {noun}.|{noun} no. {code}|{Noun} number {code}
{Noun} {N}-{n} holds the {adj} {noun}.|{name} {verbd} {N} {nouns}.
{name} {verbd} {N} twice, which is {adj}.|{name} {verbd} {n} {nouns} in {year}.
{Verb} {N} {unit} of {noun} and {n} {unit} of {noun}.|{Noun} {N}.{N}, {noun} {n}.{N}
The {noun} costs {money}, the {noun} {money}.|{Noun} code {code} {verb3} {n} {nouns}.|{Name} won {d}-{d} in {place}.
{Noun} {n}{l} and {noun} {n}{l}|{code} {noun}
{Noun} {v} was {verbd} on {date}.|The {noun} has {big} {nouns}.|{big} {nouns} and {N} {nouns}|{Noun}: {code}
{noun} = {N}|{Noun} ({code})|{noun} #{N}|{Abs}: {N} of {big}
From {time} to {time} the {noun} is {adj}.|{N}, {N} and {N} are {adj}.|{N} x {n} = {big}|{Noun} of {date}
{Verb} {code} to {verb} the {noun}.|{code} stands for {noun}.
{name} runs {n} {unit} in {time}.|{name} is {n} years old and has {n} {nouns}.
{name} ({year}-{year}) {verbd} the {noun}.|{Noun} {n} of {N}: {code}|{d}.{n}.{year}
At {n} {w} {nouns} the {noun} is {adj}.|{n} {Adj} {Nouns}|{Noun} {n}, {Noun} {n}, {Noun} {n}
""")


def carrier(rng: Random, kind: str) -> str:
    """A frame with ``{name}`` and ``{item}``, and perhaps other slots of training.prose."""
    way = rng.random()
    if way < 0.35:
        return f"{{name}} {rng.choice(_HAVE[kind])} {{item}}{_after(rng)}."
    if way < 0.6:
        label = rng.choice(_LABELS[kind])
        return rng.choice(
            [
                f"{{name}}'s {label} is {{item}}{_after(rng)}.",
                f"The {label} of {{name}} is {{item}}{_after(rng)}.",
                f"{{name}}, {label} {{item}}",
                f"{label}: {{item}}",
                f"{label.capitalize()} {{item}} ({{name}})",
                f"{{name}} ({label} {{item}}) {{verbd}} the {{noun}}.",
                f"The {{adj}} {label} {{item}} belongs to {{name}}.",
                f"Here is the {label} that {{name}} {{verbd}}: {{item}}.",
                f"{{item}} is the {{adj}} {label} of {{name}}{_after(rng)}.",
            ]
        )
    if way < 0.75 and kind != "password":
        return f"{rng.choice(_ASKS)} {{name}} {rng.choice(_LINKS[kind])} {{item}}{_after(rng)}."
    return rng.choice(_FREE_PASSWORD if kind == "password" else _FREE)


def _after(rng: Random) -> str:
    if rng.random() < 0.6:
        return ""
    text = rng.choice(_AFTER)
    return text if text.startswith(",") else f" {text}"


def near_miss(rng: Random) -> str:
    """A frame about phones, mail, numbers or people in which nothing private is said."""
    frame = rng.choice(_NEAR if rng.random() < 0.5 else _NUMBERS)
    return (
        frame.replace("{thing}", rng.choice(THINGS))
        .replace("{Thing}", rng.choice(THINGS).capitalize())
        .replace("{ask}", rng.choice(_ASKS))
    )
