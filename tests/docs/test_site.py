"""The documentation builds without a warning, loads nothing from elsewhere, and its links and anchors exist."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from urllib.parse import unquote

import pytest

from .blocks import ROOT

pytest.importorskip("mkdocs", reason="needs the group docs")
pytest.importorskip("mkdocstrings", reason="needs the group docs")

pytestmark = pytest.mark.long


class Page(HTMLParser):
    """What a page refers to, and the places in it that others may."""

    def __init__(self, text):
        super().__init__()
        self.links, self.loaded, self.places = [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.places |= {given[name] for name in ("id", "name") if given.get(name)}
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        elif tag in ("script", "img", "iframe", "source") and given.get("src"):
            self.loaded.append(given["src"])
        elif tag == "source" and given.get("srcset"):
            self.loaded.append(given["srcset"])
        elif tag == "link" and given.get("rel") not in ("canonical", "prev", "next", "alternate") and given.get("href"):
            self.loaded.append(given["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)]
    told = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}  # about mkdocs's future, not about these pages
    done = subprocess.run(command, cwd=ROOT, env=told, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stdout + done.stderr
    return out


@pytest.fixture(scope="module")
def pages(site):
    return {path: Page(path.read_text()) for path in site.rglob("*.html")}


def test_there_is_a_page_for_each_thing(site):
    expected = ["index", "start", "data", "guards", "scores", "train", "loss", "performance", "safety", "security"]
    assert all(
        (site / f"{name}.html").is_file() for name in [*expected, "api/losses", "commands", "messages", "changes"]
    )


def test_nothing_is_loaded_from_elsewhere(site, pages):
    assert len(pages) > 25
    for path, page in pages.items():
        assert [found for found in page.loaded if re.match(r"(https?:)?//", found)] == [], path
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//", sheet.read_text()), sheet


def test_every_link_has_its_page_and_place(site, pages):
    for path, page in pages.items():
        if path.name == "404.html":  # its links are absolute: it is served anywhere
            continue
        for link in page.links + page.loaded:
            if re.match(r"[a-z]+:", link):
                continue
            target, _, place = link.partition("#")
            found = (path.parent / unquote(target)).resolve() if target else path
            assert found.is_file(), f"{path.relative_to(site)}: {link}"
            if place and found in pages:
                assert unquote(place) in pages[found].places, f"{path.relative_to(site)}: {link}"


def test_docstrings_and_formulas_are_rendered(site):
    losses = (site / "api" / "losses.html").read_text()
    assert "token_ce" in losses
    assert ":func:" not in losses
    assert not re.search(r"::\s*</p>", losses)
    mathematics = (site / "loss_mathematics.html").read_text()
    assert mathematics.count("<math") > 20
    assert "arithmatex" not in mathematics
    assert "<mi>λ</mi>" in mathematics or "&#x003BB;" in mathematics


def test_every_public_name_is_in_the_reference(site):
    import fastdss

    text = "".join(path.read_text() for path in (site / "api").glob("*.html"))
    missing = [name for name in fastdss.__all__ if f'id="fastdss.{name}"' not in text]
    assert missing == ["__version__", "guards"]


RAW = re.compile(
    r"<p>[^<]*\n(?:- |\* |\d\. |\|)[^\n]*"  # a list or table without a blank line before it
    r"|\*\*|(?<!\w)`[^`<]*`"  # marks that found no partner
    r"|<strong>-\d"  # two powers of a line
    r"|<(?:score|think|label)[^>]*>"  # words that were taken for HTML
)


def test_no_raw_markup_is_left(site):
    for path in site.rglob("*.html"):
        text = re.sub(r"<(pre|code|script|style)\b.*?</\1>|<!--.*?-->", "", path.read_text(), flags=re.DOTALL)
        found = RAW.findall(text[text.find("<article") : text.find("</article>")])
        assert found == [], f"{path.relative_to(site)}: {found[:3]}"


def test_no_entry_of_the_reference_is_empty(site):
    """What a name is stands below it: text, or a list of its parts."""
    beside = re.compile(r"<div class=\"(language-python )?doc-signature.*?</div>|<h\d.*?</h\d>|<footer.*", re.DOTALL)
    for path in (site / "api").glob("*.html"):
        for entry in re.split(r"(?=<h\d id=\"fastdss)", path.read_text())[1:]:
            assert re.search(r"<(p|li)>", beside.sub("", entry)), entry[: entry.index(">")]
    losses = (site / "api" / "losses.html").read_text()
    assert "token_entropy" in losses[losses.index('id="fastdss.DSSLossOutput"') :]
