"""Answers in words: the places where a guard's next token is read, and the score that the logits there make.

An answer is a series of fields and then the verdict; for each of them there are several possible texts. The tokens of
all possible answers form a tree, and the guard is read where two answers part, nowhere else. The score is the
probability that an answer restricted to these texts, chosen token by token, ends in the safe verdict. For verdicts of
one token that is the softmax over their logits. Where a spec does not sum over the earlier fields, their likeliest
token is followed, and only the verdict's tokens count with their probabilities.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from fastdss.errors import UserError

from .spec import GuardSpec

Ids = tuple[int, ...]
Tokens = Callable[[str], Ids]  # the tokens of a text that follows the rendering


@dataclass(frozen=True)
class Place:
    """A place after ``ids``, tokens behind the rendering, where the next token is read.

    ``options`` are the tokens that may follow, each with what it leads to: another place, or the score of the answer
    that is then decided. ``greedy``: only the likeliest is followed, the first of equally likely ones; else each counts
    with its probability among the options.
    """

    ids: Ids
    options: Mapping[int, Place | float]
    greedy: bool = False


class Answers:
    """The tree of answers below ``root``. At each of its places the logits of ``token_ids`` are read; ``tails`` has the
    tokens between the rendering and each place."""

    def __init__(self, root: Place) -> None:
        self.root = root
        self.places = list(_walk(root))
        self.tails = [place.ids for place in self.places]
        self.token_ids = list(dict.fromkeys(token for place in self.places for token in place.options))
        self._column = {token: column for column, token in enumerate(self.token_ids)}
        self._row = {place.ids: row for row, place in enumerate(self.places)}

    def scores(self, logits: Tensor, temperature: float) -> Tensor:
        """P(safe) ``[...]`` from logits ``[..., places, columns]``."""
        # Rounded probabilities may sum to more than 1.
        return self._value(self.root, logits, temperature).clamp(max=1)

    def _value(self, place: Place, logits: Tensor, temperature: float) -> Tensor:
        columns = [self._column[token] for token in place.options]
        read = logits[..., self._row[place.ids], columns]
        shares = torch.softmax(read / temperature, dim=-1)
        if place.greedy:
            shares = one_hot(read.argmax(-1), len(columns)).to(shares)
        worth = [
            self._value(next_, logits, temperature) if isinstance(next_, Place) else shares.new_tensor(next_)
            for next_ in place.options.values()
        ]
        return sum((share * value for share, value in zip(shares.unbind(-1), worth, strict=True)), shares.new_zeros(()))


def _walk(place: Place) -> Iterator[Place]:
    yield place
    for following in place.options.values():
        if isinstance(following, Place):
            yield from _walk(following)


def compile_answers(spec: GuardSpec, tokens: Tokens, tokenizer: Any) -> Answers:
    """The places of ``spec``'s answers; ``tokens(text)`` gives the tokens of ``text`` after the rendering.

    ``ValueError`` where a text has no token, or several and not ``spec.split_words``; where one text is the beginning
    of another; where only one answer is possible.
    """
    root = _compile(spec, tokens, tokenizer, "", 0)
    if not isinstance(root, Place):
        raise UserError(f"{spec.name}: its answer has one possible text, so nothing could be read")
    return Answers(root)


def _compile(spec: GuardSpec, tokens: Tokens, tokenizer: Any, begun: str, depth: int) -> Place | float:
    """The tree of answers that begin with ``begun``, in which the first ``depth`` fields are filled."""
    safe, unsafe, other = spec.words
    if depth == len(spec.fields):
        asked = begun + spec.answer_prefix
        worth = dict.fromkeys(safe, 1.0) | dict.fromkeys(unsafe, 0.0) | dict.fromkeys(other, spec.other_weight)
        if len(worth) < len(safe) + len(unsafe) + len(other):
            raise UserError(f"{spec.name}: two verdict words are the same token: {[*safe, *unsafe, *other]}")
        options: dict[Ids, Place | float] = {}
        for word, value in worth.items():
            options[_ids(spec, tokens, tokenizer, asked, word)] = value
        if len(options) < len(worth):
            raise UserError(f"{spec.name}: two verdict words are the same token: {[*worth]}")
        if spec.any_spelling:
            options = {**_spellings(worth, tokenizer), **options}
    else:
        field = spec.fields[depth]
        asked = begun + field.prefix
        options = {}
        for text in field.values:
            found = _ids(spec, tokens, tokenizer, asked, text)
            if found in options:
                raise UserError(f"{spec.name}: two values of {field.prefix!r} are the same token: {field.values}")
            options[found] = _compile(spec, tokens, tokenizer, asked + text, depth + 1)
    greedy = spec.earlier == "likeliest" and depth < len(spec.fields)
    return _branch(spec.name, tokens(asked), options, greedy)


def _branch(name: str, before: Ids, options: Mapping[Ids, Place | float], greedy: bool) -> Place | float:
    """The tree of the places after ``before`` where the token sequences of ``options`` part."""
    firsts: dict[int, dict[Ids, Place | float]] = {}
    for ids, value in options.items():
        if not ids:
            if len(options) > 1:
                raise UserError(f"{name}: one verdict word or value is how another begins; add what follows it")
            return value
        firsts.setdefault(ids[0], {})[ids[1:]] = value
    next_ = {first: _branch(name, (*before, first), rest, greedy) for first, rest in firsts.items()}
    return Place(before, next_, greedy) if len(next_) > 1 else next(iter(next_.values()))


def _ids(spec: GuardSpec, tokens: Tokens, tokenizer: Any, asked: str, word: str) -> Ids:
    """The tokens of ``word`` where it follows ``asked``."""
    before, after = tokens(asked), tokens(asked + word)
    found = after[len(before) :] if after[: len(before)] == before else ()
    unknown = getattr(tokenizer, "unk_token_id", None)
    if not word or not found or (len(found) > 1 and not spec.split_words) or unknown in found:
        pieces = tokenizer.convert_ids_to_tokens(list(after[len(before) :]))
        raise UserError(
            f"{spec.name}: the verdict {word!r} is not one token after {asked!r}: its tokens there are {pieces}; "
            "split_words=True reads words of several"
        )
    return found


def _spellings(worth: Mapping[str, float], tokenizer: Any) -> dict[Ids, float]:
    """Every token of the vocabulary that spells one of the words, whatever its case and the blanks around it."""
    values = {word.strip().lower(): value for word, value in worth.items()}
    found: dict[Ids, float] = {}
    vocabulary: Iterable[tuple[str, int]] = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    special = set(tokenizer.all_special_ids)
    for piece, index in vocabulary:
        if index not in special and any(word in piece.lower() for word in values):
            value = values.get(tokenizer.decode([index]).strip().lower())
            if value is not None:
                found[(index,)] = value
    return found
