"""STAR: a guard's P(safe) for every prefix of every response, at the cost of the distinct tokens."""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import takewhile
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from fastdss.chat.boundaries import find_ends, tidy_ends
from fastdss.chat.conversation import Conversation, Message
from fastdss.chat.encoder import text_spans
from fastdss.chat.formats import fits_columns, read_record
from fastdss.errors import RowError, UserError, UserTypeError
from fastdss.guards.guard import GuardModel
from fastdss.guards.loading import resolve_spec
from fastdss.guards.spec import GuardSpec
from fastdss.prefix.attention import attend_in_order
from fastdss.prefix.engine import Gate, Report, check_supported, reference_logits, tree_logits
from fastdss.prefix.packed_attention import attend_by_kernel, attend_packed
from fastdss.prefix.tree import PrefixTree, build_tree, shared_length
from fastdss.prefix.whole import batched_logits

from .guard import Guard
from .options import ScoringOptions
from .scored import Flag, ScoredResponse
from .scores import StarScores

_log = logging.getLogger(__name__)
_RELEASED_TEMPERATURE = 0.2 * 1.2  # temperature, and the repetition penalty that divides the verdict's logits
_RELEASED_NUCLEUS = 0.9
_SHORT = 4  # characters for each token of the context: what has fewer most likely fits


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
    """``scores[i][k] = softmax(verdict logits of guard(prompt_i, response_i[:ends[i][k]]))[safe]`` (arXiv 2505.17196,
    eq. 4).

    model: a ``Guard``, several (``combine``: mean or min of their scores), or a causal LM of transformers with
    ``tokenizer=`` and ``spec=`` (else found by ``model.name_or_path``). batch: ``{"prompt": [...], "response":
    [...]}``, a prompt being text or a list of messages, or ``{"messages": [...]}`` whose last turn, the assistant's,
    is judged; with ``turns="all"``, every assistant's turn as a row of its own.

    Boundaries: the end of every ``every``-th ``unit`` (word, token, sentence, character) and of the text. Tokens are
    the first guard's, or ``unit_tokenizer``'s, of the response on its own, without added tokens. ``ends`` gives the
    character ends instead. These, and ``max_tokens``, ``combine``, ``sharpen``, ``method``, ``backend``, ``budget`` and
    ``gemm``, are shortcuts to the fields of ``options``, see ``ScoringOptions``.
    approx: a ``TrunkProbe``, by which scores are approximated where it was shown to be near enough.
    ``progress`` shows a bar. Errors name the row (``RowError``), never its text.
    """
    options = (options or ScoringOptions()).with_said(
        every=every, unit=unit, turns=turns, max_tokens=max_tokens, combine=combine, sharpen=sharpen, method=method,
        backend=backend, budget=budget, gemm=gemm,
    )  # fmt: skip
    guards = as_guards(model, tokenizer, spec)
    judged = read_batch(batch, options.turns)
    if ends is not None and approx is not None:
        raise UserError("approx: expected boundaries by every and unit, as it was fitted, got ends")
    cuts = None if ends is None else _tidied(judged, ends)
    return score_turns(
        guards, judged, options, cuts=cuts, unit_tokenizer=unit_tokenizer, approx=approx, progress=progress
    )


class Settled(NamedTuple):
    """Of one response: which scores are exact ``[K]``, and where all were computed to compare, how far off the others
    would have been at most."""

    exact: Tensor
    missed: float | None = None


class ScoreGate(Gate, Protocol):
    """A gate that knows scores without their branches."""

    withdrawn: bool  # what was approximated must be computed after all

    def settle(self, scores: Tensor) -> list[Settled]:
        """Fill in what was not computed, and say of every response what was."""


class Approximation(Protocol):
    """What ``approx=`` takes, such as a ``TrunkProbe``."""

    def gate(
        self, guards: Sequence[GuardModel], judged: Sequence[Judged], kept: Sequence[int], options: ScoringOptions
    ) -> ScoreGate | None:
        """The gate of a batch, whose response i has ``kept[i]`` scores; None: all are computed."""


