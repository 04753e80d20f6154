"""``python -m docs_tools``, or ``make pictures``: pictures and the README's tables, from rows and the guard."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from . import measured_pictures, response_picture
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


def main() -> None:
    for name, draw in PICTURES.items():
        (ROOT / "docs" / "assets" / name).write_text(draw().svg(), encoding="utf-8")
    readme = ROOT / "README.md"
    readme.write_text(filled(readme.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"written: {', '.join(PICTURES)} in docs/assets, and the README's tables")


if __name__ == "__main__":
    main()
