"""A response coloured by the built-in guard's scores, and its trajectory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from fastdss import Guard, ScoredResponse, star_scores
from fastdss.pages.charts import heat

from .drawing import Drawing

PROMPT = "My neighbour left her umbrella here. How do I give it back?"
RESPONSE = (
    "That is kind of you. Ring the bell in the early evening, or leave a short note at her door. Her phone number is "
    "555-0147 and she is home alone after nine. Either way, she will be glad to have it back."
)
_LETTER, _LINE = 8.2, 32
_LEFT, _TOP = 26, 112


class _Layout(NamedTuple):
    """The text's letters a line, and where the trajectory is drawn: left, right, top, bottom."""

    columns: int
    plot: tuple[int, int, int, int]


_WIDE = _Layout(61, (604, 918, 62, 222))
_NARROW = _Layout(52, (56, 454, 342, 472))  # for screens of a hand's width: one under the other


def draw(narrow: bool = False) -> Drawing:
    item = star_scores(Guard.tiny(), {"prompt": [PROMPT], "response": [RESPONSE]}, every=5)[0]
    title = "A response coloured by P(safe) after every fifth word, and the trajectory of the scores"
    drawing, layout = (Drawing(480, 514, title), _NARROW) if narrow else (Drawing(944, 286, title), _WIDE)
    drawing.text(_LEFT, 34, "A training response, scored after every fifth word", "ink strong")
    drawing.text(_LEFT, 74, PROMPT, "quiet")
    legend = _coloured(drawing, item, layout) + (36 if narrow else 48)
    drawing.text(_LEFT, legend, "P(safe)", "quiet small")
    for step, mark in enumerate(("0", "", "", "½", "", "1")):
        drawing.rect(_LEFT + 52 + 30 * step, legend - 13, 30, 17, f"h{step}")
        drawing.text(_LEFT + 67 + 30 * step, legend, mark, "ink small", "middle")
    meaning = (_LEFT, legend + 26) if narrow else (_LEFT + 246, legend)
    drawing.text(*meaning, "blue is imitated, orange is held to the reference", "quiet small")
    _trajectory(drawing, item, layout)
    return drawing


def _coloured(drawing: Drawing, item: ScoredResponse, layout: _Layout) -> float:
    """Draw the text; where its last line stands."""
    y = float(_TOP)
    for line, column, piece, score in _pieces(item, layout.columns):
        x, y = _LEFT + column * _LETTER, _TOP + line * _LINE
        drawing.rect(x, y - 17, len(piece) * _LETTER, 24, f"h{heat(score)}")
        drawing.text(x, y, piece, "ink mono", fit=len(piece) * _LETTER)
    return y


def _pieces(item: ScoredResponse, columns: int) -> Iterator[tuple[int, int, str, float]]:
    """Where each word goes: line, column, text, score of its chunk. Words of one chunk and line are joined."""
    line = column = start = 0
    for end, score in zip(item.ends, item.scores.tolist(), strict=True):
        piece, begun = "", column
        for word in item.response[start:end].split():
            if column + len(word) > columns:
                yield line, begun, piece.rstrip(), score
                line, column, begun, piece = line + 1, 0, 0, ""
            piece += f"{word} "
            column += len(word) + 1
        yield line, begun, piece.rstrip(), score
        start = end


def _trajectory(drawing: Drawing, item: ScoredResponse, layout: _Layout) -> None:
    left, right, top, bottom = layout.plot
    drawing.text(left - 30, top - 28, "Its trajectory", "ink strong")
    for share, mark in ((0.0, "0"), (0.5, "½"), (1.0, "1")):
        y = bottom - share * (bottom - top)
        drawing.line(left, y, right, y, "axis" if share == 0 else "rule", dashed=share == 0.5)
        drawing.text(left - 10, y + 4, mark, "quiet small", "end")
    edges = [left + (right - left) * end / len(item.response) for end in (0, *item.ends)]
    points = []
    for score, begin, end in zip(item.scores.tolist(), edges, edges[1:], strict=False):
        y = bottom - score * (bottom - top)
        points += [(begin, y), (end, y)]
        if score < 0.5:
            drawing.rect(begin, (top + bottom) / 2, end - begin, y - (top + bottom) / 2, f"h{heat(score)}")
    drawing.path(points, "lsafe")
    drawing.text(left, bottom + 22, "the response, from its first word to its last", "quiet small")
