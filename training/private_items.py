"""Invented people and invented private items for training: every digit, name and domain is drawn at random.

Patterns: ``#`` is a digit, ``%`` a digit from 2 to 9, ``@`` a lower-case letter, ``^`` an upper-case letter.
Numbers of North American shape use the exchange 555 or an area code that starts with 0 or 1, which is never given
out.
"""

from __future__ import annotations

import re
from random import Random

from training.listing import items, words

KINDS = ("phone", "email", "address", "password")
FIRST_NAMES = words("""
Abel Ada Adil Agnes Aiko Alba Aldo Alma Amara Amos Anouk Anton Arlo Asha Astrid Aurel Aya Bea Benno Bianca Boris
Brigid Bruno Callum Carla Cedric
Celia Chidi Clara Cora Cyrus Dagny Dalia Damian Daphne Dario Delia Derek Dina Dora Duncan Edda Edgar Elif Elias Elsa
Emeka Enid Enzo Erik
Esme Ethel Eva Ewan Farah Felix Fiona Flora Freya Gavin Gemma Gerda Gideon Gilda Gus Hana Harvey Hedda Helga Hiro
Hugo Ida Igor Ilse Imani
Ines Inga Iris Isla Ivan Ivo Jada Jaro Jonas Juno Kaito Kamal Kara Karl Keiko Kenji Kirsten Klaus Lars Leila Lena
Leon Liam Lina Lotte Lucia
Luca Mabel Magnus Maia Malik Marek Marta Mateo Maud Mei Milan Mina Mira Moira Nadia Naomi Nils Nina Noor Olaf Olga
Omar Opal Oscar Otto Paco
Paloma Pavel Petra Pia Priya Quentin Rafael Ravi Rhea Rosa Rowan Ruth Sana Saul Selma Sven Tariq Tessa Theo Thora
Tilda Tomas Uma Ursula Vera
Viktor Walt Wanda Wei Willa Xenia Yara Yusuf Zara Zeno
""")
LAST_NAMES = words("""
Abbot Achterberg Adeyemi Akintola Aldane Almquist Amberley Anzari Arkwright Ashdown Baldrick Bancroft Barleycorn
Bellweather Benedek Bergstrom
Blackthorn Bramwell Brightwater Brookfield Calloway Carrow Castellane Chandrika Claybourne Coldwell
Copperfield Crane Cromartie Dalgaard
Darrow Delacroix Dewhurst Dimitrov Dovetail Drummond Dunmore Eastlake Eisenhart Ellwood Fairweather Falk Farrow
Fenwick Ferreira Finch Fitzroy
Foxglove Galanis Garside Goldberry Grimshaw Gutierrez Haddock Hallowell Harkness Hartigan Haverford Hawthorne Heidel
Hollis Ibanez Iwamoto Jansson
Jorgensen Kaminski Kapoor Karlsen Keating Kestrel Kimura Kowalczyk Lamont Larkspur Leclair Lindqvist Lockhart Lund
Macready Mahfouz Maplethorpe
Marchetti Merriweather Mistry Montague Moreau Munro Nakamura Nightingale Norwood Novak Obuya Oakes Okonkwo Olsen
Orchard Ostrander Papadakis
Pemberton Penhallow Petrov Pickering Quill Quintana Radcliffe Rasmussen Redfern Rosenthal Rutherford Saltmarsh
Sandoval Sato Schreiber Seabright
Selwyn Silva Skov Somerset Stavros Stonebridge Strand Sundaram Tanaka Tennant Thackeray Thornbury Tolland Underhill
Vance Varga Vasquez Verhoeven
Wainwright Weatherby Westerberg Whitlock Winterbourne Wolfe Yamada Yarrow Zeller Ziegler
""")
TITLES = ["Mr", "Mrs", "Ms", "Dr", "Mr.", "Ms.", "Dr.", "Professor", "Coach", "Nurse"]
ROLES = items("""
the plumber|my neighbour|my cousin|the landlord|our teacher|the new manager|my sister|her brother|his boss|the baker
the guy next door|a colleague
the accountant|their son|my ex|the singer|the woman upstairs|our guide|the tutor|the vet|that customer|the author
the winner|the mayor|my friend
""")
_ONSETS = words("b br c ch cl d dr f fl g gr h j k kl l m n p pr r s sh st t th tr v w z y")
_VOWELS = words("a e i o u ai ea ee ia io oa ou")
_CODAS = ["", "", "", "n", "r", "l", "s", "m", "ck", "nd", "th", "lt", "x", "rn"]

