"""Turns scores of chunks into weights of the policy's tokens, by character offsets in the policy's own template."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal, overload

import torch
from torch import Tensor

from fastdss.chat.conversation import Turn
from fastdss.chat.policy import PolicyChat
from fastdss.errors import RowError, UserError, expect_fields
from fastdss.models.batching import padded_rows

from .scored import ScoredConversation, ScoredResponse

IGNORE = -100
Row = dict[str, list[Any]]
_PADDING = {"attention_mask": 0, "labels": IGNORE, "token_weights": 0.0}
_ACROSS: dict[str, Callable[[list[float]], float]] = {
    "last": lambda scores: scores[-1],
    "min": min,
    "mean": lambda scores: sum(scores) / len(scores),
}


class TokenWeights(Sequence[Any]):
    """One row per conversation, as a trainer and a collator need it: lists that are aligned position by position.

    Each row is a dict of four lists of the same length T: ``input_ids``; ``attention_mask`` (all 1); ``labels``,
    equal to the id at the response's tokens and its end-of-turn token and -100 elsewhere; ``token_weights``, the STAR
    score of the *token at this position* (so with a loss that shifts, labels and weights shift together) and 0 where
    the label is -100. ``datasets.Dataset.from_list(list(weights))`` stores them; ``pad`` makes a batch.
    ``truncated[i]`` says whether row i was cut to ``max_length``.
    """

    def __init__(self, rows: list[Row], truncated: list[bool], pad_token_id: int) -> None:
        self.rows = rows
        self.truncated = truncated
        self.pad_token_id = pad_token_id

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        return self.rows[index]

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def pad(
        self, indices: Sequence[int] | None = None, *, side: str = "right", multiple_of: int = 1
    ) -> dict[str, Tensor]:
        """Rows (all, or those at ``indices``) as tensors ``[B, T]``, ready for ``model(**batch)`` after
        ``enable_dss``."""
        rows = self.rows if indices is None else [self.rows[i] for i in indices]
        return pad_rows(rows, self.pad_token_id, side=side, multiple_of=multiple_of)


def pad_rows(rows: Sequence[Row], pad_token_id: int, *, side: str = "right", multiple_of: int = 1) -> dict[str, Tensor]:
    """Rows of ``TokenWeights`` as tensors ``[B, T]``: long, and float32 for the weights; padding is ignored by the
    loss."""
    if side not in ("left", "right"):
        raise UserError(f"side: expected 'left' or 'right', got {side!r}")
    length = max((len(row["input_ids"]) for row in rows), default=0)
    length = -(-length // multiple_of) * multiple_of
    batch = {}
    for name in rows[0] if rows else ():
        padded = padded_rows([row[name] for row in rows], _PADDING.get(name, pad_token_id), length, left=side == "left")
        batch[name] = torch.tensor(padded, dtype=torch.float32 if name == "token_weights" else torch.long)
    return batch


@dataclass(frozen=True)
class AlignOptions:
    """How scores become weights of tokens, see ``StarScores.token_weights``; one definition and one check."""

    template: str | None = None
    template_kwargs: Mapping[str, Any] | None = None
    across: str = "last"
    end_of_turn: bool = True
    max_length: int | None = None
    truncation_side: Literal["left", "right"] = "right"

    def __post_init__(self) -> None:
        expect_fields(self)
        if self.across not in _ACROSS:
            raise UserError(f"across: expected one of {', '.join(_ACROSS)}, got {self.across!r}")
        if self.max_length is not None and self.max_length < 1:
            raise UserError(f"max_length: expected a positive integer, got {self.max_length}")

    def with_said(self, **said: object) -> AlignOptions:
        """These options with those of the keywords that are not None, which means "not said"."""
        return replace(self, **{name: value for name, value in said.items() if value is not None})  # type: ignore[arg-type]

    def kept(self, length: int) -> slice:
        """The part that stays of a row of ``length`` tokens."""
        if self.max_length is None or length <= self.max_length:
            return slice(length)
        return slice(self.max_length) if self.truncation_side == "right" else slice(length - self.max_length, length)


def align(
    scored: Sequence[ScoredConversation], tokenizer: Any, options: AlignOptions, *, first_row: int = 0
) -> TokenWeights:
    """See ``StarScores.token_weights``; ``first_row`` is the number that errors give to the first of ``scored``."""
    policy = PolicyChat(tokenizer, template=options.template, template_kwargs=options.template_kwargs)
    rows, truncated = [], []
    for index, item in enumerate(scored, first_row):
        try:
            row = align_conversation(policy, item, _ACROSS[options.across], options.end_of_turn)
        except ValueError as error:
            raise RowError(index, error.reason if isinstance(error, RowError) else str(error)) from error
        length = len(row["input_ids"])
        kept = options.kept(length)
        rows.append({name: values[kept] for name, values in row.items()})
        truncated.append(kept != slice(length))
    pad = next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)
    return TokenWeights(rows, truncated, pad)


def align_conversation(
    policy: PolicyChat,
    item: ScoredConversation,
    pick: Callable[[list[float]], float] = _ACROSS["last"],
    end_of_turn: bool = True,
) -> Row:
    """One training row: the tokens that the policy writes in the judged turns get labels, and scores as weights.

    An answer with neither text nor calls gets no label: it would teach the policy to end at once.
    """
    turns = item.conversation.turns
    judged_turns = [judged for judged in item.turns if not turns[judged.place].is_empty]
    for judged in judged_turns:
        _check_scored(turns[judged.place], judged)
    rendered = policy.render(item.conversation, [judged.place for judged in judged_turns])
    ids, offsets = rendered.encoding.ids, rendered.encoding.offsets
    labels = [IGNORE] * len(ids)
    weights = [0.0] * len(ids)
    for judged in judged_turns:
        turn, written = turns[judged.place], rendered.written[judged.place]
        scores, reached = judged.scores.tolist(), 0
        for t in range(written.first, written.last + (not written.ended)):
            begin, end = offsets[t]
            reached = max(reached, end)  # tokenizers that trim whitespace off offsets may report an earlier end
            place = written.place(reached)
            if not turn.untrained or turn.is_trained_at(place):
                labels[t] = ids[t]
                weights[t] = _weight(judged, scores, min(written.place(begin), place), place, pick)
        if written.ended and end_of_turn:
            labels[written.last] = ids[written.last]
            weights[written.last] = scores[-1] if judged.complete else 0.0
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels, "token_weights": weights}


def _check_scored(turn: Turn, judged: ScoredResponse) -> None:
    """Refuse missing scores and scores of another text, before they become weights of this answer."""
    place = f"turn {judged.place}: "
    ends, scores, text = judged.ends, judged.scores.tolist(), turn.answer.text
    if len(scores) != len(ends) or not ends:
        raise UserError(f"{place}expected as many scores as ends and at least one, got {len(scores)} and {len(ends)}")
    bad = next((k for k, score in enumerate(scores) if not 0 <= score <= 1), None)
    if bad is not None:
        raise UserError(f"{place}scores[{bad}] = {scores[bad]}: must be in [0, 1]")
    bad = next((k for k, (a, b) in enumerate(pairwise([-1, *ends])) if not a < b <= len(text)), None)
    if bad is not None:
        raise UserError(
            f"{place}ends[{bad}] = {ends[bad]}: must ascend and lie within the answer's {len(text)} characters"
        )
    length = len(text.rstrip())
    if judged.complete and ends[-1] < length:
        raise UserError(
            f"{place}the last boundary is {ends[-1]}, but the answer's text ends at {length}: score it anew"
        )


def _weight(
    judged: ScoredResponse, scores: list[float], begin: int, end: int, pick: Callable[[list[float]], float]
) -> float:
    """The score of the token that covers ``answer[begin:end]``; 0 after the part that the guard saw, so that the
    reference model alone decides there."""
    last = bisect_left(judged.ends, end)
    if last == len(judged.ends):
        if not judged.complete:
            return 0.0
        last -= 1  # the token is whitespace after the last boundary
    first = min(bisect_right(judged.ends, begin), last)
    return pick(scores[first : last + 1])
