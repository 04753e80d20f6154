"""What scoring makes: the scores of a batch, and the training weights that follow from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fastdss.chat.conversation import plain
from fastdss.chat.encoder import Conversation

from . import view
from .align import Scored, ScoredTurn, TokenWeights, align


@dataclass(frozen=True)
class StarScores:
    """Scores of a batch, row by row in its order.

    ``rows[i]`` is the row of the batch that row i comes from: i itself, unless ``turns="all"`` made several of one.
    ``scores[i]``: ``[K_i]`` float32, P(safe) of each prefix; ``ends[i]``: ``[K_i]`` character ends, so prefix k is
    ``responses[i][:ends[i][k]]``. ``flags[i]`` names what is special about row i: ``"empty"`` (no text; one score, at
    end 0), ``"control_tokens"`` (content spells control tokens; scored as literal text), ``"delimiter"`` (content
    quotes a plain-text delimiter of the guard's template), ``"truncated"`` (prefixes beyond ``max_tokens`` have no
    score), ``"failed"`` (the guard's logits are not finite; scores are NaN).
    """

    scores: list[Tensor]
    ends: list[list[int]]
    flags: list[frozenset[str]]
    histories: list[Conversation]
    responses: list[str]
    rows: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.scores)

    def final(self) -> Tensor:
        """``[B]``: the static verdict, P(safe) of each whole response; NaN where the guard did not see all of it."""
        unseen = torch.tensor(["truncated" in flags for flags in self.flags])
        return torch.stack([scores[-1] for scores in self.scores]).masked_fill(unseen, float("nan"))

    def plot(self, row: int = 0, ax: Any = None) -> Any:
        """Draw P(safe) of row ``row`` along its characters with matplotlib (``[viz]``); returns the Axes.

        ``ax``: where to draw, else a new figure. Raises ``IndexError`` for a row that is not there.
        """
        return view.plot(self, row, ax)

    def _repr_html_(self) -> str:
        return view.html(self)

    def token_weights(
        self,
        tokenizer: Any,
        *,
        template: str | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
        across: str = "last",
        end_of_turn: bool = True,
        max_length: int | None = None,
        truncation_side: str = "right",
        failed: str = "error",
    ) -> TokenWeights:
        """Training rows for the policy: ids, labels and the weight of every label, through the policy's chat template.

        A token gets the score of the chunk that its last character lies in (``across="last"``), or the min or mean
        over the chunks it touches. The end-of-turn token gets the last score. Tokens beyond what the guard saw get
        weight 0, so the reference model alone decides there. ``failed="error"`` raises on failed rows, ``"zero"``
        gives them weight 0. Control strings in content stay literal text here too. ``tokenizer`` must be a fast one.
        """
        if failed not in ("error", "zero"):
            raise ValueError(f"failed: expected 'error' or 'zero', got {failed!r}")
        bad = [i for i, flags in enumerate(self.flags) if "failed" in flags]
        if bad and failed == "error":
            raise ValueError(
                f"rows {bad[:10]} have no score (the guard failed on them); drop them, or pass failed='zero'"
            )
        rows = self.scored_conversations()
        return align(
            rows,
            tokenizer,
            template=template,
            template_kwargs=template_kwargs,
            across=across,
            end_of_turn=end_of_turn,
            max_length=max_length,
            truncation_side=truncation_side,
        )

    def scored_conversations(self) -> list[Scored]:
        """One conversation for all of its judged turns."""
        found: dict[int, list[int]] = {}
        for place in range(len(self)):
            found.setdefault(self.rows[place] if self.rows else place, []).append(place)
        return [self._scored(places) for places in found.values()]

    def _scored(self, places: list[int]) -> Scored:
        """One conversation with all its judged turns; the last of them has the others among what came before it."""
        last = places[-1]
        chat = plain([*self.histories[last], {"role": "assistant", "content": self.responses[last]}])
        turns = [
            ScoredTurn(
                len(self.histories[i]),
                self.ends[i],
                [0.0] * len(self.ends[i]) if "failed" in self.flags[i] else self.scores[i].tolist(),
                "truncated" not in self.flags[i],
            )
            for i in places
        ]
        return Scored(chat, turns)