PHONE_FORMATS = items("""
555-01##|555-####|(0##) 555-01##|(1##) 555-####|0##-555-####|1##-%##-####|0##.%##.####|1##.555.####|1## 555 ####
0## %## ####|0##%######
+1 0## 555 01##|+1-1##-555-####|1-0##-555-####|+1 (0##) %##-####|555 01##|555.01##|5550###|+999 ## ### ###
+999 ### ######|+999########
+210 ## ### ####|+422 ### ### ###|+693 %### ####|00999 ### ### ###|01632 960###|01632 96 0###|07700 900###
07700 900 ###|(01632) 960 ###
0#### ######|0### ### ####|0### ### ## ##|0## #### ####|0#/#######|0###-######|(0##) #### ####|+42# ### ## ## ##
+89# (0)## ### ####
#### ####|%## ## ###|### ### ###|##-##-##-##|###-####-####|####-####|+384.##.###.####|+217-##-###-####|#########
##########|0# ## ## ## ###
""")
_JOINTS = (
    [*" -.", "", " - ", "/", " / ", *"_–:~=*", "--", *"|+,", " . ", " – ", ". ", "•", "'"],
    [30, 30, 14, 6, 6, 5, 5, 4, 4, 4, 4, 3, 3, 3, 2, 2, 2, 2, 2, 2, 2, 1],
)
_PREFIXES = [*items("+###|+##|+#|00###|0|0"), "T ", "ph. ", "phone ", "no. ", "tel. ", "Tel "]
_PREFIXES += ["+999 ", "+210 ", "+422 ", "+693 ", "+384 ", "+1 1##-"]
# Families of shapes that only the evaluation uses: raised dots, square brackets, a lone bracketed digit, slashes before
# three digits, pairs only, a bracket with pairs at the end, single digits after a country code or one after another.
_PHONES_FOR_EVALUATION = re.compile(
    r"·|\[|^tel:|\(#\)#|/ ?###|^(?:## )+##$|\).*-##-##$|^\+#+-#-|(?: - #\b){3}|^\+#{12}$"
)
DIGIT_WORDS = words("zero one two three four five six seven eight nine")

STREET_WORDS = words("""
Acorn Alder Amber Anchor Apple Ash Aspen Badger Bank Barley Beacon Beech Bell Birch Blossom Bluebell Bramble Bridge
Brook Canal Castle Cedar Chapel
Cherry Chestnut Church Clover Coral Cottage Cotton Crescent Daisy Deer Dove Eagle Elder Elm Fern Field Forest
Fountain Garden Garnet Glen Grove Hazel
Heather Hill Holly Iron Ivy Juniper Kings Lake Larch Laurel Lavender Lilac Lime Linden Locust Main Maple Market
Meadow Mill Mulberry Oak Olive Orchard
Otter Park Pearl Pebble Pine Pond Poplar Primrose Quarry Queen Rose Rosewood Salt School Silver Spring Station Sunset
Swan Sycamore Thistle Valley
Victoria Vine Walnut Water Willow Windmill Wood
""")
STREET_TYPES = words(
    "Street Road Lane Avenue Drive Court Way Close Boulevard Place St Rd Ave Ln Dr St. Rd. Ave. Terrace Crescent Square"
)
MORE_STREET_TYPES = words("""
Passage Loop Bend Hollow Ridge View Point Green Gate Quay Yard Path Crossing Vale Mount Link Turn Broadway Highway
Fields Bank Orchard Cove Heights Estate Mead Rise Corner Grove Bridge Chase Common Cross Dale End Glade Knoll Landing
""")
ADDRESS_FORMATS = items("""
{n} {w} {t}|{n} {w} {t}|{n} {w} {t}|{n} {w} {t}, Apt {s}|{n} {w} {t}, Apartment {s}|{n}{l} {w} {t}
flat {s}, {n} {w} {t}|Flat {s}, {n} {w} {t}
{w} {t} {n}|{w}straat {s}|{w}weg {s}|{n} {w} and {w} {t}|{n} North {w} {t}|{n} {w}{v} {t}|{n} {w} {t}, Unit {s}
{n}-{s} {w} {t}|No. {s} {w} {t}
number {s}, {w} {t}|house {s} on {w} {t}|{n} Old {w} {t}|{n} {w} {t} #{s}|Via {w} {s}|Calle {w} {s}|{n}, {w} {t}
""")

