"""Ways to say that a value is somebody's contact, put together from parts, and the same words without a value."""

from __future__ import annotations

from random import Random

from training.listing import items
from training.private_items import KINDS

_LABELS = {
    "phone": items("""
phone|phone number|number|mobile|mobile number|cell|cell phone|telephone|telephone number|landline|home phone
direct line|handset|extension|private number|work phone|contact number|second phone
"""),
    "email": items("""
email|e-mail|email address|e-mail address|mail|mail address|inbox|mailbox|account|private mail|work mail|contact address
"""),
    "address": items("""
address|home address|house|home|flat|place|apartment|cottage|postal address|street address|room|new home
house number and street|family home|studio
"""),
    "password": items("""
password|password|password|login password|wifi password|passcode|account password|password for the {noun}
password of the {noun}|mail password|laptop password|pass phrase|computer password|admin password|old password
"""),
}
_REACH = {
    "phone": items("""
call|phone|ring|ring up|text|speak to|speak with|talk to|get|contact|reach|check with|dial|get through to|give a call to
have a word with|leave a message for|send a text to|chat with|wake|catch|consult
"""),
    "email": items("""
email|mail|write to|message|contact|reach|send a note to|send the {noun} to|reply to|ask|get in touch with
forward the {noun} to|share the {noun} with|send pictures to|report to
"""),
    "address": items("""
visit|find|meet|see|drop in on|send a parcel to|deliver the {noun} to|collect the {noun} from|write a letter to|surprise
send flowers to|fetch|take the {noun} to|have tea with|bring the {noun} back to|look for
"""),
    "password": items("""
log in as|sign in as|open the account of|unlock the phone of|get into the mail of|read the files of|open the laptop of
use the wifi of|enter the account of|start the computer of|see the photos of|open the {noun} of
"""),
}
_LINKS = {
    "phone": ["on", "at", "under", "via", "using", "through", "by phone on", "by dialling", ":", "-"],
    "email": ["at", "under", "via", "using", "through", "by mail at", "by e-mail:", "by writing to", ":", "-"],
    "address": ["at", "in", "at home,", "at home in", "up at", "down at", "outside", "by going to", ":", "-"],
    "password": ["with the password", "using the password", "by typing the password", "with password", "- password:"],
}
_DOES = {
    "phone": items("""
answers calls on|is free to talk on|responds to|wants to be called on|receives texts at|can be heard on|has the phone
is on the phone at|returns messages left on|is best called on|has always had the number|dials out from|can be phoned at
was last called on|waits for calls on|lists|changed the number to|phoned from|speaks to customers on|now has
"""),
    "email": items("""
answers mail at|responds to|wants the {noun} sent to|receives letters at|opens|looks every day at|has always had
answers whatever goes to|subscribed with|is best written to at|has moved to|uses|sends from|lists|now has|wrote from
"""),
    "address": items("""
lives in|lives at|is living at|resides at|is at home in|rents a flat in|owns|has settled at|has a place at
bought|moved into
moved out of|stays with a friend at|is staying at|keeps the {noun} at|sleeps at|spends the week at|grew up in|lists
receives post at|shares|rents|runs a workshop from home at|was born in|returned to|now has
"""),
    "password": items("""
logs in with the password|has the password|chose the password|keeps the password|changed the password to
still has the password|typed the password|opens it with the password
told everyone the password|locks the {noun} with the password|needs the password|saved the password
"""),
}
_GAVE = items("""
gave me|left|wrote down|handed out|shared|showed us|spelled out|confirmed|read out|printed|dictated|mentioned
posted|typed
gives everyone|put on the {noun}|sent round|kept|has had for years|has used since {year}|prefers|registered|sent me
""")
_WHEN = items("""
the {noun} is {adj}|you {verb} the {noun}|it gets late|nothing else helps|{people} {verbd} the {noun}|you are in {place}
there is a problem|you have a question|you need the {noun}|you want to {verb} the {noun}|it is urgent|the {noun} breaks
""")
_AFTER = items("""
today|now|these days|as far as I know|since {year}|on {weekday}|, I think|most days|after {time}|, if you like
and {verb} the {noun}|because of the {noun}|, {adv}|for the {noun}|in the evening|at any time|before {people} {verb3} it
""")
_THING_VERBS = items("""
is {adj}|was {verbd} by {people}|{verb3} the {noun}|is not known|has changed|stays private|is on the {noun}
is out of order
was never written down|is none of my business|costs {money} a month|has {n} {nouns}|is older than {n} years
was lost in {year}
""")
_HARMLESS_ENDS = items("""
in {place}|after {time}|on {weekday}|in the {noun}|at the {noun}|through the {noun}|by bus|before lunch
in {n} {unit}|{adv}
near {street}|on {date}|at {time}|during the {noun}|with a {noun}|behind the {noun}|on the {street} side
as soon as possible
via the {noun}|in person|within {n} days
""")
_NUMBERED = items("""
order|gate|locker|shelf|crate|file|ticket|seat|exhibit|patent|flight|receipt|item|part|build|release|bottle|cable|key
case|route|form|permit|shipment|parcel|card|sample|train|model|serial|drawer|sensor|claim|vehicle|pixel|protein|star
number|code|reference|article|section|verse|chapter|frame|engine|asset|badge|member|record|recipe|puzzle|policy|contract
""")
_NUMBER_FRAMES = items("""
{t} {code} {verb3} the {noun}.|{T} {code} is {adj}.|The {noun} {verb3} {t} {code} {adv}.
{T} {code} and {t} {code} are {adj}.
{T}: {code}|{T} no. {code}|{T} number {code} was {verbd}.|The {t} is {code}.|({t} {code})
{name} {verbd} {t} {code} in {year}.
With {t} {code} you can {verb} the {noun}.|{People} {verbd} {t} {code} near the {noun}.|{T} {code}: {n} {nouns}, {money}
{Verb} {t} {code} and {verb} the {noun}.|The {adj} {t}, {code}, {verb3} {nouns}.|{T} {code} ({adj}, {money}, {date})
{name} {verbd} the {noun} in {clock}.|The {noun} of {name} has {t} {code}.|{code}, {code} and {code} are {nouns}.
{n}.{n} {u} of {noun} and {n}.{d} {u} of {noun}|{N}:{n}:{d} is the {abs} of the {noun}.
{Noun} {l}{d} to {l}{d}, {noun} {l}{n}x{l}{d}
{Noun} {v} needs {noun} {v}.|{l}{l} {N}, {l}{l} {N} and {l} {n}|{d} {n} {N} {big}|{N}.{n} {verb3} {N}.{d}
{noun}_{d} = {code}
{street} {verb3} {n} {nouns}.|The {noun} on {street} {verb3} {n} {nouns}.
{People} {verbd} {N} {nouns} on {street} in {year}.
The {noun} opens at {time} on {street}.|{N} {nouns} of {street} are {adj}.|{name} {verbd} the {noun} on {street}.
""")


