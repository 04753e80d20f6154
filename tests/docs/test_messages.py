"""The messages that the troubleshooting page explains are those of the code."""

import re

from docs_tools.messages import GAP, messages

from .blocks import ROOT

QUESTIONS = (ROOT / "docs" / "questions.md").read_text()
EXPLAINED = [shown for _, shown in re.findall(r"^- \*\*(`+) ?(.+?) ?\1\*\*", QUESTIONS, re.MULTILINE)]
KNOWN = [text.replace("'", '"') for said in messages().values() for text in said]


def is_known(shown):
    """Whether the constant parts of a shown message stand, in their order, in one message of the code."""
    parts = [part for part in shown.replace("'", '"').split(GAP) if part.strip(" ;:()")]
    for text in KNOWN:
        at = 0
        for part in parts:
            at = text.find(part.strip(), at)
            if at < 0:
                break
        else:
            return True
    return False


def test_every_message_is_one_of_the_code():
    assert len(EXPLAINED) > 30
    assert [shown for shown in EXPLAINED if not is_known(shown)] == []


def test_every_message_is_one_piece_of_code():
    """A backtick within one pair of backticks would end it."""
    assert [shown for tick, shown in re.findall(r"^- \*\*(`+)(.+?)\1\*\*", QUESTIONS, re.MULTILINE)
            if tick == "`" and "`" in shown] == []  # fmt: skip


def test_the_check_is_one():
    assert not is_known("… is no file anywhere, and the Hub gives no such data set")
    assert len(KNOWN) > 200