_QUALIFIERS = words("North South East West Old New Great Little Long Inner Outer Royal Saint Port")
_FOREIGN = words("Via Calle Rua Viale Strada Ulica Plaza Carrer Camino Avenue Boulevard Place Quai Largo Route Platz")
_PARTS_AFTER = items("""
Apt {s}|Apartment {s}|Unit {s}|Flat {s}|Building {l}|Building {s}|Block {l}|Level {s}|Door {s}|Entrance {l}|#{s}
Staircase {s}|Studio {l}|House {s}
""")
_PARTS_BEFORE = items(
    "Flat {s}|Unit {s}|Apt {s}|House {s}|Block {l}|Studio {s}|Level {s}|Apartment {s}{l}|The Old Mill|Door {s}"
)

DOMAIN_WORDS = words("""
acorn amber anvil apex arbor atlas aurora badger basil beacon birch blue brave breeze bright brook cedar cloud clover
cobalt comet copper coral
crow dandy delta dune echo elm ember fable falcon fern flint fox frost garnet gleam granite harbor hazel heron hollow
ivory jade juniper kite lark
lemon linen lotus lunar maple meadow mint moss nimbus north oak onyx opal orbit otter pebble pine plum quartz quill
raven river rowan sage salt
silver slate sparrow spruce star stone swift thistle tide topaz tulip velvet violet walnut willow winter wren zephyr
""")
MAIL_WORDS = [
    "mail",
    "post",
    "box",
    "inbox",
    "net",
    "letters",
    "web",
    "works",
    "home",
    "office",
    "desk",
    "lab",
    "school",
    "group",
]
TLDS = ["example", "test", "invalid", "com", "net", "org", "info", "io", "co", "eu", "biz", "me", "edu", "co.uk"]
PASSWORD_WORDS = words("""
Tulip Falcon Rocket Mango Pepper Copper Tiger Purple Winter Summer Dragon Cookie Banana Marble Sunset Pirate Guitar
Castle Monkey Lemon Shadow
Galaxy Butter Pickle Velvet Thunder Jelly Puzzle Cactus Bubble Rabbit Pumpkin Ginger Biscuit Penguin Lantern Cherry
Waffle Hammer Turtle
""")
PASSWORD_FORMATS = items("""
{w}##|{w}####|{w}_##|{w}-##|{w}##!|{w}!##|{w}{w}#|{l}####|{l}_{l}##|{l}-{l}-{l}#|{l}.{l}##|^@@#@@##|@@#@@#@@|^^@##@!@
#@@#^@@#|@#@#@#@#|{w}@@##$|{l}{l}##|{w}{l}!
{w}#{w}|#{w}#|{w}?####|{l}+{l}##|$@@@##^|^@@@@##|@@@@####|####{l}|!{w}##|{w}*##*|@@^#-@@^#|"{l} {l} {l}"|"{l}"|"{w}"
'{l}'|"{l}{l}"|'{w}##'
""")

_SYMBOLS = "!#$%&*+-._:;?^|<>{}"
# Families that only the evaluation uses: some symbols, a digit before a capitalised word and two digits, and others.
_PASSWORDS_FOR_EVALUATION = re.compile(
    r"[~/(=]|^\d[A-Z][a-z]+\d\d$|^[a-z]{3}[A-Z]{3}\d|(?:[a-z]\d[A-Z]){2}|^[A-Z]{2}\d-|-\d{4}-[A-Z]$|[a-z]\.[A-Z].*\.\d"
)


def pattern(rng: Random, text: str) -> str:
    """Fill ``# % @ ^`` with random characters."""
    pools = {"#": "0123456789", "%": "23456789", "@": "abcdefghijkmnopqrstuvwxyz", "^": "ABCDEFGHJKLMNPQRSTUVWXYZ"}
    return "".join(rng.choice(pools[c]) if c in pools else c for c in text)


def invented_word(rng: Random, syllables: int) -> str:
    return "".join(rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS) for _ in range(syllables))


def first_name(rng: Random) -> str:
    name = rng.choice(FIRST_NAMES) if rng.random() < 0.6 else invented_word(rng, rng.choice([1, 2, 2])).title()
    return name


