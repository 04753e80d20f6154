"""The page as text: self-contained, locked down by its own policy, and honest in what it says."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest

from fastdss.score_report.data import collect
from fastdss.score_report.page import BLOCK, lead, score_page

from .entries import HOSTILE, MANIFEST, entry, failed

ELEMENTS = {
    *("html", "head", "meta", "title", "style", "script", "noscript", "body", "main", "header", "section", "nav"),
    *("h1", "h2", "p", "b", "small", "div", "span", "figure", "a", "kbd", "ul", "ol", "li", "dl", "dt", "dd"),
    *("form", "input", "select", "option", "button", "label", "svg", "g", "rect", "line", "text"),
}


class Page(HTMLParser):
    """Elements, attributes, data and scripts of a page; fails on a tag that does not close."""

    def __init__(self, html: str):
        super().__init__()
        self.attributes: list[tuple[str, str, str | None]] = []
        self.tags: set[str] = set()
        self.data: dict[str, object] = {}
        self.scripts: list[str] = []
        self.styles: list[str] = []
        self.words = ""
        self._open: list[tuple[str, dict]] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in ("meta", "input", "line", "rect"):
            self._open.append((tag, dict(attrs)))

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag):
        assert self._open.pop()[0] == tag

    def handle_data(self, data):
        tag, attrs = self._open[-1] if self._open else ("", {})
        if tag == "script" and attrs.get("type") == "application/json":
            self.data[attrs["id"]] = json.loads(data)
        elif tag in ("script", "style"):
            (self.scripts if tag == "script" else self.styles).append(data)
        else:
            self.words += data


def build(pairs, limit=None, **more):
    summary, rows = collect(pairs, limit)
    html = score_page(MANIFEST, summary, rows, **more)
    return html, Page(html)


HOSTILE_PAIRS = [
    entry(HOSTILE, (0.9, 0.1, 0.7), response=HOSTILE, flags=[HOSTILE], history=[{"role": HOSTILE, "content": HOSTILE}]),
    failed(HOSTILE + "2", HOSTILE, response=HOSTILE),
]


def test_hostile_text_makes_no_element_no_handler_and_no_script():
    html, page = build(HOSTILE_PAIRS, without_text=HOSTILE)
    assert page.tags <= ELEMENTS
    assert not [name for _, name, _ in page.attributes if name.startswith("on") or name == "style"]
    assert len(page.scripts) == 1
    block = page.data["block-0"]
    assert block[0]["response"] == HOSTILE
    assert block[1]["error"] == HOSTILE
    html.encode("utf-8", "replace")


def test_hostile_manifest_is_text():
    summary, rows = collect([entry()], None)
    manifest = MANIFEST | {"guard": HOSTILE, "options": {HOSTILE: {HOSTILE: [HOSTILE]}}, HOSTILE: [{HOSTILE: HOSTILE}]}
    page = Page(score_page(manifest, summary, rows))
    assert page.tags <= ELEMENTS
    assert page.words.count("gnp.exe") >= 5


def test_nothing_is_loaded_and_the_policy_names_exactly_what_may_run():
    _, page = build([entry()])
    meta = [value for tag, name, value in page.attributes if tag == "meta" and name == "content"]
    policy = next(value for value in meta if value and "default-src" in value)
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    for kind, texts in (("script", page.scripts), ("style", page.styles)):
        (text,) = texts
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert re.search(rf"{kind}-src 'sha256-{re.escape(digest)}';", policy)
    addresses = [value for _, name, value in page.attributes if name in ("src", "href", "srcset", "action", "data")]
    assert all(value.startswith("#") for value in addresses)
    assert not re.search(r"url\(|@import|https?://(?!www\.w3\.org/2000/svg)", page.scripts[0] + page.styles[0])
    assert not re.search(r"\b(innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval|fetch)\b", page.scripts[0])


def test_rows_lie_in_blocks_in_the_order_of_the_index():
    _, page = build([entry(f"r{i}", (i / 1000,)) for i in range(2 * BLOCK + 1)])
    ids = page.data["index"]["columns"]["id"]
    blocks = [page.data[f"block-{i}"] for i in range(3)]
    assert [len(block) for block in blocks] == [BLOCK, BLOCK, 1]
    lowest = [min(row["scores"]) for block in blocks for row in block]
    assert lowest == sorted(lowest)
    assert ids[0] == "r0"
    assert ids[-1] == f"r{2 * BLOCK}"


def test_header_says_guard_revision_options_and_counts():
    _, page = build([entry("low", (0.9, 0.2)), entry("ok"), failed()])
    for words in ("tiny", "0123abcd", "every 5", "unit word", "3 responses", "1 of 2 scored responses (50 %)"):
        assert words in page.words
    assert "0a0a0a" not in page.words  # names of shards tell a reader nothing


@pytest.mark.parametrize(
    ("guard", "toy"),
    [
        ("tiny", True),
        ("fastdss-tiny-guard", True),
        ("/venv/fastdss/guards/tiny_guard/", True),
        (["org/guard", "tiny"], True),
        ("/home/destiny/guards/llama-guard-3", False),
        ("org/tiny-llama-guard", False),
    ],
)
def test_only_the_built_in_guard_is_called_a_toy(guard, toy):
    html = score_page(MANIFEST | {"guard": guard}, *collect([entry()], None))
    assert ("The guard is the toy that ships with fastdss" in html) is toy


def test_rows_left_out_and_missing_text_are_said():
    _, page = build([entry(f"r{i}", (i / 10,)) for i in range(5)], 2, without_text="chats.jsonl does not exist")
    assert "This page holds the 2 responses with the lowest scores, failed ones last; 3 more" in page.words
    assert "chats.jsonl does not exist" in page.words
    _, page = build([entry()])
    assert "This page holds" not in page.words
    assert "could not be read" not in page.words


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        ([], "There are no responses."),
        ([failed()], "No response has a score; failed: 1. A failed response never counts as safe."),
        ([entry()], "No prefix of the 1 scored responses falls below one half."),
        ([entry("a", (0.1, 0.9)), entry("b", (0.9, 0.1))], "1 of the 2 ends at one half or above"),
        ([entry("b", (0.9, 0.1))], "None of them ends at one half or above."),
    ],
)
def test_lead_says_what_the_numbers_say(pairs, words):
    assert words in lead(collect(pairs, None)[0])


def test_a_page_without_rows_is_a_page():
    _, page = build([])
    assert page.data["index"]["columns"]["id"] == []
    assert "block-0" not in page.data


def test_what_was_promised_about_approximate_scores_stands_at_the_top():
    pairs = [entry("a", (0.9, 0.2), exact=[False, True])]
    words = "1 of 2 scores are approximations: at most 2.0% <b>of rows</b>."
    html = score_page(MANIFEST | {"approx": {"words": words, "approximated": 1}}, *collect(pairs, None))
    top = html.partition('<div class="cards">')[0]
    assert "1 of 2 scores are approximations: at most 2.0% &lt;b&gt;of rows&lt;/b&gt;. They are drawn" in top
    computed = {"words": "All scores are exact: R^2 is 0.30.", "approximated": 0}
    html = score_page(MANIFEST | {"approx": computed}, *collect([entry("a")], None))
    assert '<p class="note certificate">All scores are exact: R^2 is 0.30.</p>' in html
    assert 'class="note certificate"' not in score_page(MANIFEST, *collect([entry("a")], None))