def told(rng: Random, kind: str) -> str:
    """A frame with ``{name}`` and ``{item}`` in which the words around the value say whose it is and what for."""
    label, reach, does = rng.choice(_LABELS[kind]), rng.choice(_REACH[kind]), rng.choice(_DOES[kind])
    link, gave, when, what = (rng.choice(part) for part in (_LINKS[kind], _GAVE, _WHEN, _THING_VERBS))
    link = link if link.startswith(":") else f" {link}"
    after = rng.choice(_AFTER) if rng.random() < 0.5 else ""
    after = f" {after}" if after and not after.startswith(",") else after
    frames = [
        f"{{name}} {does} {{item}}{after}.",
        f"{{Name}} {{adv}} {does} {{item}}{after}.",
        f"When {when}, {{name}} {does} {{item}}{after}.",
        f"{{name}}, who {does} {{item}}, {{verbd}} the {{noun}}.",
        f"{reach.capitalize()} {{name}}{link} {{item}}{after}.",
        f"If {when}, {reach} {{name}}{link} {{item}}{after}.",
        f"You can {{adv}} {reach} {{name}}{link} {{item}}{after}.",
        f"{{People}} {{verbd}} the {{noun}} and could {reach} {{name}}{link} {{item}}.",
        f"To {reach} {{name}}, {rng.choice(_use(kind))} {{item}}{after}.",
        f"{rng.choice(_use(kind)).capitalize()} {{item}} to {reach} {{name}}{after}.",
        f"{{item}} is what you {rng.choice(_use(kind))} to {reach} {{name}}.",
        f"{{name}}, whose {label} is {{item}}, {{verbd}} the {{noun}}.",
        f"When {when}, ask {{name}}, whose {label} is {{item}}{after}.",
        f"{{name}}'s {label}, {{item}}, {what}.",
        f"The {label} of {{name}} ({{item}}) {what}.",
        f"The {label} that {{name}} {gave} is {{item}}{after}.",
        f"The {{adj}} {label} {{name}} {gave} was {{item}}.",
        f"{{name}} {gave} this {label}{after}: {{item}}.",
        f"{{name}} {gave} a {label}, {{item}}{after}.",
        f"There is also {{name}}'s {label}: {{item}}.",
        f"{{item}} was {{verbd}} as the {label} of {{name}}{after}.",
        f"{{item}}, {{name}}'s {{adj}} {label}, {what}.",
        f"In the {{noun}} {{people}} found the {label} of {{name}}, {{item}}.",
        f"For the {{noun}} {{name}} {gave} {{item}} as the {label}.",
        f"{label.capitalize()} of {{name}}: {{item}}",
        f"{{name}} - {label} {{item}}",
    ]
    return rng.choice(frames)