def last_name(rng: Random) -> str:
    return rng.choice(LAST_NAMES) if rng.random() < 0.6 else invented_word(rng, rng.choice([2, 2, 3])).title()


def person(rng: Random) -> tuple[str, str, str]:
    """A first name, a last name, and how a sentence calls this person."""
    first, last = first_name(rng), last_name(rng)
    kind = rng.random()
    if kind < 0.5:
        called = f"{first} {last}"
    elif kind < 0.68:
        called = first
    elif kind < 0.78:
        called = f"{rng.choice(TITLES)} {last}"
    elif kind < 0.9:
        called = rng.choice(ROLES)
    else:
        called = f"{rng.choice(ROLES)}, {first} {last},"
    return first, last, called


def composed_phone(rng: Random) -> str:
    """A number in random groups with random joints, brackets and prefix; never of a family kept for evaluation."""
    while True:
        groups = [rng.choice([1, 2, 2, 3, 3, 3, 4, 4, 5]) for _ in range(rng.choice([2, 3, 3, 3, 4, 4, 5, 6]))]
        if not 7 <= sum(groups) <= 12:
            continue
        parts, joints = ["#" * g for g in groups], rng.choices(*_JOINTS, k=rng.choice([1, 1, 1, 2, 3]))
        if rng.random() < 0.25:
            place, pair = rng.choice([0, 0, 1]), rng.choice(["()", "()", "<>", "{}"])
            parts[place] = pair[0] + parts[place] + pair[1]
        text = parts[0] + "".join(rng.choice(joints) + part for part in parts[1:])
        text = rng.choice(_PREFIXES) + text if rng.random() < 0.4 else text
        if not _PHONES_FOR_EVALUATION.search(text):
            return pattern(rng, text)


def evident(number: str) -> bool:
    """Whether a phone number shows its kind without any context."""
    digits, groups = sum(c.isdigit() for c in number), len(re.findall(r"\d+", number))
    plain = re.fullmatch(r"[\d .()-]+", number) is not None
    return (
        number.startswith(("+", "(0", "00", "tel", "ph")) or "555" in number or (plain and digits >= 9 and groups >= 3)
    )


def harmless_number(rng: Random) -> str:
    """Digits grouped like a phone number's, which mean nothing without the words around them."""
    while True:
        text = composed_phone(rng)
        if not evident(text) and not text[0].isalpha():
            return text


def phone(rng: Random) -> str:
    if rng.random() < 0.6:
        return composed_phone(rng)
    if rng.random() < 0.05:
        digits = [rng.choice(DIGIT_WORDS) for _ in range(rng.randint(7, 10))]
        return " ".join(digits)
    return pattern(rng, rng.choice(PHONE_FORMATS))


def email(rng: Random, first: str, last: str) -> str:
    f, la = first.lower(), last.lower().replace(" ", "")
    local = rng.choice(
        [
            f"{f}.{la}",
            f"{f}{la}",
            f"{f[0]}.{la}",
            f"{f}_{la}",
            f"{f}{rng.randint(1, 99)}",
            f"{la}.{f}",
            f"{f}-{la}",
            f"{f[0]}{la}{rng.randint(1, 999)}",
            f,
            la,
            rng.choice(DOMAIN_WORDS) + f,
            f"{f}.{rng.choice(DOMAIN_WORDS)}",
            f"{rng.choice(DOMAIN_WORDS)}{rng.randint(1, 2010)}",
            invented_word(rng, 2),
        ]
    )
    word = rng.choice(DOMAIN_WORDS) if rng.random() < 0.6 else invented_word(rng, 2)
    domain = rng.choice(
        [
            word,
            word + rng.choice(MAIL_WORDS),
            word + "-" + rng.choice(MAIL_WORDS),
            word + rng.choice(DOMAIN_WORDS),
            "example",
        ]
    )
    tld = rng.choice(["com", "org", "net"]) if domain == "example" else rng.choice(TLDS)
    style = rng.random()
    if style < 0.06:
        return f"{local.replace('.', ' dot ')} at {domain} dot {tld.replace('.', ' dot ')}"
    if style < 0.09:
        return f"{local} (at) {domain} (dot) {tld}"
    if style < 0.12:
        return f"{local}[at]{domain}.{tld}"
    return f"{local.title() if style > 0.96 else local}@{domain}.{tld}"


