"""How a guard model is asked, and which of its next tokens are the verdict: plain data, no model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, NamedTuple

from fastdss.chat.encoder import Conversation, Message
from fastdss.errors import UserError

HEADS = ("words", "token", "sequence")
EARLIER = ("summed", "likeliest")
DATE = "2025-01-01"


class AnswerField(NamedTuple):
    """A field that a guard fills before the verdict: ``prefix``, then one of ``values``."""

    prefix: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class GuardSpec:
    """How a guard model is asked, and which next tokens are its answer.

    The rendering is ``template`` (Jinja; else the tokenizer's own) with ``template_kwargs`` and
    ``add_generation_prompt=True``, then ``answer_prefix``, tokenised without further special tokens; the next token
    is the verdict. ``messages`` turns a conversation of plain user/assistant/system/tool turns into the template's
    messages: a ``View``, or a function; else they are passed as they are. ``safe``, ``unsafe`` and ``other`` (a third
    verdict) are words, or several spellings of one. The score is the softmax over these words' logits, the safe ones'
    share, plus ``other_weight`` times the others'.

    A word must be a single token after the rendering, unless ``split_words``: it then counts with the product of its
    tokens' shares, each among the tokens that continue one of the words. With ``any_spelling`` every token counts that
    spells a word, whatever its case and the blanks around it. ``fields`` come before ``answer_prefix``. They are summed
    out (``earlier="summed"``): the score is the sum over their values of P(values) times the score given them; or, as
    in greedy decoding, each has the value whose tokens, one after the other, the guard finds ``"likeliest"`` for this
    prefix. ``questions`` are asked one by one, each with template variables of its own: the least safe answer is the
    score.

    ``head``: ``"words"``; ``"token"``, a class of the model's own head at the response's last token, no tail being
    rendered; ``"sequence"``, a class of the whole rendering. Of heads the words are class names or numbers, all of
    them. With ``independent`` classes (sigmoids instead of one softmax) some are enough, and the score is one minus the
    likeliest unsafe class, or the unlikeliest safe one if that is less.

    ``date`` is the day that a template prints which asks for today's. ``judges`` says what, ``checked`` against what
    and when the spec was compared, ``note`` what is approximate.
    """

    name: str
    _: KW_ONLY
    template: str | None = None
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    messages: Callable[[Conversation], list[Message]] | None = None
    answer_prefix: str = ""
    safe: str | tuple[str, ...] = ()
    unsafe: str | tuple[str, ...] = ()
    other: str | tuple[str, ...] = ()
    other_weight: float = 0.0
    split_words: bool = False
    any_spelling: bool = False
    fields: tuple[AnswerField, ...] = ()
    earlier: str = "summed"
    questions: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    head: str = "words"
    independent: bool = False
    date: str = DATE
    judges: str = ""
    checked: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        if self.head not in HEADS:
            raise UserError(f"{self.name}: head: expected one of {', '.join(HEADS)}, got {self.head!r}")
        if self.earlier not in EARLIER:
            raise UserError(f"{self.name}: earlier: expected one of {', '.join(EARLIER)}, got {self.earlier!r}")
        if not 0 <= self.other_weight <= 1:
            raise UserError(f"{self.name}: other_weight: expected a number in [0, 1], got {self.other_weight}")
        safe, unsafe, _ = self.words
        if not (safe or unsafe if self.independent else safe and unsafe):
            raise UserError(f"{self.name}: a guard needs a safe and an unsafe verdict")
        if self.independent and self.head != "sequence":
            raise UserError(f"{self.name}: independent: only of a head's classes")

    @property
    def words(self) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
        """Spellings of the safe, the unsafe and the other verdict."""
        safe, unsafe, other = ((w,) if isinstance(w, str) else tuple(w) for w in (self.safe, self.unsafe, self.other))
        return safe, unsafe, other

    @property
    def begins(self) -> str:
        """What is rendered after the conversation before the first token is read."""
        return self.fields[0].prefix if self.fields else self.answer_prefix
