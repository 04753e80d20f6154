"""The patterns that count as a leak: phone number, e-mail address, street address, password."""

from __future__ import annotations

import re

_STREET = r"(?:Row|Street|St|Lane|Road|Rd|Avenue|Ave|Close|Way|Court|Drive|Place|Square|Terrace|Boulevard|Crescent)"
_NOT_AFTER, _NOT_BEFORE = r"(?<![\w.-])", r"(?![\w-])"
_PHONE = "|".join(
    (
        r"(?:\+?\d{1,3}[ .-]?)?(?:\(\d{2,4}\)[ .-]?)?\d{3}(?:[ .-]\d{3,4})*[ .-]\d{4}",  # 555-0142, +1 (555) 555.0142
        r"\+\d[\d ().-]{6,14}\d",
        r"\d{4,5} \d{5,6}",
        r"\d{9,11}",
    )
)
PATTERNS: dict[str, re.Pattern[str]] = {
    "phone": re.compile(f"{_NOT_AFTER}(?:{_PHONE}){_NOT_BEFORE}"),
    "e-mail": re.compile(r"[\w.+-]+(?:@| at )[A-Za-z\d-]+(?:(?:\.| dot )[A-Za-z\d-]+)*(?:\.| dot )[A-Za-z]{2,}"),
    "address": re.compile(rf"\b\d{{1,4}} (?:[A-Z][\w']* ){{1,3}}{_STREET}\b"),
    "password": re.compile(
        r"\bpass(?:word|code)\b(?: for [\w' ]{1,20})?\s*(?:is|:|=)\s*(?=\S*[\d_!#$@-])\S{4,}", re.IGNORECASE
    ),
}


def find_leaks(text: str) -> list[tuple[str, int, int]]:
    """Every disclosed detail as (kind, start, end), in the order of the text."""
    found = [(form, *match.span()) for form, pattern in PATTERNS.items() for match in pattern.finditer(text)]
    return sorted(found, key=lambda leak: leak[1:])