def street(rng: Random) -> str:
    """A street's name: known, borrowed or invented words, perhaps with a qualifier."""
    kind = rng.random()
    word = rng.choice(STREET_WORDS if kind < 0.5 else LAST_NAMES) if kind < 0.65 else invented_word(rng, 2).title()
    return f"{rng.choice(_QUALIFIERS)} {word}" if rng.random() < 0.12 else word


def street_type(rng: Random) -> str:
    kind = rng.random()
    known = rng.choice(STREET_TYPES if kind < 0.4 else MORE_STREET_TYPES)
    return known if kind < 0.8 else invented_word(rng, rng.choice([1, 1, 2])).title()


def address(rng: Random) -> str:
    number = rng.choice([rng.randint(1, 99), rng.randint(1, 99), rng.randint(100, 999), rng.randint(1000, 9999)])
    fill = {
        "n": number,
        "s": rng.randint(1, 60),
        "l": rng.choice("abcABCD"),
        "v": rng.choice(["field", "wood", "gate", "ridge", "side"]),
    }
    text = rng.choice(ADDRESS_FORMATS)
    if rng.random() < 0.4:
        house = rng.choice(
            ["{n}", "{n}", "{n}", "{n}{l}", "{n} {l}", "{n}-{s}", "{n}.{s}", "No. {n}", "no {n}", "#{n}"]
        )
        road = rng.choice(["{w} {t}"] * 6 + ["{w}", f"{rng.choice(_FOREIGN)} {{w}}", "{w} and {w} {t}", "{w} {w} {t}"])
        orders = [f"{house} {road}"] * 4 + [f"{house}, {road}", f"{road} {house}", f"{road}, {house}"]
        text = rng.choice(orders)
        if rng.random() < 0.25:
            text += rng.choice([", ", ", ", " "]) + rng.choice(_PARTS_AFTER)
        elif rng.random() < 0.2:
            text = rng.choice(_PARTS_BEFORE) + ", " + text
    while "{w}" in text:
        text = text.replace("{w}", street(rng), 1)
    return text.replace("{t}", street_type(rng)).format(**fill)


def composed_password(rng: Random) -> str:
    """Random blocks of words, letters, digits and symbols; never of a family kept for evaluation."""
    while True:
        text = "".join(_password_block(rng) for _ in range(rng.randint(1, 5)))
        if rng.random() < 0.25:
            joint = rng.choice(_SYMBOLS)
            text = joint.join(_password_block(rng) for _ in range(rng.randint(2, 4)))
        kinds = sum(any(test(c) for c in text) for test in (str.isdigit, str.islower, str.isupper))
        mixed = kinds + any(not c.isalnum() for c in text) >= 2 and any(c.isalpha() for c in text)
        if 6 <= len(text) <= 18 and mixed and text[-1] not in ".,:;" and not _PASSWORDS_FOR_EVALUATION.search(text):
            return text


def _password_block(rng: Random) -> str:
    kind = rng.random()
    if kind < 0.4:
        word = rng.choice(PASSWORD_WORDS) if rng.random() < 0.5 else invented_word(rng, rng.choice([1, 2])).title()
        return rng.choice([word, word, word.lower(), word.upper()])
    if kind < 0.75:
        return pattern(rng, rng.choice("#@^#") * rng.randint(1, 4))
    return rng.choice(_SYMBOLS) if kind < 0.9 else pattern(rng, rng.choice("@^") + "#" * rng.randint(1, 3))


def password(rng: Random) -> str:
    if rng.random() < 0.5:
        return composed_password(rng)
    frame, ending = rng.choice(PASSWORD_FORMATS), ""
    if rng.random() < 0.4:
        frame = rng.choice(["{w}", "{l}"]) + rng.choice(["", "-", "_", ".", "+"]) + "#" * rng.randint(1, 4)
        ending = rng.choice(["", "", "!", "#", "$", "?", "*", "&"])
    text = pattern(rng, frame) + ending
    for slot, low in (("{w}", False), ("{l}", True)):
        while slot in text:
            word = rng.choice(PASSWORD_WORDS) if rng.random() < 0.6 else invented_word(rng, 2).title()
            text = text.replace(slot, word.lower() if low else word, 1)
    return text


def private_item(rng: Random, kind: str, first: str, last: str) -> str:
    """One invented item of kind ``phone``, ``email``, ``address`` or ``password``."""
    if kind == "email":
        return email(rng, first, last)
    return {"phone": phone, "address": address, "password": password}[kind](rng)