class Judged(NamedTuple):
    """A turn of a conversation to judge. Turns of one ``row`` stand together; errors call it ``name``."""

    conversation: Conversation
    turn: int
    row: int
    name: int

    @property
    def text(self) -> str:
        return self.conversation.turns[self.turn].answer.text


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
    """Scores of turns, in their order; ``options.turns`` is not asked. Turns of one conversation share prefix trees
    wherever that computes fewer tokens."""
    histories = [item.conversation.before(item.turn) for item in judged]
    responses = [item.text for item in judged]
    if cuts is None:
        tokenizer = unit_tokenizer or guards[0].tokenizer
        how: dict[str, Any] = {"every": options.every, "unit": options.unit}
        cuts = [find_ends(text, **how, spans=lambda text: text_spans(tokenizer, text)) for text in responses]
    forests = [
        [
            _tree(guard, item.name, history, text, cut, options.max_tokens)
            for item, history, text, cut in zip(judged, histories, responses, cuts, strict=True)
        ]
        for guard in guards
    ]
    kept = [
        min(tree.num_prefixes // guard.readouts for guard, tree in zip(guards, trees, strict=True))
        for trees in zip(*forests, strict=True)
    ]
    prompts = _numbered(histories)
    gate = None if approx is None else approx.gate(guards, judged, kept, options)
    opinions = []
    with _progress(sum(kept) * sum(guard.readouts for guard in guards), progress) as report:
        for guard, trees in zip(guards, forests, strict=True):
            trees = [tree.first(k * guard.readouts) for tree, k in zip(trees, kept, strict=True)]
            shared, first = _sharing(trees, [item.row for item in judged])
            logits = _logits(guard, shared, [prompts[i] for i in first], options, gate, report)
            opinions.append(_sharpened(guard, logits, options.sharpen))
    stacked = torch.stack(opinions)
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


def _sharing(trees: list[PrefixTree], rows: list[int]) -> tuple[list[PrefixTree], list[int]]:
    """Trees of one row joined where one trunk for both is fewer tokens; and which turn each tree begins with.

    Where a guard reads whole conversations, what it reads of a turn begins the rendering of the next. Where it reads
    the last exchange alone, two turns share the template's head and nothing else.
    """
    groups: list[list[int]] = []
    for i, tree in enumerate(trees):
        if groups and rows[groups[-1][0]] == rows[i]:
            last = trees[groups[-1][-1]]
            shared = shared_length(np.asarray(last.trunk), np.asarray(tree.trunk))
            lengths = [start + len(tail) for start, tail in zip(last.starts, last.tails, strict=True)]
            joined = sum(n - min(start, shared) for n, start in zip(lengths, last.starts, strict=True))
            if joined < len(last.trunk) + sum(map(len, last.tails)):
                groups[-1].append(i)
                continue
        groups.append([i])
    found = [
        trees[group[0]]
        if len(group) == 1
        else build_tree([trees[i].rendering(k) for i in group for k in range(trees[i].num_prefixes)])
        for group in groups
    ]
    return found, [group[0] for group in groups]


def as_guards(model: Any, tokenizer: Any, spec: GuardSpec | None) -> Sequence[GuardModel]:
    if isinstance(model, GuardModel):
        return [model]
    if isinstance(model, Sequence) and not isinstance(model, str):
        if not model or not all(isinstance(guard, GuardModel) for guard in model):
            raise UserTypeError("model: expected a Guard, a non-empty sequence of Guards, or a causal LM")
        return list(model)
    if not hasattr(model, "config") or not callable(model):
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
            f"got {type(batch).__name__}; rows: StarScorer reads them, or score_dataset for whole files"
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
            chat = read_record(dict(zip(batch, values, strict=True))).conversation
        except (TypeError, ValueError) as error:
            raise RowError(row, str(error)) from None
        last = len(chat.turns) - 1
        if chat.turns[last].role != "assistant":
            raise RowError(row, f"the last turn must be the assistant's, it is the {chat.turns[last].role}'s")
        chosen = [t for t, turn in enumerate(chat.turns) if turn.role == "assistant" and (turn.train or t == last)]
        judged += [Judged(chat, t, row, row) for t in (chosen if turns == "all" else [last])]
    return judged


def _tidied(judged: Sequence[Judged], ends: Sequence[Sequence[int]]) -> list[list[int]]:
    if len(ends) != len(judged):
        raise UserError(f"ends: {len(ends)} rows for {len(judged)} responses")
    tidied = []
    for row, (item, given) in enumerate(zip(judged, ends, strict=True)):
        try:
            tidied.append(tidy_ends(item.text, given))
        except (TypeError, ValueError) as error:
            raise RowError(row, str(error)) from None
    return tidied


def _tree(
    guard: GuardModel, row: int, history: list[Message], response: str, ends: list[int], max_tokens: int | None
) -> PrefixTree:
    """The row's prefix tree, cut down to the prefixes that fit ``max_tokens``."""
    limit = min(guard.max_tokens, max_tokens or guard.max_tokens)

    def rendered(ends: Sequence[int]) -> tuple[list[list[int]], list[int]]:
        """Renderings, and of each prefix the longest one's length."""
        ids = guard.encode_prefixes(history, response, ends)
        return ids, [max(map(len, ids[k : k + guard.readouts])) for k in range(0, len(ids), guard.readouts)]

    try:
        characters = len(response) + sum(len(turn["content"]) for turn in history)
        short = characters < limit * _SHORT  # else one rendering tells whether all of them are worth their time
        renderings, lengths = rendered(ends if short else ends[-1:])
        whole = lengths[-1]
        if whole > limit and max_tokens is None:
            raise UserError(
                f"{whole} tokens exceed the context of {guard.spec.name}, {limit}; pass max_tokens to score what fits"
            )
        if not short:
            if whole > limit:
                ends = ends[: bisect_left(ends, True, key=lambda end: rendered([end])[1][0] > limit)]
            renderings, lengths = rendered(ends) if ends else ([], [])
    except ValueError as error:
        raise RowError(row, str(error)) from error
    kept = len(list(takewhile(lambda length: length <= limit, lengths)))
    if not kept:
        raise RowError(row, f"even its first prefix exceeds {limit} tokens with the template and the prompt")
    return build_tree(renderings[: kept * guard.readouts])


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
            return batched_logits(guard.model, guard.token_ids, renderings, budget=options.budget, report=report)
        return reference_logits(guard.model, guard.token_ids, renderings, report)
    check_supported(guard.model, max(len(tree.trunk) for tree in trees))
    attend = {"auto": attend_packed, "torch": attend_in_order, "triton": attend_by_kernel}[options.backend]
    rows = guard.model, guard.token_ids, trees, prompts
    return tree_logits(
        *rows,
        budget=options.budget,
        gemm=options.gemm,
        attend=attend,
        packed=guard.packed,
        kept=guard.head,
        gate=gate,
        report=report,
    )


def _sharpened(guard: GuardModel, logits: Tensor, sharpen: float | str) -> Tensor:
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
