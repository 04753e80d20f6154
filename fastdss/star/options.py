"""The options for scoring a response, defined and checked once for all functions and commands that take them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

from fastdss.errors import UserError, expect, expect_fields

Unit = Literal["word", "token", "sentence", "character"]
Combine = Literal["mean", "min"]
Method = Literal["auto", "tree", "per_prefix"]
COMBINE, METHODS = get_args(Combine), get_args(Method)


@dataclass(frozen=True)
class ScoringOptions:
    """The options of ``star_scores``, ``StarScorer``, streams and ``fastdss score``.

    Args:
        every: units per scored chunk.
        unit: what a chunk counts: ``"word"``, ``"token"``, ``"sentence"`` or ``"character"``.
        turns: ``"last"`` judges the last turn of the assistant in a conversation, ``"all"`` every one.
        max_tokens: the most tokens of a rendering: longer prefixes are left out and the row is flagged; None: a
            rendering beyond the guard's context is an error.
        combine: how the scores of several guards become one: ``"mean"`` or ``"min"``.
        sharpen: a temperature that divides the verdict's logits; ``"paper"`` mimics the released sampling settings.
        method: ``"tree"`` computes each distinct token once, ``"per_prefix"`` makes one forward per prefix;
            ``"auto"`` is the tree.
        backend: ``"triton"`` runs one attention kernel per layer and micro-batch, ``"torch"`` SDPA; ``"auto"`` takes
            the kernel on a GPU where it runs. ``"flash"`` is torch's flash-attn, for 16-bit models without softcaps,
            sinks and windows; ``"auto"`` never takes it, since no GPU has measured where it wins.
        gemm: on a CPU, the library that multiplies fp32 matrices: ``"default"``, ``"onednn"``, or ``"auto"``.
        budget: tokens per forward pass; None: a number that depends on the device.

    Raises:
        UserError: for a value that is not one of these.
    """

    every: int = 5
    unit: Unit = "word"
    turns: Literal["last", "all"] = "last"
    max_tokens: int | None = None
    combine: Combine = "mean"
    sharpen: float | Literal["paper"] = 1.0
    method: Method = "auto"
    backend: Literal["auto", "torch", "triton", "flash"] = "auto"
    gemm: Literal["auto", "default", "onednn"] = "auto"
    budget: int | None = None

    def __post_init__(self) -> None:
        expect_fields(self)
        for name in ("every", "max_tokens", "budget"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name}: expected a positive integer, got {value!r}")
        if self.sharpen != "paper" and not 0 < self.sharpen < math.inf:
            raise UserError(f"sharpen: expected a positive temperature or 'paper', got {self.sharpen!r}")
        if self.method == "per_prefix" and self.backend in ("triton", "flash"):
            expected = "expected auto or torch with method='per_prefix', which has no tree"
            raise UserError(f"backend: {expected}, got {self.backend!r}")

    @classmethod
    def given(cls, options: ScoringOptions | None) -> ScoringOptions:
        """``options``, or the default ones for None; anything else is refused."""
        if options is not None:
            expect("options", options, ScoringOptions, wanted="ScoringOptions")
        return options or cls()

    def with_said(self, **said: object) -> ScoringOptions:
        """These options with those of the keywords that are not None, which means "not said"."""
        return replace(self, **{name: value for name, value in said.items() if value is not None})  # type: ignore[arg-type]
