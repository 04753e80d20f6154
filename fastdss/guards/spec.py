"""How a guard model is asked, and which of its next tokens are the verdict: plain data, no model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from datetime import date
from typing import Any, Literal, NamedTuple

from fastdss.chat.encoder import Conversation, Message
from fastdss.errors import UserError, expect, expect_fields

DATE = "2025-01-01"


class AnswerField(NamedTuple):
    """A field that a guard fills before the verdict.

    Attributes:
        prefix: the text before it.
        values: the texts that it may hold.
    """

    prefix: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class GuardSpec:
    """How a guard model is asked, and which next tokens are its answer.

    A conversation is rendered by the template with ``add_generation_prompt=True``, then ``answer_prefix``, and
    tokenised without further special tokens; the next token is the verdict. A softmax over the logits of the verdict
    words gives each a share; the score is the share of the safe words, plus ``other_weight`` times that of the others.

    Args:
        name: the name of the spec, which manifests record.
        template: a Jinja template; None: the tokenizer's own.
        template_kwargs: further variables for the template.
        messages: makes the template's messages of a conversation of plain user, assistant, system and tool turns: a
            ``View``, or a function; None: they are passed as they are.
        answer_prefix: the text that the guard is taken to have written before its verdict.
        safe: the word of the safe verdict, or several spellings of it.
        unsafe: the same for the unsafe verdict.
        other: the same for a third verdict, if there is one.
        other_weight: what the third verdict counts, from 0 (unsafe) to 1 (safe).
        split_words: let a word be several tokens: it counts with the product of their shares, each among the tokens
            that continue one of the words. Else a word must be a single token after the rendering.
        any_spelling: every token that spells a word counts, whatever its case and the blanks around it.
        fields: the fields that the guard fills in before ``answer_prefix``.
        earlier: ``"summed"``: the score is the sum over the fields' values of P(values) times the score given them;
            ``"likeliest"``: each field has the value that greedy decoding would give it for this prefix.
        questions: names of questions, each with template variables of its own. They are asked one by one, and the
            lowest P(safe) is the score.
        head: where the verdict is read: ``"words"``, the next token; ``"token"``, a class of the model's own head at
            the response's last token, after which nothing is rendered; ``"sequence"``, a class of the whole rendering.
            With the last two, words are names or numbers of classes, and all classes must be named.
        independent: each class has a sigmoid, instead of one softmax for all. Then not all classes must be named, and
            the score is the least of P(safe class) and 1 - P(unsafe class).
        date: the day to render where the template asks for today's date.
        judges: what the guard judges, for people to read.
        checked: what the spec was compared with, and when.
        note: what is approximate about the spec.
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
    earlier: Literal["summed", "likeliest"] = "summed"
    questions: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    head: Literal["words", "token", "sequence"] = "words"
    independent: bool = False
    date: str = DATE
    judges: str = ""
    checked: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        self._check_types()
        if not 0 <= self.other_weight <= 1:
            raise UserError(f"{self.name}: other_weight: expected a number in [0, 1], got {self.other_weight}")
        try:
            date.fromisoformat(self.date)
        except ValueError:
            raise UserError(f"{self.name}: date: expected a day as YYYY-MM-DD, got {self.date!r}") from None
        safe, unsafe, _ = self.words
        if not (safe or unsafe if self.independent else safe and unsafe):
            raise UserError(f"{self.name}: a guard needs a safe and an unsafe verdict")
        if self.independent and self.head != "sequence":
            raise UserError(f"{self.name}: independent: only of a head's classes")

    def _check_types(self) -> None:
        expect("name", self.name, str)
        expect_fields(self, f"{self.name}: ")
        for name, group in zip(("safe", "unsafe", "other"), self.words, strict=True):
            for part in group:
                expect(f"{self.name}: {name}", part, str, wanted="text or a list of texts")
        for number, field_ in enumerate(self.fields):
            expect(f"{self.name}: fields[{number}]", field_, AnswerField)
            expect(f"{self.name}: fields[{number}].values", field_.values, tuple, list)
            for part in (field_.prefix, *field_.values):
                expect(f"{self.name}: fields[{number}]", part, str, wanted="texts alone")
        for name, variables in self.questions.items():
            expect(f"{self.name}: questions[{name!r}]", variables, Mapping)

    @property
    def words(self) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
        """The spellings of the safe, the unsafe and the other verdict."""
        safe, unsafe, other = ((w,) if isinstance(w, str) else tuple(w) for w in (self.safe, self.unsafe, self.other))
        return safe, unsafe, other

    @property
    def begins(self) -> str:
        """The text that is rendered between the conversation and the first token that is read."""
        return self.fields[0].prefix if self.fields else self.answer_prefix
