"""The page in a real browser: it draws, opens what its address names, and runs nothing that a row holds."""

import re
import shutil
import subprocess
import threading
from html import escape, unescape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from urllib.parse import urlencode

import pytest

from fastdss.score_report.data import collect
from fastdss.score_report.page import score_page

from .entries import HOSTILE, MANIFEST, entry, failed

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--virtual-time-budget=2000", "--dump-dom"),
]
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium or google-chrome on the path")


@pytest.fixture
def dump(tmp_path):
    """The document after the page's script ran, for an address part such as {"row": "a"}."""

    def run(html: str, **address: str | list[str]) -> str:
        page = tmp_path / "page.html"
        page.write_bytes(html.encode("utf-8", "replace"))
        url = f"{page.as_uri()}#{urlencode(address, doseq=True)}"
        command = [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", url]
        done = subprocess.run(command, capture_output=True, timeout=120)
        dom = done.stdout.decode("utf-8", "replace")
        assert "</html>" in dom, done.stderr.decode(errors="replace")[-2000:]
        return re.sub(r"<(script|style)\b.*?</\1>", "", dom, flags=re.DOTALL)

    return run


def build(pairs, limit=None, **more):
    summary, rows = collect(pairs, limit)
    return score_page(MANIFEST, summary, rows, **more)


def listed(dom: str) -> list[str]:
    return [unescape(re.sub(r"<[^>]+>", "", name)) for name in re.findall(r'<b dir="auto">(.*?)</b>', dom)]


def opened(dom: str) -> str:
    """The body of the open row, as HTML."""
    bodies = re.findall(r'<div class="body".*?</div></li>', dom, flags=re.DOTALL)
    assert len(bodies) == 1
    return bodies[0]


ROWS = [
    entry("safe", (0.99, 0.98)),
    entry("dips", (0.9, 0.2, 0.8), response="first 😀 here, then there, and last"),
    entry("falls", (0.9, 0.3, 0.1), flags=["delimiter"]),
    failed("broken"),
    entry("needle", (0.7,), response="nothing like <b>a Needle</b> in hay"),
]


def test_lists_lowest_first_and_failed_as_failed(dump):
    dom = dump(build(ROWS))
    assert listed(dom) == ["falls", "dips", "needle", "safe", "broken"]
    assert '<span class="score none">failed</span>' in dom
    assert "the guard's logits are not finite" in dom  # the list says why
    assert "5 rows" in dom
    assert 'aria-expanded="true"' not in dom


def test_address_opens_a_row_with_coloured_chunks_and_its_trajectory(dump):
    body = opened(dump(build(ROWS), row="dips", theme="dark"))
    chunks = re.findall(r'<span class="(heat\d)[^"]*" data-k="(\d)" data-score="([\d.]+)">(.*?)</span>', body)
    assert [chunk[:3] for chunk in chunks] == [("heat5", "0", "0.90"), ("heat1", "1", "0.20"), ("heat4", "2", "0.80")]
    row, scored = ROWS[1]
    response = row.conversation.turns[-1].content
    pieces = [response[a:b].lstrip() for a, b in pairwise([0, *scored.turns[0].ends])]
    assert [unescape(chunk[3]) for chunk in chunks] == pieces  # characters beyond 16 bits shift no boundary
    whole = re.search(r'<p class="heat".*?</p>', body).group()
    assert re.sub(r"<[^>]+>", "", whole) == response
    assert "chunk 2 of 3, the lowest" in re.sub(r"<[^>]+>", "", body)
    assert 'class="chart trajectory"' in body
    assert 'href="#row=dips"' in body


def test_address_keeps_search_order_and_filters(dump):
    dom = dump(build(ROWS), q="a needle", sort="id")
    assert listed(dom) == ["needle"]
    assert "1 of 5 rows" in dom
    assert listed(dump(build(ROWS), flags="low", low="0.15", sort="order")) == ["dips"]


def test_reasons_of_any_text_are_filters(dump):
    reason = "expected one of a|b, got c"
    pairs = [entry("other"), failed("f", reason), failed("g", "the guard's logits are not finite")]
    assert listed(dump(build(pairs), flags=["failed", f"because: {reason}"])) == ["f"]
    assert listed(dump(build(pairs), flags="failed")) == ["f", "g"]


def test_a_row_that_filters_hide_is_shown_and_one_that_is_not_there_is_said(dump):
    dom = dump(build(ROWS), row="safe", q="needle")
    assert "Row safe" in opened(dom)
    assert len(listed(dom)) == 5
    assert "row “elsewhere” is not on this page" in dump(build(ROWS), row="elsewhere")


def test_hostile_rows_stay_text(dump):
    pairs = [
        entry(HOSTILE, (0.9, 0.1), response=HOSTILE, flags=["<i>"], history=[{"role": HOSTILE, "content": HOSTILE}]),
        failed("f", HOSTILE),
    ]
    dom = dump(build(pairs), row=HOSTILE.replace("\ud800", "\ufffd"), q="taken")  # as addresses spell it
    assert "<title>What the guard saw in 2 responses</title>" in dom
    assert not re.search(r"<(img|svg/onload|textarea)\b", dom)
    body = opened(dom)
    text = unescape(re.sub(r"<[^>]+>", "", re.search(r'<p class="heat".*?</p>', body, re.DOTALL).group()))
    assert text.startswith('</script><script>document.title="taken"</script><img src=x onerror=')
    for name in ("U+2028", "U+2029", "U+202E", "U+0000", "U+001B", "U+FEFF", "U+D800"):
        assert name in text
    assert not set(dom) & set("\u2028\u2029\u202e\ufeff")


def test_failed_row_and_row_without_text_say_so(dump):
    body = opened(dump(build(ROWS), row="broken"))
    assert "The guard gave no score: the guard's logits are not finite. It does not count as safe." in body
    assert "trajectory" not in body
    assert "data-k" not in body
    dom = dump(build([entry("mute", (0.9, 0.2), text=False)], without_text="moved"), row="mute")
    assert "The source text of this row was not found" in opened(dom)
    assert re.findall(r'data-k="(\d)"', dom) == ["0", "1"]


def test_ten_thousand_rows_put_one_page_of_them_into_the_document(dump):
    pairs = (entry(f"r{i}", (0.5 + i / 20_000, 0.3 + i / 20_000)) for i in range(10_000))
    dom = dump(build(pairs), page="3", sort="id", reverse="1")
    assert listed(dom) == [f"r{i}" for i in range(9_899, 9_849, -1)]
    assert "101–150 of 10,000" in dom


def test_policy_stops_what_a_hole_in_the_escaping_would_let_through(dump):
    """Script and loads put into the finished page by hand do nothing; the same page without the policy shows both."""
    asked = []

    class Listener(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(204)
            self.end_headers()

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Listener)  # browsers open connections ahead of need
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        loads = "".join(
            f'<{tag} {attribute}="http://127.0.0.1:{server.server_port}/{attribute}">'
            for tag, attribute in (("img", "src"), ("link rel=stylesheet", "href"))
        )
        hole = f"<main><script>document.title='taken'</script>{loads}"
        html = build(ROWS).replace("<main>", hole, 1)
        dom = dump(html)
        assert "<title>What the guard saw" in dom
        assert asked == []
        assert listed(dom)  # the page itself works
        dom = dump(re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", html))
        assert "<title>taken</title>" in dom
        assert set(asked) >= {"/src", "/href"}
    finally:
        server.shutdown()
        server.server_close()


def test_approximate_scores_are_hollow_dots_and_dotted_text(dump):
    rows = [entry("near", (0.9, 0.2, 0.8), exact=[True, False, False]), entry("all", (0.9, 0.3))]
    body = opened(dump(build(rows), row="near"))
    chunks = re.findall(r'<span class="heat\d( approximate)?[^"]*" data-k="(\d)"', body)
    assert chunks == [("", "0"), (" approximate", "1"), (" approximate", "2")]
    assert body.count('<circle class="approximate"') == 2
    assert "chunk 2 of 3, the lowest, approximate" in body
    assert "3 prefixes, 2 of them approximate" in body
    assert "approximate" not in opened(dump(build(rows), row="all"))


@pytest.mark.parametrize("width", [400, 1000])
def test_long_names_and_reasons_stay_within_the_page(dump, width):
    """A reason as long as templates give them was one unbroken chip: it lay over the columns and widened the page."""
    reason = "the chat template refuses it: " + "roles must alternate " * 12
    rows = [failed("long reason", reason), failed("x" * 200, "y" * 200), *ROWS]
    inner = escape(build(rows))
    measure = "frame.contentDocument.documentElement.scrollWidth + ' of ' + frame.contentWindow.innerWidth"
    dom = dump(
        f'<html><title>-</title><iframe id="frame" style="width:{width}px;height:900px;border:0" srcdoc="{inner}">'
        f"</iframe><script>onload = () => setTimeout(() => {{ document.title = {measure} }}, 300)</script></html>"
    )
    shown, room = map(int, re.search(r"<title>(\d+) of (\d+)</title>", dom).groups())
    assert room in (width, width - 15)  # without or with a scroll bar
    assert shown <= width
