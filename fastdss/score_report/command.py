"""``fastdss report``: from a folder of scores to the page."""

from __future__ import annotations

import argparse
import sys
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastdss.console.output import print_remark, print_result
from fastdss.errors import UserError
from fastdss.optional import require

DEFAULT_LIMIT = 2000  # rows with text on a page: a choice between all rows and a file that opens at once


def write_report(
    folder: str | Path, out: str | Path, *, sources: Sequence[str | Path] = (), limit: int | None = DEFAULT_LIMIT
) -> str | None:
    """Write the page of the scores in ``folder`` to ``out``; returns why the page shows no text, None where it does.

    sources: the scored input, by default where the manifest says it was. If that is gone or was edited, the page shows
    scores without text; sources that are named here must match (``ValueError``).
    limit: at most so many scored rows, and so many failed ones, are on the page; the charts count all rows.
    """
    require("fastdss report", "score", "pyarrow")
    from fastdss.corpus.store import joined, load_manifest, read_scores
    from fastdss.files import write_atomically

    from .data import collect
    from .page import score_page

    manifest = load_manifest(folder)
    out = Path(out)
    if not out.parent.is_dir():
        raise UserError(f"{out}: there is no folder {out.parent}")
    without_text = None
    try:
        summary, rows = collect(joined(folder, sources or None), limit)
    except (ValueError, OSError) as error:
        if sources:
            raise
        summary, rows = collect(((None, scored) for scored in read_scores(folder)), limit)
        without_text = str(error)
    page = score_page(manifest, summary, rows, without_text=without_text)
    write_atomically(out, page.encode("utf-8", "replace"))  # ids and options may hold lone surrogates
    return without_text


def add_report(commands: Any) -> None:
    """Register ``report`` on the subparsers of ``argparse``; ``args.run(args)`` then runs it."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "report",
        help="show the scores of a folder as one HTML page",
        description="Writes one self-contained HTML page of the scores that `fastdss score` left in a folder: how they "
        "are spread, where responses fall below one half, and the responses in colour. It needs no network.",
    )
    parser.add_argument("folder", metavar="DIR", help="folder of scores")
    parser.add_argument("inputs", metavar="INPUT", nargs="*", help="the scored files, where they were moved")
    parser.add_argument("--out", metavar="FILE", help="the page (default: report.html in the folder)")
    parser.add_argument(
        "--limit",
        type=int,
        default=DEFAULT_LIMIT,
        metavar="N",
        help="rows on the page, those with the lowest scores first; 0: all (default: %(default)s)",
    )
    parser.add_argument("--open", action="store_true", help="open the page in the browser")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    if args.limit < 0:
        raise UserError(f"--limit: expected a number of rows, or 0 for all, got {args.limit}")
    out = Path(args.out or Path(args.folder) / "report.html")
    without_text = write_report(args.folder, out, sources=args.inputs, limit=args.limit or None)
    if without_text is not None:
        print(f"The page shows scores without text: {without_text}", file=sys.stderr)
    print_result(args, {"page": out.resolve(), "without_text": without_text}, [("page", out.resolve())])
    if args.open and not webbrowser.open(out.resolve().as_uri()):
        print_remark(args, "no browser could be opened from here")
