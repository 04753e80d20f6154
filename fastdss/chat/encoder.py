"""Conversations to token ids through a chat template, with content kept literal.

Fine-tuning data is written by strangers. A response that spells ``<|eot_id|>`` must reach the model as those ten
characters, never as the token that ends a turn. So before the template is rendered, a mark breaks every control string
in content in two. The mark is a token in a copy of the tokenizer, and is dropped from the resulting ids. At last their
number of control tokens is compared with that of the same conversation with harmless content. (Tokenizers that begin
every piece after a special token with a blank, as Llama 2's did, put one where the mark was.)
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from traceback import walk_tb
from typing import Any, NamedTuple

from jinja2 import TemplateError
from tokenizers import Tokenizer
from transformers import AddedToken

from fastdss.errors import RowError, UserError

from .conversation import ROLES
from .turns import check_text

Message = dict[str, Any]
Conversation = list[Message]

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")  # tokens that stand for single bytes: ordinary text may need them
# Some tokenizers are set to split special tokens: that would split the template's own, and leave our mark in the text.
_AS_WRITTEN = {"add_special_tokens": False, "split_special_tokens": False, "verbose": False}
_BREAKS = [chr(code) for code in range(0xFDD0, 0xFDF0)]  # possible marks: noncharacters, for internal use


def _is_blank(text: str) -> bool:
    """Whether a token is only blanks, as some of Gemma's are: ordinary text may hold it, so it controls nothing."""
    return text.replace("▁", " ").isspace()


_TEMPLATE_FILES = ("<template>", "<unknown>")  # as Jinja names code that it made of a text


class RefusedByTemplate(UserError, TemplateError):
    """A template raised an error; the message never quotes content."""


class Encoding(NamedTuple):
    """``text`` and its tokens; token t covers ``text[offsets[t][0]:offsets[t][1]]``."""

    text: str
    ids: list[int]
    offsets: list[tuple[int, int]]