def _use(kind: str) -> list[str]:
    return {
        "phone": ["dial", "call", "ring", "use the number", "try the number", "phone"],
        "email": ["write to", "use", "use the address", "send mail to", "try", "mail"],
        "address": ["go to", "drive to", "walk to", "come to", "knock at", "ring the bell at", "look at"],
        "password": ["use the password", "type the password", "enter the password", "try the password"],
    }[kind]


def not_told(rng: Random) -> str:
    """A frame with the words of ``told`` or with numbers, in which no contact is given."""
    if rng.random() < 0.45:
        thing = rng.choice(_NUMBERED) if rng.random() < 0.5 else "{noun}"
        return rng.choice(_NUMBER_FRAMES).replace("{t}", thing).replace("{T}", thing.title())
    kind = rng.choice(KINDS)
    label, reach = rng.choice(_LABELS[kind]), rng.choice(_REACH[kind])
    gave, when, what, end = (rng.choice(part) for part in (_GAVE, _WHEN, _THING_VERBS, _HARMLESS_ENDS))
    frames = [
        f"{{name}}'s {label} {what}.",
        f"The {label} of {{name}} {what}.",
        f"{{name}}, whose {label} {what}, {{verbd}} the {{noun}}.",
        f"The {label} that {{name}} {gave} {what}.",
        f"{{name}} {gave} the {label} and {{verbd}} the {{noun}}.",
        f"{{name}} {gave} a {{adj}} {label} {end}.",
        f"{reach.capitalize()} {{name}} {end}.",
        f"If {when}, {reach} {{name}} {end}.",
        f"When {when}, {{name}} can {reach} {{people}} {end}.",
        f"To {reach} {{name}}, {{verb}} the {{noun}} {end}.",
        f"You can {{adv}} {reach} {{name}} {end}.",
        f"{{People}} tried to {reach} {{name}} {end}.",
        f"{{name}} did not {reach} {{people}} {end}.",
        f"{{name}} lives {end}.",
        f"{{name}} lived with {{n}} {{nouns}} {end}.",
        f"No {label} is needed to {{verb}} the {{noun}} {end}.",
        f"A {{adj}} {label} {what}.",
        f"Every {label} needs a {{noun}}, said {{people}}.",
        f"{{Verb}} your own {label} {end}.",
        f"I do not know the {label} of {{name}}.",
        f"I would rather not {reach} {{name}} {end}.",
        f"Somebody should {reach} {{people}} about the {{noun}}.",
        f"The {label} and the {{noun}} {what}.",
        f"{label.capitalize()}s such as {{nouns}} or {{nouns}} are {{adj}}.",
        f"{label.capitalize()}: {{adj}}",
        f"{label.capitalize()}: {{P}}",
        f"{{name}}'s {label} is {{P}}.",
    ]
    return rng.choice(frames)
