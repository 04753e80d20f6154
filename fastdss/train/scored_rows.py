"""Rows that hold a conversation and its scores, as ``fastdss merge``, ``StarScorer`` and ``StarScores`` make them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fastdss.chat.conversation import Conversation
from fastdss.chat.formats import read_record
from fastdss.chat.nulls import as_meant
from fastdss.chat.turns import parsed
from fastdss.errors import RowError, UserError
from fastdss.star.scored import Flag, ScoredConversation, ScoredResponse
from fastdss.star.scores import StarScores


def holds_scores(names: Sequence[str]) -> bool:
    """Whether a table of these columns holds scored conversations."""
    return "star" in names or {"scores", "ends"} <= set(names)


def read_scored(index: int, row: Mapping[str, Any]) -> ScoredConversation:
    """The conversation and the scores of row ``index``.

    The row holds a conversation in any known format, and either ``star``, a list of ``{turn, text, ends, scores,
    flags}``, or ``scores``, ``ends`` and ``flags`` of the last turn. Raises ``RowError`` for a row without usable
    scores, so that it cannot count as safe.
    """
    try:
        conversation = read_record(as_meant(row)).conversation
    except (TypeError, ValueError) as error:
        raise RowError(index, str(error)) from None
    return with_scores(index, conversation, row)


def with_scores(index: int, conversation: Conversation, row: Mapping[str, Any]) -> ScoredConversation:
    """The conversation, which was read from ``row``, with the scores in that row."""
    try:
        star = row.get("star")
        star = parsed(star) if isinstance(star, str) else star
        if star is None:
            missing = [name for name in ("scores", "ends") if row.get(name) is None]
            if missing:
                missing = ["star"] if "star" in row else missing
                raise UserError(
                    f"it has no {' and no '.join(missing)}; it has {sorted(row)}: drop the row, or score it"
                )
            return ScoredConversation(conversation, [_last_turn(conversation, row)])
        if not star:
            reason = row.get("error")
            why = f"the scorer's reason: {reason[:200]}" if isinstance(reason, str) and reason else "star is empty"
            raise UserError(f"it has no scores ({why}): drop the row (dataset.filter), or score it anew")
        return ScoredConversation(conversation, [_turn(conversation, judged) for judged in star])
    except (TypeError, ValueError) as error:
        raise RowError(index, str(error)) from None


def scored_rows(scores: Any) -> Iterator[ScoredConversation]:
    """Scored conversations, from ``StarScores`` or from rows; a conversation with several judged turns is one item."""
    if isinstance(scores, StarScores):
        yield from scores.conversations()
    else:
        yield from (read_scored(index, row) for index, row in enumerate(scores))


def _last_turn(conversation: Conversation, row: Mapping[str, Any]) -> ScoredResponse:
    last = len(conversation.turns) - 1
    role = conversation.turns[last].role
    if role != "assistant":
        raise UserError(f"expected the last turn to be the assistant's, got {role!r}")
    return _checked(conversation, last, row["ends"], row["scores"], row.get("flags"))


def _turn(conversation: Conversation, judged: Any) -> ScoredResponse:
    if not isinstance(judged, Mapping) or any(judged.get(name) is None for name in ("turn", "ends", "scores")):
        raise UserError("star: expected turn, ends and scores in each of its entries")
    t = judged["turn"]
    if not isinstance(t, int) or not 0 <= t < len(conversation.turns) or conversation.turns[t].role != "assistant":
        raise UserError(f"star: expected turns of the assistant, got turn {t} of {len(conversation.turns)} messages")
    text = judged.get("text")
    if text is not None and text != conversation.turns[t].answer.text:
        raise UserError(f"star: the text that was scored is not that of message {t}: score it anew")
    return _checked(conversation, t, judged["ends"], judged["scores"], judged.get("flags"))


def _checked(conversation: Conversation, turn: int, ends: Any, scores: Any, flags: Any) -> ScoredResponse:
    scores, ends, flags = list(scores), list(ends), list(flags if flags is not None else ())
    if len(scores) != len(ends) or not ends:
        raise UserError(f"expected as many scores as ends and at least one, got {len(scores)}, {len(ends)}")
    if any(value is None or isinstance(value, str) for value in (*scores, *ends)):
        raise UserError("scores and ends: expected numbers: drop the row, or score it anew")
    if Flag.FAILED in flags or any(not 0 <= score <= 1 for score in scores):
        raise UserError(f"it has no usable score (expected numbers in [0, 1], flags {sorted(flags)}): drop it")
    return ScoredResponse.in_conversation(conversation, turn, scores, ends, flags)