class ChatEncoder:
    """Renders and tokenises conversations with one tokenizer and one chat template.

    ``template`` is a Jinja chat template, None the tokenizer's own; ``template_kwargs`` are variables for it;
    ``messages`` turns a conversation of plain user/assistant/system turns into the messages that the template is given.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        template: str | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
        messages: Callable[[Conversation], list[Message]] | None = None,
    ) -> None:
        if template is None and getattr(tokenizer, "chat_template", None) is None:
            raise UserError("the tokenizer has no chat template and none was given")
        self.tokenizer = tokenizer
        self.template = template
        self.template_kwargs = dict(template_kwargs or {})
        self.messages = messages
        # Added tokens that are not special, such as Gemma's HTML tags, count as ordinary text, unless the template
        # contains them, as it may contain <think> or <tool_call>.
        source = str(template or tokenizer.chat_template)
        controls = {
            token.content: index
            for index, token in tokenizer.added_tokens_decoder.items()
            if token.special or token.content in source
        }
        controls = {text: index for text, index in controls.items() if len(text) > 1 and not _is_blank(text)}
        longest_first = sorted(controls, key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        unknown = getattr(tokenizer, "unk_token", None)  # like byte tokens, it may come from ordinary text
        plain = {text for text in controls if text == unknown or _BYTE.fullmatch(text)}
        self._control_ids = frozenset(index for text, index in controls.items() if text not in plain)
        self._special_ids = frozenset(index for index, token in tokenizer.added_tokens_decoder.items() if token.special)
        self._expected: dict[tuple[Any, ...], int] = {}
        self._marking: dict[str, Any] = {}

    def is_control_string(self, text: str) -> bool:
        """Whether ``text`` as a whole is one control string."""
        return self._control.fullmatch(text) is not None

    def control_strings(self, text: str) -> list[str]:
        """The control strings that ``text`` spells out."""
        return self._control.findall(text)

    def render(
        self,
        conversations: Sequence[Conversation],
        *,
        generation_prompt: bool,
        suffix: str = "",
        tools: Sequence[Any] = (),
    ) -> list[str]:
        """The template's text for each conversation, followed by ``suffix``; all conversations get the same tools."""
        prepared = [self.messages(chat) if self.messages else chat for chat in conversations]
        try:
            texts = self.tokenizer.apply_chat_template(
                prepared,
                chat_template=self.template,
                tokenize=False,
                add_generation_prompt=generation_prompt,
                tools=list(tools) or None,
                **self.template_kwargs,
            )
        except Exception as error:
            if not isinstance(error, TemplateError) and not _raised_by_template(error):
                raise
            # A message that stands in the template itself quotes no row; any other message might.
            source = str(self.template or self.tokenizer.chat_template)
            reason = type(error).__name__ + "; leave it out, or give a template that takes all that it holds"
            reason = str(error) if str(error) and str(error) in source else reason
            raise RefusedByTemplate(f"the chat template refuses the conversation: {reason}") from None
        return [text + suffix for text in texts]

    def encode(
        self, conversations: Sequence[Conversation], *, generation_prompt: bool = True, suffix: str = ""
    ) -> list[list[int]]:
        """Token ids of each rendering; raises ``ValueError`` where content would still yield a control token."""
        texts, mark = self._rendered(conversations, generation_prompt, suffix)
        rows = self.tokenize(texts, mark)
        for row, (chat, ids) in enumerate(zip(conversations, rows, strict=True)):
            self._check_controls(row, chat, ids, generation_prompt, suffix)
        return rows

    def encode_open(self, history: Conversation, responses: Sequence[str]) -> list[list[int]]:
        """Token ids of renderings that end with the response, without what the template puts after it."""
        _, tail = self.frame(history)
        chats = [[*history, {"role": "assistant", "content": response}] for response in responses]
        texts, mark = self._rendered(chats, False, "")
        after = self.tokenize([tail])[0] if tail else []
        rows = []
        for row, (chat, text) in enumerate(zip(chats, texts, strict=True)):
            if not text.endswith(tail):
                raise UserError("the chat template ends differently after different responses")
            rows += self.tokenize([text.removesuffix(tail)], mark)
            self._check_controls(row, chat, rows[-1] + after, False, "")
        return rows

    def encode_with_offsets(
        self,
        conversation: Conversation,
        *,
        tools: Sequence[Any] = (),
        generation_prompt: bool = False,
        written: Mapping[str, str] | None = None,
    ) -> Encoding:
        """One rendering with each token's character span; needs a fast tokenizer.

        ``written`` maps words of the messages to control strings that replace them after rendering.
        """
        (text,), mark = self._rendered([conversation], generation_prompt, "", tools)
        inserted = 0
        for word, control in (written or {}).items():
            inserted += text.count(word)
            text = text.replace(word, control)
        tokenizer, dropped = self._with_mark(mark)
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        marks = 0
        for index, (start, end) in zip(*token_offsets(tokenizer, text), strict=True):
            if index == dropped:
                marks += 1
            else:
                ids.append(index)
                offsets.append((start - marks, end - marks))
        self._check_controls(0, conversation, ids, generation_prompt, "", tools, inserted)
        return Encoding(text.replace(mark, "") if mark else text, ids, offsets)

    def frame(self, history: Conversation) -> tuple[str, str]:
        """The text before and after the response in a rendering of ``history`` and one assistant turn."""
        sentinel = "responseQ"
        while any(sentinel in message["content"] for message in history):
            sentinel += "Q" * len(sentinel)
        chat = [*history, {"role": "assistant", "content": sentinel}]
        head, found, tail = self.shown(chat, generation_prompt=False).rpartition(sentinel)
        if not found:
            raise UserError("the chat template drops or rewrites the last assistant turn")
        return head, tail

    def shown(self, conversation: Conversation, *, generation_prompt: bool) -> str:
        """The text whose tokens ``encode`` gives, without the marks that break control strings in content."""
        (text,), mark = self._rendered([conversation], generation_prompt, "")
        return text.replace(mark, "") if mark else text

    def is_control(self, index: int) -> bool:
        """Whether a token id is one that only the template may write."""
        return index in self._control_ids

    def is_special(self, index: int) -> bool:
        """Whether a token id is a control token that is special in the tokenizer too."""
        return index in self._special_ids and index in self._control_ids

    def tokenize(self, texts: list[str], mark: str | None = None) -> list[list[int]]:
        """Token ids of texts as they are, without further special tokens; ``mark`` separates tokens and is left out."""
        tokenizer, dropped = self._with_mark(mark)
        rows = tokenizer(texts, return_attention_mask=False, **_AS_WRITTEN)["input_ids"]
        return rows if mark is None else [[index for index in row if index != dropped] for row in rows]

    def _with_mark(self, mark: str | None) -> tuple[Any, int | None]:
        """The tokenizer, or a copy of it to which ``mark`` is a control token, and that token's id."""
        if mark is None:
            return self.tokenizer, None
        if mark not in self._marking:
            twin = copy.deepcopy(self.tokenizer)
            twin.add_tokens(AddedToken(mark, normalized=False, special=True), special_tokens=True)
            self._marking[mark] = twin
        twin = self._marking[mark]
        return twin, twin.convert_tokens_to_ids(mark)

    def _rendered(
        self, conversations: Sequence[Conversation], generation_prompt: bool, suffix: str, tools: Sequence[Any] = ()
    ) -> tuple[list[str], str | None]:
        how: dict[str, Any] = {"generation_prompt": generation_prompt, "suffix": suffix}
        # The prefixes of a response share the messages of its history: each is looked at once.
        messages = {id(message): message for chat in conversations for message in chat}
        contents = set(nested_strings([list(messages.values()), tools]))
        if not any(self._control.search(content) for content in contents):
            return self.render(conversations, tools=tools, **how), None
        mark = next((mark for mark in _BREAKS if not any(mark in content for content in contents)), None)
        if mark is None:
            raise UserError("content holds control strings and every Unicode noncharacter that could break them")

        def broken(value: Any) -> Any:
            return _changed(value, lambda text: self._broken(text, mark))

        chats = [[{**broken(message), "role": message["role"]} for message in chat] for chat in conversations]
        return self.render(chats, tools=[broken(tool) for tool in tools], **how), mark

    def _broken(self, content: str, mark: str) -> str:
        """``content`` with ``mark`` after the first character of every control string, overlapping ones too."""
        pieces, position = [], 0
        while match := self._control.search(content, position):
            pieces.append(content[position : match.start() + 1])
            position = match.start() + 1
        return mark.join([*pieces, content[position:]])

    def _check_controls(
        self,
        row: int,
        chat: Conversation,
        ids: list[int],
        generation_prompt: bool,
        suffix: str,
        tools: Sequence[Any] = (),
        inserted: int = 0,
    ) -> None:
        """Refuse content that adds or removes control tokens; ``inserted``: how many the caller has put in."""
        found = self._count_controls(ids)
        expected = self._expected_controls(chat, generation_prompt, suffix, tools) + inserted
        if found != expected:
            raise UserError(
                f"conversation {row}: its content changes the number of control tokens from {expected} to {found}"
            )

    def _expected_controls(self, chat: Conversation, generation_prompt: bool, suffix: str, tools: Sequence[Any]) -> int:
        """The number of control tokens of the same conversation with harmless content."""

        def count(harmless: Conversation, tools: Sequence[Any] = ()) -> int:
            (text,) = self.render([harmless], generation_prompt=generation_prompt, suffix=suffix, tools=tools)
            return self._count_controls(self.tokenize([text])[0])

        if tools or any(message.keys() - {"role", "content"} for message in chat):
            return count(
                [{**_changed(m, self._harmless), "role": m["role"]} for m in chat],
                [_changed(tool, lambda text: self._control.sub("x", text)) for tool in tools],
            )
        shape = tuple((message["role"], bool(message["content"].strip())) for message in chat)
        key = (shape, generation_prompt, suffix)
        if key not in self._expected:
            self._expected[key] = count([{"role": role, "content": "x" if filled else ""} for role, filled in shape])
        return self._expected[key]

    def _harmless(self, text: str) -> str:
        """``text`` with "x" for each control string. The rest stays, since templates look at words like "function"."""
        return self._control.sub("x", text)

    def _count_controls(self, ids: list[int]) -> int:
        return sum(map(self._control_ids.__contains__, ids))


