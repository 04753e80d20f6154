"""The result of scoring: the scores of a batch, and the training weights that are made of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, overload

import torch
from torch import Tensor

from fastdss.chat.conversation import Message
from fastdss.errors import UserError

from . import view
from .align import AlignOptions, TokenWeights, align
from .scored import Flag, ScoredConversation, ScoredResponse


class StarScores(Sequence[ScoredResponse]):
    """Scored responses, in the order of the batch; ``star[i]`` is one of them.

    ``scores``, ``ends``, ``flags``, ``histories``, ``responses`` and ``rows`` list one field of all of them.
    """

    def __init__(self, responses: Iterable[ScoredResponse]) -> None:
        self._items = list(responses)

    def __len__(self) -> int:
        return len(self._items)

    @overload
    def __getitem__(self, index: int) -> ScoredResponse: ...
    @overload
    def __getitem__(self, index: slice) -> StarScores: ...
    def __getitem__(self, index: int | slice) -> ScoredResponse | StarScores:
        return StarScores(self._items[index]) if isinstance(index, slice) else self._items[index]

    def __repr__(self) -> str:
        values = [item.scores.min() for item in self if len(item.scores) and not item.failed]
        low = f", lowest {min(values):.3f}" if values else ""
        failed = sum(item.failed for item in self)
        return f"StarScores({len(self)} responses{low}{f', {failed} failed' if failed else ''})"

    @property
    def scores(self) -> list[Tensor]:
        """``[K_i]`` float32 each: P(safe) of each prefix."""
        return [item.scores for item in self]

    @property
    def ends(self) -> list[list[int]]:
        """``[K_i]`` each: character ends, so prefix k of response i is ``responses[i][: ends[i][k]]``."""
        return [item.ends for item in self]

    @property
    def flags(self) -> list[frozenset[Flag]]:
        """What is special about each response, see ``Flag``."""
        return [item.flags for item in self]

    @property
    def histories(self) -> list[list[Message]]:
        """The turns before each response."""
        return [item.history for item in self]

    @property
    def responses(self) -> list[str]:
        return [item.response for item in self]

    @property
    def rows(self) -> list[int]:
        """The row of the batch that each response comes from: i itself, unless ``turns="all"`` made several of one."""
        return [item.row for item in self]

    def final(self) -> Tensor:
        """``[B]``: the static verdict, P(safe) of each whole response; NaN where the guard did not see all of it."""
        return torch.tensor([item.final for item in self], dtype=torch.float32, device="cpu")

    def plot(self, row: int = 0, ax: Any = None) -> Any:
        """Draw P(safe) of one response along its characters; needs ``fastdss[viz]``.

        Args:
            row: the index of the response.
            ax: the matplotlib Axes to draw on; None: those of a new figure.

        Returns:
            Any: the Axes.

        Raises:
            IndexError: for a response that is not there.
        """
        if not -len(self) <= row < len(self):
            raise IndexError(f"row: expected one of {len(self)} rows, got {row}")
        return view.plot(self[row], f"row {row % len(self)}", ax)

    def _repr_html_(self) -> str:
        return view.html(self._items)

    def conversations(self) -> list[ScoredConversation]:
        """The responses grouped by conversation: those that are turns of one conversation become one item."""
        found: list[list[ScoredResponse]] = []
        for item in self:
            one = found and item.conversation is not None and found[-1][0].conversation is item.conversation
            if one and found[-1][0].row == item.row:
                found[-1].append(item)
            else:
                found.append([item])
        return [ScoredConversation(items[-1].chat, items) for items in found]

    def to_training_rows(self) -> list[dict[str, Any]]:
        """The rows that ``prepare_dss_dataset`` and ``DSSSFTTrainer`` read, as plain lists.

        Returns:
            list: one row for each conversation: its ``messages``, its ``tools`` as JSON where there are any, and
                ``star``, the scores of its judged turns, with ``exact`` where some of them are approximations.
        """
        rows = []
        for chat, items in self.conversations():
            star = [
                {
                    "turn": item.place,
                    "text": item.response,
                    "ends": item.ends,
                    "scores": item.scores.tolist(),
                    "flags": sorted(item.flags),
                    **({} if item.exact is None or bool(item.exact.all()) else {"exact": item.exact.tolist()}),
                }
                for item in items
            ]
            tools = {"tools": json.dumps(list(chat.tools), ensure_ascii=False)} if chat.tools else {}
            rows.append({"messages": chat.records(), **tools, "star": star})
        return rows

    def token_weights(
        self,
        tokenizer: Any,
        *,
        template: str | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
        across: str | None = None,
        end_of_turn: bool | None = None,
        max_length: int | None = None,
        truncation_side: str | None = None,
        failed: str = "error",
    ) -> TokenWeights:
        """Ids, labels and the weight of every label, through the policy's chat template; one row per conversation.

        The end-of-turn token gets the last score. Tokens beyond what the guard saw get weight 0, so that the reference
        model alone decides there. Control strings in content stay literal text here too.

        Args:
            tokenizer: the policy's tokenizer, a fast one.
            template: the chat template; None: the tokenizer's own.
            template_kwargs: further variables for the template.
            across: the score of a token that touches several chunks: ``"last"`` (the default), that of the chunk in
                which its last character lies, or the ``"min"`` or ``"mean"`` of their scores.
            end_of_turn: whether the token that ends a turn has a label; None: yes.
            max_length: the most tokens of a row; None: no limit.
            truncation_side: the end at which a longer row is cut, ``"left"`` or ``"right"``; None: right.
            failed: ``"error"`` raises on rows without scores, ``"zero"`` gives them weight 0.

        Returns:
            TokenWeights: rows with ``input_ids``, ``attention_mask``, ``labels`` and ``token_weights``.

        Raises:
            UserError: for failed rows, and where the tokenizer or the template does not show where the turns lie.
        """
        if failed not in ("error", "zero"):
            raise UserError(f"failed: expected one of error, zero, got {failed!r}")
        bad = [i for i, item in enumerate(self) if item.failed]
        if bad and failed == "error":
            raise UserError(
                f"rows {bad[:10]} have no score (the guard failed on them); drop them, or pass failed='zero'"
            )
        usable = [replace(item, scores=item.scores.new_zeros(len(item.ends))) if item.failed else item for item in self]
        options = AlignOptions().with_said(
            template=template,
            template_kwargs=template_kwargs,
            across=across,
            end_of_turn=end_of_turn,
            max_length=max_length,
            truncation_side=truncation_side,
        )
        return align(StarScores(usable).conversations(), tokenizer, options)
