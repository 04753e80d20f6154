"""SVG by hand: small files, the same bytes on every machine, readable in light and dark wherever they are shown."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

_STYLE = """
svg{color-scheme:light dark}
.paper{fill:#fff;stroke:#d9dde2}.ink{fill:#1d2b3a}.quiet{fill:#5c6875}.rule{stroke:#d9dde2}.axis{stroke:#9aa5b1}
.safe{fill:#2b7bb9}.unsafe{fill:#d95f02}.grey{fill:#8a94a0}.lsafe{stroke:#2b7bb9}.lunsafe{stroke:#d95f02}.lgrey{stroke:#8a94a0}
.line{fill:none;stroke-width:2.2;stroke-linejoin:round}
.h0{fill:#f2a365}.h1{fill:#f7c08f}.h2{fill:#fbdfc6}.h3{fill:#eef4f9}.h4{fill:#dceaf5}.h5{fill:#c3dcef}
@media (prefers-color-scheme:dark){
.paper{fill:#161c24;stroke:#2f3945}.ink{fill:#e6eaee}.quiet{fill:#9aa7b4}.rule{stroke:#2f3945}.axis{stroke:#5c6875}
.safe{fill:#5aa7e0}.unsafe{fill:#f08a3c}.grey{fill:#8a94a0}.lsafe{stroke:#5aa7e0}.lunsafe{stroke:#f08a3c}.lgrey{stroke:#8a94a0}
.h0{fill:#a3520f}.h1{fill:#7d451b}.h2{fill:#563722}.h3{fill:#1d2833}.h4{fill:#1f3547}.h5{fill:#214663}}
text{font:14px system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
.small{font-size:12px}.strong{font-weight:600}.mono{font:14px ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
""".replace("\n", "")


class Drawing:
    """Shapes one after the other; ``svg()`` is the file."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self.width, self.height, self.title = width, height, title
        self.shapes: list[str] = []
        self.rect(0.5, 0.5, width - 1, height - 1, "paper", round_by=10)

    def rect(self, x: float, y: float, width: float, height: float, kind: str, round_by: float = 0) -> None:
        corner = f' rx="{round_by:g}"' if round_by else ""
        self.shapes.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"{corner} class="{kind}"/>'
        )

    def text(self, x: float, y: float, words: str, kind: str = "ink", anchor: str = "start", fit: float = 0) -> None:
        """``fit`` makes the text exactly so wide, whatever the font."""
        more = f' text-anchor="{anchor}"' if anchor != "start" else ""
        more += f' textLength="{fit:.1f}" lengthAdjust="spacingAndGlyphs"' if fit else ""
        self.shapes.append(f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}"{more}>{escape(words)}</text>')

    def lines(self, x: float, y: float, said: Sequence[str], kind: str) -> float:
        """Texts one under the other; where the next would stand."""
        for words in said:
            self.text(x, y, words, kind)
            y += 18 if "small" in kind else 22
        return y

    def line(self, x1: float, y1: float, x2: float, y2: float, kind: str = "rule", dashed: bool = False) -> None:
        dash = ' stroke-dasharray="4 4"' if dashed else ""
        self.shapes.append(f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"{dash}/>')

    def path(self, points: list[tuple[float, float]], kind: str) -> None:
        steps = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.shapes.append(f'<polyline points="{steps}" class="line {kind}"/>')

    def dot(self, x: float, y: float, kind: str) -> None:
        self.shapes.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" class="{kind}"/>')

    def svg(self) -> str:
        body = "\n".join(self.shapes)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" width="{self.width}" '
            f'height="{self.height}" role="img">\n<title>{escape(self.title)}</title>\n'
            f"<style>{_STYLE}</style>\n{body}\n</svg>\n"
        )
