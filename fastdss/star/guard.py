"""The guard that users call: it judges conversations, and has streams that score a response while it is written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastdss.chat.encoder import Message
from fastdss.guards.guard import GuardModel

from .stream import StarStream, StarStreams


class Guard(GuardModel):
    """A model of transformers, its tokenizer, and the spec that says how to read a verdict from it.

    From call to call a guard keeps the keys and values of its template's beginning, and on a CPU where oneDNN is faster
    a prepacked second copy of the weights (``guard.packed.clear()`` frees it); both follow changes of the model, and so
    do streams. While it scores, the model has another attention: threads that score with it take turns, and no other
    code may use it meanwhile.

    Args:
        model: a causal LM, or a classifier where the spec says so.
        tokenizer: the model's tokenizer.
        spec: how the model is asked, and which next tokens are its answer.
        check: run a short text through the prefix tree and through the model itself, and compare the logits; False is
            for models that only ``method="per_prefix"`` can score: then the check waits until streams or
            ``method="auto"`` take the tree, and ``method="tree"`` takes it unchecked.

    Raises:
        ValueError: where the template does not show the guard prompt and response; where a verdict's word is missing,
            is no single token, or is no word of the model's vocabulary; and with ``check`` where the verdict's logits
            are not finite, or the prefix tree does not reproduce them.
    """

    def stream(
        self, prompt: str | Sequence[Message], *, every: int = 5, unit: str = "word", unit_tokenizer: Any = None
    ) -> StarStream:
        """Scores of a response while it is being written, see ``StarStream``.

        Args:
            prompt: text, or a list of messages.
            every: units per scored chunk.
            unit: ``"word"``, ``"token"``, ``"sentence"`` or ``"character"``.
            unit_tokenizer: the tokenizer whose tokens are counted; None: the guard's.

        Returns:
            StarStream: append the response's text to it.
        """
        return StarStream(self, prompt, every=every, unit=unit, unit_tokenizer=unit_tokenizer)

    def streams(self, *, budget: int | None = None) -> StarStreams:
        """Scores of many responses that are being written at once, see ``StarStreams``.

        Args:
            budget: tokens per forward pass; None: a number that depends on the device.

        Returns:
            StarStreams: open a stream on it for each response.
        """
        return StarStreams(self, budget=budget)