def _raised_by_template(error: Exception) -> bool:
    """Whether the error comes out of a template, which adds, calls or looks up what a message does not have so."""
    return any(frame.f_code.co_filename in _TEMPLATE_FILES for frame, _ in walk_tb(error.__traceback__))


def nested_strings(value: Any) -> Iterator[str]:
    """Every text in nested lists and mappings, keys included: in the arguments of a call these come from the data."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield str(name)
            yield from nested_strings(inner)
    elif isinstance(value, Sequence):
        for inner in value:
            yield from nested_strings(inner)


def _changed(value: Any, change: Callable[[str], str]) -> Any:
    """``value`` with every text in it changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {change(str(name)): _changed(inner, change) for name, inner in value.items()}
    if isinstance(value, Sequence):
        return [_changed(inner, change) for inner in value]
    return value


def token_offsets(tokenizer: Any, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Token ids and character spans of ``text`` as it is, without further special tokens."""
    _check_fast(tokenizer)
    out = tokenizer(text, return_offsets_mapping=True, **_AS_WRITTEN)
    return list(out["input_ids"]), [tuple(span) for span in out["offset_mapping"]]


def text_spans(tokenizer: Any, text: str) -> list[tuple[int, int]]:
    """Character spans of the tokens of ``text``, where the tokenizer's added tokens count as ordinary text."""
    return list(_encode_text(tokenizer, text).offsets)


def settled_spans(tokenizer: Any, text: str) -> list[tuple[int, int]]:
    """The spans of ``text_spans`` that no further text can change: those of the pre-tokens that are followed by white
    space or by two others. (One other is too few: some tokenizers split ``it'`` before the ``'``, but not ``it's``.)"""
    encoding = _encode_text(tokenizer, text)
    starts: dict[int | None, int] = {}
    ends: dict[int | None, int] = {}
    for word, (start, end) in zip(encoding.word_ids, encoding.offsets, strict=True):
        starts.setdefault(word, start)
        ends[word] = end
    before, limit = [0, 0, *starts.values()][-2:]
    if not any(map(str.isspace, text[max(limit - 1, 0) : limit + 1])):
        limit = before
    limit = len(text[:limit].rstrip())
    return [span for word, span in zip(encoding.word_ids, encoding.offsets, strict=True) if ends[word] <= limit]


def _encode_text(tokenizer: Any, text: str) -> Any:
    """``text`` encoded as ``tokenizer`` would do without added tokens: by its normalizer, pre-tokenizer and model."""
    _check_fast(tokenizer)
    backend = tokenizer.backend_tokenizer
    plain = Tokenizer(backend.model)
    if backend.normalizer is not None:
        plain.normalizer = backend.normalizer
    if backend.pre_tokenizer is not None:
        plain.pre_tokenizer = backend.pre_tokenizer
    return plain.encode(text, add_special_tokens=False)


def _check_fast(tokenizer: Any) -> None:
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(f"{type(tokenizer).__name__} gives no character offsets: a fast tokenizer is needed")


def check_conversation(row: int, conversation: Any) -> Conversation:
    """``conversation`` as plain role/content turns; errors name the row and never quote the text."""
    if not isinstance(conversation, Sequence) or isinstance(conversation, str) or not conversation:
        raise RowError(row, f"expected a non-empty list of messages, got {type(conversation).__name__}")
    turns = []
    for index, message in enumerate(conversation):
        if not isinstance(message, Mapping) or "role" not in message or "content" not in message:
            raise RowError(row, f"message {index}: expected a mapping with 'role' and 'content'")
        role, content = message["role"], message["content"]
        if role not in ROLES:  # templates write the role among control tokens, unchecked
            raise RowError(row, f"message {index}: unknown role, expected one of {', '.join(ROLES)}")
        if not isinstance(content, str):
            raise RowError(row, f"message {index}: expected text, got {type(content).__name__}")
        try:
            check_text(f"message {index}", content)
        except UserError as error:
            raise RowError(row, str(error)) from None
        turns.append({"role": role, "content": content})
    return turns
