"""From the data to training rows: scored now or earlier, aligned with the policy's tokens, every lost row counted."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from fastdss.chat.policy import PolicyChat
from fastdss.chat.record import Columns
from fastdss.corpus.rows import DataOptions, FailedRow, Row, read_rows
from fastdss.corpus.run import score_dataset
from fastdss.corpus.scorer import StarScorer
from fastdss.corpus.store import ScoredRow, joined
from fastdss.corpus.understood import Understood, kind_of_reason
from fastdss.errors import RowError, UserError
from fastdss.star.align import IGNORE, align_conversation
from fastdss.star.scored import ScoredConversation, ScoredResponse

from ..scored_rows import with_scores
from .settings import TrainSettings

_log = logging.getLogger(__name__)
# Conversations that are rendered by the policy's template before the guard works for hours. A choice: enough to tell a
# template that refuses the data from a few odd rows, and rendered in a second.
_TRIED = 64


@dataclass
class RowCounts:
    """How many rows were read, and what became of those that are not trained."""

    read: int = 0
    counts: Counter[str] = field(default_factory=Counter)  # by what became of a row
    reasons: Counter[str] = field(default_factory=Counter)  # the same, also by reason
    examples: dict[str, str] = field(default_factory=dict)  # the first row's reason of each kind, whole

    def lose(self, how: str, reason: str) -> None:
        """Count a row that is not trained; ``how`` it was lost is one of a few phrases."""
        kind = f"{how}: {kind_of_reason(reason)}"
        self.counts[how] += 1
        self.reasons[kind] += 1
        self.examples.setdefault(kind, reason)

    def as_json(self) -> dict[str, Any]:
        """What the report and the model's card show."""
        reasons = {self.examples[kind]: count for kind, count in self.reasons.most_common(20)}
        counts = {name: count for name, count in self.counts.items() if count}
        return {"read": self.read, **counts, **({"reasons": reasons} if reasons else {})}


def data_options(settings: TrainSettings) -> DataOptions:
    """How the data is read: the same options as of ``fastdss score``."""
    given_id = "" if settings.number_rows else settings.id_column
    columns = Columns(settings.prompt_column, settings.response_column, settings.messages_column, given_id)
    split, config = settings.split or None, settings.config_name or None
    return DataOptions(columns, settings.format, split, config, settings.turns, settings.max_bytes)


def holds_scores(settings: TrainSettings) -> bool:
    """Whether the data's first conversation comes with scores."""
    rows = (row for row in read_rows([settings.data], data_options(settings)) if isinstance(row, Row))
    first = next(rows, None)
    return first is not None and first.reading is not None and first.reading.scored


def check_template(settings: TrainSettings, tokenizer: Any) -> None:
    """Raise ``UserError`` where the policy's chat template refuses most of the first conversations."""
    policy = PolicyChat(tokenizer)
    tried, tools_unseen = 0, False
    refused: list[str] = []
    for row in islice(read_rows([settings.data], data_options(settings)), _TRIED):
        if isinstance(row, Row):
            tried += 1
            tools_unseen = tools_unseen or (bool(row.conversation.tools) and not policy.shows_tools)
            try:
                policy.render(row.conversation, row.judged)
            except ValueError as error:
                refused.append(str(error))
    if tools_unseen:
        _log.warning(
            "the chat template of %s has no place for tools: it will not see their definitions", settings.model
        )
    if len(refused) * 2 > tried:
        raise UserError(f"data: {len(refused)} of the first {tried} conversations cannot be trained: {refused[0]}")
    if refused:
        _log.warning("%d of the first %d conversations cannot be trained: %s", len(refused), tried, refused[0])


def score_rows(settings: TrainSettings, folder: Path, device: str, *, progress: bool = False) -> None:
    """Score the data into ``folder`` by ``score_dataset``, which uses scores that an earlier run finished there."""
    revision = settings.guard_revision or None
    scorer = StarScorer(
        settings.guard,
        every=settings.every,
        unit=settings.unit,
        max_tokens=settings.max_tokens or None,
        revision=revision,
        device=device,
    )

    def tell(understood: Understood) -> None:
        for line in understood.lines():
            _log.info(line)

    score_dataset(settings.data, folder, scorer, data=data_options(settings), tell=tell, progress=progress)


def scored_here(folder: Path, row_counts: RowCounts) -> Iterator[ScoredConversation]:
    """Conversations with their scores from a folder of ``fastdss score``; a row without scores is counted as lost."""
    for index, (row, scored) in enumerate(joined(folder)):
        row_counts.read += 1
        responses = _responses(index, row, scored)
        if scored.left_out:
            row_counts.lose("left out, nothing to train", scored.error or "")
        elif isinstance(row, FailedRow) or not responses:
            row_counts.lose("without scores", scored.reason or "it has no scores")
        else:
            for turn in scored.turns:
                if turn.error is not None:
                    row_counts.counts["turns without scores"] += 1
            yield ScoredConversation(row.conversation, responses)


def _responses(index: int, row: Row | FailedRow, scored: ScoredRow) -> list[ScoredResponse]:
    if isinstance(row, FailedRow):
        return []
    return [
        ScoredResponse.in_conversation(row.conversation, turn.turn, turn.scores, turn.ends, turn.flags, index)
        for turn in scored.scored
    ]


def scored_before(settings: TrainSettings, row_counts: RowCounts) -> Iterator[ScoredConversation]:
    """Conversations of data that comes with scores; nothing is scored again."""
    for index, row in enumerate(read_rows([settings.data], data_options(settings))):
        row_counts.read += 1
        if isinstance(row, FailedRow):
            row_counts.lose("left out, nothing to train" if row.left_out else "not read", row.reason)
            continue
        try:
            yield with_scores(index, row.conversation, row.others)
        except RowError as error:
            row_counts.lose("without scores", error.reason)


def training_rows(
    conversations: Sequence[ScoredConversation], tokenizer: Any, max_length: int, row_counts: RowCounts
) -> list[dict[str, list[Any]]]:
    """Aligned rows, cut on the right to ``max_length``; rows that the policy's template refuses are counted as lost."""
    policy = PolicyChat(tokenizer)
    rows = []
    for conversation in conversations:
        try:
            row = align_conversation(policy, conversation)
        except ValueError as error:
            row_counts.lose("not taken by the policy's template", str(error))
            continue
        cut = {name: row[name][:max_length] for name in ("input_ids", "labels", "token_weights")}
        row_counts.counts["cut to max_length"] += len(row["input_ids"]) > max_length
        if any(label != IGNORE for label in cut["labels"][1:]):
            rows.append(cut)
        else:
            row_counts.lose("without a label within max_length", f"no label within {max_length} tokens")
    for kind, count in row_counts.reasons.most_common():
        _log.warning("%d of %d rows are not trained, %s", count, row_counts.read, row_counts.examples[kind])
    if not rows:
        raise UserError(
            f"data: none of the {row_counts.read} rows can be trained; {next(iter(row_counts.examples.values()), '')}"
        )
    return rows
