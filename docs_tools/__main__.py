"""``python -m docs_tools``, or ``make pictures``: pictures and tables of README and docs, from rows and the guard.

``python -m docs_tools --demo demo_report.json`` first keeps the numbers of that run of the demo as rows.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

from . import evidence, measured_pictures, response_picture
from .drawing import Drawing
from .tables import filled

ROOT = Path(__file__).resolve().parents[1]
DRAWN: dict[str, Callable[[bool], Drawing]] = {
    "response": response_picture.draw,
    "loss_h100": measured_pictures.loss,
    "safety": measured_pictures.safety,
}
PICTURES: dict[str, Callable[[], Drawing]] = {  # each for wide screens and for those of a hand's width
    f"{name}{'_narrow' if narrow else ''}.svg": partial(draw, narrow)
    for name, draw in DRAWN.items()
    for narrow in (False, True)
}
WITH_TABLES = (ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in ("performance", "safety", "guards")))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m docs_tools", description=__doc__)
    parser.add_argument("--demo", type=Path, metavar="JSON", help="keep this run of the demo")
    args = parser.parse_args()
    if args.demo:
        evidence.keep_demo(args.demo)
    for name, draw in PICTURES.items():
        (ROOT / "docs" / "assets" / name).write_text(draw().svg(), encoding="utf-8")
    for page in WITH_TABLES:
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"written: {', '.join(PICTURES)} in docs/assets, and the tables of README and docs")


if __name__ == "__main__":
    main()
