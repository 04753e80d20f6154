"""``python -m docs_tools``, or ``make pictures``: pictures and tables of README and docs, from rows and the guard.

``python -m docs_tools --demo demo_report.json`` first keeps the numbers of that run of the demo as rows.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from . import evidence, measured_pictures, response_picture
from .drawing import Drawing
from .tables import PAGES, filled

ROOT = Path(__file__).resolve().parents[1]
PICTURES: dict[str, Callable[[], Drawing]] = {
    "response.svg": response_picture.draw,
    "loss_h100.svg": measured_pictures.loss,
    "safety.svg": measured_pictures.safety,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m docs_tools", description=__doc__)
    parser.add_argument("--demo", type=Path, metavar="JSON", help="keep this run of the demo")
    args = parser.parse_args()
    if args.demo:
        evidence.keep_demo(args.demo)
    for name, draw in PICTURES.items():
        (ROOT / "docs" / "assets" / name).write_text(draw().svg(), encoding="utf-8")
    for name in PAGES:
        page = ROOT / name
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"written: {', '.join(PICTURES)} in docs/assets, and the tables of {', '.join(PAGES)}")


if __name__ == "__main__":
    main()
