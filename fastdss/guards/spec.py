"""How a guard model is asked, and which of its next tokens are the verdict: plain data, no model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, NamedTuple

from fastdss.chat.encoder import Conversation, Message


class AnswerField(NamedTuple):
    """A field that a guard fills before the verdict: ``prefix``, then one of ``values``, each a single token."""

    prefix: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class GuardSpec:
    """How a guard model is asked, and which next tokens are its answer.

    The rendering is ``template`` (Jinja; else the tokenizer's own) with ``template_kwargs`` and
    ``add_generation_prompt=True``, then ``answer_prefix``, tokenised without further special tokens; the next token
    is the verdict. ``messages`` turns a conversation of plain user/assistant/system turns into the template's
    messages, else they are passed as they are. ``safe``, ``unsafe`` and ``other`` (a third verdict) are words, or
    several spellings of one; each must be a single token after the rendering. The score is the softmax over these
    tokens' logits, the safe ones' share, plus ``other_weight`` times the others'. ``note`` says what is approximate.

    ``fields`` come before ``answer_prefix`` and are summed out: the score is the sum over their values of P(values)
    times the score given them, P being each field's softmax over its values' logits. With ``token_head`` the verdict is
    a class of the model's own head at the response's last token: no tail is rendered, and the words are class names.
    """

    name: str
    _: KW_ONLY
    template: str | None = None
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    messages: Callable[[Conversation], list[Message]] | None = None
    answer_prefix: str = ""
    safe: str | tuple[str, ...]
    unsafe: str | tuple[str, ...]
    other: str | tuple[str, ...] = ()
    other_weight: float = 0.0
    fields: tuple[AnswerField, ...] = ()
    token_head: bool = False
    note: str = ""

    @property
    def words(self) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
        """Spellings of the safe, the unsafe and the other verdict."""
        safe, unsafe, other = ((w,) if isinstance(w, str) else tuple(w) for w in (self.safe, self.unsafe, self.other))
        return safe, unsafe, other

    @property
    def answers(self) -> list[str]:
        """What is rendered after the conversation, one text per place that is read: the first field, the second after
        each value of the first, and so on; then the verdict after all combinations."""
        read, begun = [], [""]
        for prefix, values in self.fields:
            asked = [text + prefix for text in begun]
            read += asked
            begun = [text + value for text in asked for value in values]
        return read + [text + self.answer_prefix for text in begun]
