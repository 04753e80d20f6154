"""STAR: a guard's P(safe) for every prefix of every response, with each distinct token computed once."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from fastdss.chat.boundaries import find_ends, tidy_ends
from fastdss.chat.conversation import Message
from fastdss.chat.encoder import text_spans
from fastdss.chat.formats import read_record
from fastdss.chat.nulls import as_meant
from fastdss.chat.record import fits_columns
from fastdss.errors import RowError, UserError, UserTypeError, expect
from fastdss.guards.guard import GuardModel, expect_tokenizer, is_model
from fastdss.guards.loading import resolve_spec
from fastdss.guards.spec import GuardSpec
from fastdss.prefix.attention import attend_in_order
from fastdss.prefix.cpu_linear import preferred_gemm
from fastdss.prefix.engine import Report, check_supported, reference_logits, tree_logits
from fastdss.prefix.flash_attention import attend_by_flash
from fastdss.prefix.in_use import cpu_by_default
from fastdss.prefix.packed_attention import attend_by_kernel, attend_packed
from fastdss.prefix.rounds import Gate
from fastdss.prefix.tree import PrefixTree
from fastdss.prefix.whole import batched_logits

from .ahead import Ahead
from .forest import Judged as Judged
from .forest import Turn, cut_in_slices, make_forest
from .guard import Guard
from .options import ScoringOptions
from .scored import Flag, ScoredResponse
from .scores import StarScores

_log = logging.getLogger(__name__)
_RELEASED_TEMPERATURE = 0.2 * 1.2  # temperature times repetition penalty: both divide the verdict's logits
_RELEASED_NUCLEUS = 0.9  # top-p: a verdict of this share is the only one left to sample
_ATTEND = {"auto": attend_packed, "torch": attend_in_order, "triton": attend_by_kernel, "flash": attend_by_flash}


def star_scores(
    model: Any,
    batch: Mapping[str, Sequence[Any]],
    *,
    tokenizer: Any = None,
    spec: GuardSpec | None = None,
    every: int | None = None,
    unit: str | None = None,
    ends: Sequence[Sequence[int]] | None = None,
    unit_tokenizer: Any = None,
    turns: str | None = None,
    max_tokens: int | None = None,
    combine: str | None = None,
    sharpen: float | str | None = None,
    method: str | None = None,
    backend: str | None = None,
    budget: int | None = None,
    gemm: str | None = None,
    options: ScoringOptions | None = None,
    approx: Approximation | None = None,
    progress: bool = False,
) -> StarScores:
    """P(safe) of the prefixes of responses, as a guard sees it (arXiv 2505.17196, equation 4).

    ```python
    logits = guard(prompt[i], response[i][: ends[i][k]])     # of the verdict's words
    scores[i][k] = torch.softmax(logits, -1)[safe]
    ```

    Args:
        model: a ``Guard``, several of them, or a causal LM of transformers with ``tokenizer`` and ``spec``.
        batch: ``{"prompt": [...], "response": [...]}``, a prompt being text or a list of messages, or ``{"messages":
            [...]}`` whose last turn, the assistant's, is judged.
        tokenizer: the tokenizer of a model that is not a ``Guard``.
        spec: how such a model is asked; None: the known spec that fits the model.
        every: units per scored chunk: a prefix ends after every ``every``-th unit, and at the end of the text.
        unit: what a chunk counts, one of ``"word"``, ``"token"``, ``"sentence"`` and ``"character"``.
        ends: character ends of the prefixes of each response, instead of ``every`` and ``unit``.
        unit_tokenizer: the tokenizer whose tokens are counted; None: the first guard's. The response is tokenised on
            its own, without added tokens.
        turns: ``"last"``, or ``"all"`` to judge every turn of the assistant as a response of its own.
        max_tokens: the most tokens of a rendering; ``ScoringOptions`` says more of this and the next six.
        combine: how the scores of several guards become one, ``"mean"`` or ``"min"``.
        sharpen: the temperature of the verdict.
        method: ``"tree"`` or ``"per_prefix"``.
        backend: the implementation of attention.
        budget: tokens per forward pass.
        gemm: the library that multiplies matrices on a CPU.
        options: all of these at once; keywords that are given override them.
        approx: a ``TrunkProbe``, which approximates scores where it was shown that they are near enough.
        progress: show a bar.

    Returns:
        StarScores: the scored responses, in the order of the batch.

    Raises:
        RowError: for a row that cannot be judged; it names the row and never quotes its text.
        UserError: for options that are not allowed, and for guards that cannot take them.
    """
    options = ScoringOptions.given(options).with_said(
        every=every, unit=unit, turns=turns, max_tokens=max_tokens, combine=combine, sharpen=sharpen, method=method,
        backend=backend, budget=budget, gemm=gemm,
    )  # fmt: skip
    guards = as_guards(model, tokenizer, spec)
    judged = read_batch(batch, options.turns)
    if unit_tokenizer is not None:
        expect_tokenizer("unit_tokenizer", unit_tokenizer)
    if approx is not None:
        if not hasattr(approx, "gate"):
            raise UserTypeError(f"approx: expected a TrunkProbe, got {type(approx).__name__}")
        if ends is not None:
            raise UserError("approx: expected boundaries by every and unit, as it was fitted, got ends")
    cuts = None if ends is None else _tidied(judged, ends)
    return score_turns(
        guards, judged, options, cuts=cuts, unit_tokenizer=unit_tokenizer, approx=approx, progress=progress
    )


class Settled(NamedTuple):
    """For one response: which of its scores were computed ``[K]``, and, where all were computed for an audit, the
    largest error that their approximations would have had."""

    exact: Tensor
    missed: float | None = None


class ScoreGate(Gate, Protocol):
    """A gate that can give scores whose branches were not computed."""

    withdrawn: bool  # whether the audit spoke against the probe: what was approximated must be computed after all

    def settle(self, scores: Tensor) -> list[Settled]:
        """Write the approximations into ``scores``, and say for every response which scores were computed."""


class Approximation(Protocol):
    """What ``approx=`` takes, such as a ``TrunkProbe``."""

    def gate(
        self, guards: Sequence[GuardModel], judged: Sequence[Judged], kept: Sequence[int], options: ScoringOptions
    ) -> ScoreGate | None:
        """The gate for a batch in which response i has ``kept[i]`` scores; None: all scores are computed."""


@cpu_by_default()
def score_turns(
    guards: Sequence[GuardModel],
    judged: Sequence[Judged],
    options: ScoringOptions,
    *,
    cuts: list[list[int]] | None = None,
    unit_tokenizer: Any = None,
    approx: Approximation | None = None,
    progress: bool = False,
) -> StarScores:
    """The scores of the given turns, in their order; ``options.turns`` is ignored. Turns of one conversation share
    prefix trees wherever that saves tokens."""
    histories = [item.conversation.before(item.turn) for item in judged]
    responses = [item.text for item in judged]
    if cuts is None:
        tokenizer = guards[0].tokenizer if unit_tokenizer is None else unit_tokenizer
        how: dict[str, Any] = {"every": options.every, "unit": options.unit}
        cuts = [find_ends(text, **how, spans=lambda text: text_spans(tokenizer, text)) for text in responses]
    turns = [Turn(*row) for row in zip(judged, histories, responses, cuts, strict=True)]
    slices = [turns] if approx is not None else cut_in_slices(turns)
    if len(slices) > 1 and options.gemm == "auto":  # chosen once, so that it is the same for every slice
        options = options.with_said(gemm=preferred_gemm(*(guard.model for guard in guards)))
    ahead = Ahead(lambda some: make_forest(guards, some, options.max_tokens), slices)
    prompts = _numbered(histories)
    kept: list[int] = []
    by_guard: list[list[Tensor]] = [[] for _ in guards]
    gate = None
    with _progress(sum(map(len, cuts)) * sum(guard.readouts for guard in guards), progress) as report:
        for forest in ahead:
            if approx is not None:
                gate = approx.gate(guards, judged, forest.kept, options)
            for guard, trees, first, found in zip(guards, forest.trees, forest.first, by_guard, strict=True):
                numbers = [prompts[len(kept) + i] for i in first]
                found.append(sharpened(guard, _logits(guard, trees, numbers, options, gate, report), options.sharpen))
            report(forest.cut)
            kept += forest.kept
    stacked = torch.stack([torch.cat(found) for found in by_guard])
    combined = (stacked.mean(0) if options.combine == "mean" else stacked.amin(0)).float()
    settled = None if gate is None else gate.settle(combined)
    if gate is not None and gate.withdrawn:
        _log.warning("audited rows speak against the approximation: all scores are computed")
        return score_turns(guards, judged, options, cuts=cuts, unit_tokenizer=unit_tokenizer, progress=progress)
    scores = list(combined.split(kept))
    return StarScores(
        ScoredResponse(
            histories[i],
            responses[i],
            scores[i],
            cuts[i][: kept[i]],
            _flags(guards, histories[i], responses[i], cuts[i], scores[i]),
            item.row,
            item.conversation,
            item.turn,
            *(settled[i] if settled is not None else ()),
        )
        for i, item in enumerate(judged)
    )


def as_guards(model: Any, tokenizer: Any, spec: GuardSpec | None) -> Sequence[GuardModel]:
    """``model`` as a sequence of guards; a causal LM becomes one, with a tokenizer and a spec that fit it."""
    several = isinstance(model, Sequence) and not isinstance(model, str)
    if isinstance(model, GuardModel) or several:
        guards = list(model) if several else [model]
        if not guards or not all(isinstance(guard, GuardModel) for guard in guards):
            raise UserTypeError("model: expected a Guard, a non-empty sequence of Guards, or a causal LM")
        for name, value in (("tokenizer", tokenizer), ("spec", spec)):
            if value is not None:
                raise UserError(f"{name}: only for a model that is no Guard: a Guard has its own")
        return guards
    if not is_model(model):
        given = f"the text {model[:80]!r}: Guard.from_pretrained loads one by name" if isinstance(model, str) else None
        given = given or type(model).__name__
        raise UserTypeError(f"model: expected a Guard, a sequence of Guards, or a causal LM, got {given}")
    name = getattr(model, "name_or_path", "")
    if tokenizer is None:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(name)
    if spec is None:
        spec = resolve_spec(name, model.config.to_dict(), tokenizer)
    return [Guard(model, tokenizer, spec)]


def read_batch(batch: Mapping[str, Sequence[Any]], turns: str) -> list[Judged]:
    """The turns to judge of a batch of conversations in any known format."""
    if not isinstance(batch, Mapping):
        raise UserTypeError(
            "batch: expected a mapping of columns, {'prompt': [...], 'response': [...]} or {'messages': [...]}, "
            f"got {type(batch).__name__}; dict(frame) is one, and StarScorer reads rows, score_dataset whole files"
        )
    for name, values in batch.items():
        if isinstance(values, str) or not hasattr(values, "__len__"):
            raise UserTypeError(f"batch[{name!r}]: expected a list with one entry per row, got {type(values).__name__}")
    sizes = {name: len(values) for name, values in batch.items()}
    if len(set(sizes.values())) > 1:
        raise UserError(f"batch: {', '.join(f'{count} of {name}' for name, count in sizes.items())}")
    if not fits_columns(list(batch)):
        raise UserError(f"batch: expected 'prompt' and 'response', or 'messages'; got {sorted(batch)}")
    if not any(sizes.values()):
        raise UserError("batch: no rows")
    judged = []
    for row, values in enumerate(zip(*batch.values(), strict=True)):
        try:
            chat = read_record(as_meant(dict(zip(batch, values, strict=True)))).conversation
        except (TypeError, ValueError) as error:
            raise RowError(row, str(error)) from None
        last = len(chat.turns) - 1
        if chat.turns[last].role != "assistant":
            raise RowError(row, f"the last turn must be the assistant's, it is the {chat.turns[last].role}'s")
        chosen = [t for t, turn in enumerate(chat.turns) if turn.role == "assistant" and (turn.train or t == last)]
        judged += [Judged(chat, t, row, row) for t in (chosen if turns == "all" else [last])]
    return judged


def _tidied(judged: Sequence[Judged], ends: Sequence[Sequence[int]]) -> list[list[int]]:
    expect("ends", ends, Sequence, wanted="a list of ends for each response")
    if len(ends) != len(judged):
        raise UserError(f"ends: {len(ends)} rows for {len(judged)} responses")
    tidied = []
    for row, (item, given) in enumerate(zip(judged, ends, strict=True)):
        try:
            tidied.append(tidy_ends(item.text, given))
        except (TypeError, ValueError) as error:
            raise RowError(row, str(error)) from None
    return tidied


def _logits(
    guard: GuardModel,
    trees: list[PrefixTree],
    prompts: list[int],
    options: ScoringOptions,
    gate: Gate | None,
    report: Report,
) -> Tensor:
    if options.method == "per_prefix" or guard.bidirectional:
        renderings = [tree.rendering(k) for tree in trees for k in range(tree.num_prefixes)]
        if guard.bidirectional and options.method != "per_prefix":
            return batched_logits(
                guard.model,
                guard.token_ids,
                renderings,
                separator=guard.separator,
                budget=options.budget,
                report=report,
            )
        return reference_logits(guard.model, guard.token_ids, renderings, report, separator=guard.separator)
    check_supported(guard.model, max(len(tree.trunk) for tree in trees))
    if options.method == "auto":
        guard.check_tree()
    return tree_logits(
        guard.model,
        guard.token_ids,
        trees,
        prompts,
        budget=options.budget,
        gemm=options.gemm,
        attend=_ATTEND[options.backend],
        packed=guard.packed,
        kept=guard.head,
        gate=gate,
        report=report,
    )


def sharpened(guard: GuardModel, logits: Tensor, sharpen: float | str) -> Tensor:
    """P(safe) at the temperature ``sharpen``, or as the released sampling settings give it, with ``"paper"``."""
    if not isinstance(sharpen, str):
        return guard.scores(logits, sharpen)
    score = guard.scores(logits, _RELEASED_TEMPERATURE)
    return torch.where(score >= _RELEASED_NUCLEUS, 1.0, torch.where(score <= 1 - _RELEASED_NUCLEUS, 0.0, score))


def _flags(
    guards: Sequence[GuardModel], history: list[Message], response: str, cuts: list[int], scores: Tensor
) -> frozenset[Flag]:
    texts = [*(message["content"] for message in history), response]
    found = {
        Flag.EMPTY: not response.strip(),
        Flag.TRUNCATED: len(scores) < len(cuts),
        Flag.ONE_BOUNDARY: len(cuts) == 1 and bool(response.strip()),
        Flag.FAILED: not bool(torch.isfinite(scores).all()),
        Flag.CONTROL_TOKENS: any(guard.encoder.control_strings(text) for guard in guards for text in texts),
        Flag.DELIMITER: any(guard.quoted_delimiters(text) for guard in guards for text in texts),
    }
    return frozenset(name for name, present in found.items() if present)


def _numbered(histories: list[list[Message]]) -> list[int]:
    """Equal histories get equal numbers."""
    numbers: dict[tuple[Any, ...], int] = {}
    keys = [tuple((message["role"], message["content"]) for message in history) for history in histories]
    return [numbers.setdefault(key, len(numbers)) for key in keys]


@contextmanager
def _progress(total: int, shown: bool) -> Iterator[Report]:
    if not shown:
        yield lambda done: None
        return
    from tqdm.auto import tqdm

    with tqdm(total=total, unit="prefix", desc="STAR scores") as bar:
        yield bar.update
