"""``StarScorer``, which every engine runs: a picklable callable that scores a batch of rows with one or more guards."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, InitVar, dataclass, field
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, Protocol

from fastdss.errors import RowError, UserError, UserTypeError, expect
from fastdss.models.batching import length_batches
from fastdss.star.options import ScoringOptions
from fastdss.star.scored import Flag

from .columns import star_type, with_columns
from .guards import GuardSource
from .merge import star_of
from .rows import DATA, DataOptions, FailedRow, Row, read_rows
from .store import ScoredRow, ScoredTurn
from .tables import records_of

if TYPE_CHECKING:
    from fastdss.guards.spec import GuardSpec
    from fastdss.star.guard import Guard
    from fastdss.star.scored import ScoredResponse
    from fastdss.star.scoring import Approximation, Judged

    GuardLike = str | Path | Guard

# Raised when the same guard and options give other scores than before, or when the columns of shards change.
SCORING_VERSION = 4
# Limits of a batch: a choice. It is rendered and its trees are built in one go, and progress is reported once a batch.
BATCH_ROWS = 64
BATCH_CHARACTERS = 1 << 18

Report = Callable[[int], None]  # called with the number of rows that were just finished


class Scorer(Protocol):
    """What ``score_dataset`` needs of a scorer."""

    def identity(self) -> dict[str, Any]:
        """What the scores depend on, as JSON; ``guard`` is a name for people and no part of it."""

    def settle(self, earlier: Mapping[str, str]) -> dict[str, str]:
        """Fix choices that change scores by rounding only, such as the GEMM library; returns them.

        earlier: those of an earlier run, which are taken over.
        """

    def score_rows(self, rows: Sequence[Row], report: Report) -> list[ScoredRow]:
        """Scores in the order of ``rows``."""


@dataclass
class StarScorer:
    """Adds the columns ``star`` and ``error`` to a batch of rows, by ``star_scores``.

    ```python
    dataset.map(StarScorer("tiny"), batched=True)  # the batch function of other engines too
    ```

    A batch is a mapping from columns to lists of values, a pyarrow table or a pandas frame; its rows are conversations
    in any known format. For a mapping the result holds the two new columns, for a table or a frame it is the same one
    with the two columns added, as ``datasets`` and Ray expect. Their Arrow types are the same in every batch.

    ``star`` lists for each judged turn ``{turn, text, ends, scores, flags, exact}`` (``exact`` is null where all scores
    are); ``prepare_dss_dataset`` reads it. ``error`` says why a row or one of its turns has no scores, else it is null.
    A row without scores has an empty ``star``; the other rows are scored.

    Args:
        guard: ``"tiny"``, a Hub id, a folder (safetensors; no remote code runs), a loaded ``Guard``, or several of
            these. Named guards load on the first batch, in the process that scores, so that the scorer pickles as a few
            strings.
        options: see ``ScoringOptions``; the next nine are shortcuts to its fields.
        every: units per scored chunk.
        unit: what a chunk counts.
        max_tokens: the longest rendering that is scored.
        combine: how several guards' scores become one, ``"mean"`` or ``"min"``.
        sharpen: temperature of the verdict.
        method: ``"tree"`` or ``"per_prefix"``.
        backend: which attention runs.
        gemm: which library multiplies on a CPU.
        budget: tokens per forward pass.
        spec: how a single named guard is asked, see ``Guard.from_pretrained``; the next two are for such a guard too.
        guard_options: changes of its spec.
        revision: commit, tag or branch of its Hub id.
        dtype: dtype of named guards' weights.
        device: ``"auto"`` is the current GPU, or the CPU where there is none.
        data: how rows are read, and which turns are judged.

    Raises:
        UserError: for options that no guard takes.
    """

    guard: GuardLike | Sequence[GuardLike]
    _: KW_ONLY
    options: ScoringOptions = field(default_factory=ScoringOptions)
    every: InitVar[int | None] = None
    unit: InitVar[str | None] = None
    max_tokens: InitVar[int | None] = None
    combine: InitVar[str | None] = None
    sharpen: InitVar[float | str | None] = None
    method: InitVar[str | None] = None
    backend: InitVar[str | None] = None
    gemm: InitVar[str | None] = None
    budget: InitVar[int | None] = None
    spec: GuardSpec | str | None = None
    guard_options: Mapping[str, Any] = field(default_factory=dict)
    revision: str | None = None
    dtype: str = "auto"
    device: str = "auto"
    data: DataOptions = DATA
    _sources: list[GuardSource] = field(init=False, repr=False, compare=False)
    _loaded: list[Guard] | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(
        self,
        every: int | None,
        unit: str | None,
        max_tokens: int | None,
        combine: str | None,
        sharpen: float | str | None,
        method: str | None,
        backend: str | None,
        gemm: str | None,
        budget: int | None,
    ) -> None:
        expect("options", self.options, ScoringOptions, wanted="ScoringOptions")
        expect("guard_options", self.guard_options, Mapping)
        expect("data", self.data, DataOptions)
        for name in ("dtype", "device"):
            expect(name, getattr(self, name), str)
        expect("revision", self.revision, str, NoneType)
        self.options = self.options.with_said(
            every=every, unit=unit, max_tokens=max_tokens, combine=combine, sharpen=sharpen, method=method,
            backend=backend, gemm=gemm, budget=budget,
        )  # fmt: skip
        guards: list[GuardLike] = []
        if isinstance(self.guard, str) or not isinstance(self.guard, Sequence):
            guards.append(self.guard)
        else:
            guards.extend(self.guard)
        if not guards:
            raise UserError("guard: expected at least one, got none")
        for guard in guards:
            if not isinstance(guard, str | Path) and not (hasattr(guard, "spec") and hasattr(guard, "model")):
                kinds = "'tiny', a Hub id, a folder or a Guard"
                raise UserTypeError(f"guard: expected {kinds}, got {type(guard).__name__}")
        how = {
            "spec": self.spec,
            "guard_options": self.guard_options or None,
            "revision": self.revision,
            "dtype": None if self.dtype == "auto" else self.dtype,
        }
        given = [name for name, value in how.items() if value is not None]
        if given and any(guard == "tiny" or not isinstance(guard, str | Path) for guard in guards):
            raise UserError(f"{', '.join(given)}: only for a guard that is loaded by id or from a folder")
        of_one = [name for name in given if name != "dtype"]
        if len(guards) > 1 and of_one:
            raise UserError(f"{', '.join(of_one)}: of one guard, got {len(guards)}; load them as Guards instead")
        check = self.options.method != "per_prefix"  # that method also takes guards that the tree engine cannot run
        self._sources = [
            GuardSource(guard, self.spec, self.revision, self.dtype, self.guard_options, check) for guard in guards
        ]

    def __call__(self, batch: Any) -> Any:
        import pyarrow as pa

        rows = list(read_rows([_records_of(batch)], self.data))
        if any(isinstance(row, Row) and row.reading and (row.reading.scored or "star" in row.others) for row in rows):
            raise UserError("the rows hold scores already (column star): remove_columns('star') to judge them anew")
        scored = score_readable(self, rows, lambda done: None)
        star = [
            [] if isinstance(row, FailedRow) else star_of(row, found) for row, found in zip(rows, scored, strict=True)
        ]
        errors = [found.error or next((t.error for t in found.turns if t.error), None) for found in scored]
        return with_columns(batch, {"star": pa.array(star, star_type()), "error": pa.array(errors, pa.string())})

    def __getstate__(self) -> dict[str, Any]:
        """The state without loaded guards, but with a hash of what scores depend on: ``datasets`` caches results by the
        pickle of the function, and must not return those of a guard that was trained since."""
        return self.__dict__ | {"_loaded": None, "depends_on": json.dumps(self.identity(), sort_keys=True)}

    def score_rows(self, rows: Sequence[Row], report: Report, approx: Approximation | None = None) -> list[ScoredRow]:
        """Scores in the order of ``rows``, computed in batches of similar length; the same rows make the same batches.

        It raises only errors that no single row causes: a device that fails, or options that a guard does not take.
        """
        found: dict[int, ScoredRow] = {}
        self._load()
        for batch in scoring_batches(rows):
            for index, scored in zip(batch, self._scored([rows[index] for index in batch], approx), strict=True):
                found[index] = scored
            report(len(batch))
        return [found[index] for index in range(len(rows))]

    def identity(self) -> dict[str, Any]:
        """Guard, revision, template hash (``GuardSource.identity``) and options; lists of them for several guards.

        Options that change scores by rounding only (method, backend, gemm, budget, device) are left out.
        """
        found = [source.identity() for source in self._sources]
        name, revision, template, dates = found[0] if len(found) == 1 else map(list, zip(*found, strict=True))
        return {
            "guard": name,
            "revision": revision,
            "template_hash": template,
            "options": {
                "every": self.options.every,
                "unit": self.options.unit,
                "max_tokens": self.options.max_tokens,
                "combine": self.options.combine if len(found) > 1 else None,
                "sharpen": self.options.sharpen,
                "dtype": self.dtype,
                "date": dates if any(guard.date for guard in found) else None,
            },
            "scoring_version": SCORING_VERSION,
        }

    def settle(self, earlier: Mapping[str, str]) -> dict[str, str]:
        """Fix ``gemm`` for the run, so that batches of any size, and workers on other processors, round alike."""
        if self.options.gemm == "auto" and "gemm" in earlier:
            self.options = self.options.with_said(gemm=earlier["gemm"])
        self._load()
        return {"gemm": self.options.gemm}

    @property
    def guards(self) -> list[Guard]:
        """The loaded guards."""
        return self._load()

    def _load(self) -> list[Guard]:
        if self._loaded is None:
            from fastdss.prefix.cpu_linear import preferred_gemm
            from fastdss.star.scoring import star_scores

            guards = [source.load(self.device) for source in self._sources]
            if self.options.gemm == "auto":
                self.options = self.options.with_said(gemm=preferred_gemm(*(guard.model for guard in guards)))
            # A short conversation is scored, so that options that the guards do not take are refused now.
            star_scores(guards, {"prompt": ["Hello"], "response": ["Hi."]}, options=self.options)
            self._loaded = guards
        return self._loaded

    def _scored(self, rows: Sequence[Row], approx: Approximation | None) -> list[ScoredRow]:
        """Scores of a batch."""
        from fastdss.star.scoring import Judged

        items = [Judged(row.conversation, turn, place, 0) for place, row in enumerate(rows) for turn in row.judged]
        turns = iter(self._judged(items, approx))
        return [ScoredRow(row.id, row.content_hash, [next(turns) for _ in row.judged]) for row in rows]

    def _judged(self, items: list[Judged], approx: Approximation | None) -> list[ScoredTurn]:
        """Scores of turns. Where scoring them together fails, the turn that the error names is tried alone and the rest
        together; where it names none, the two halves are tried."""
        import torch

        from fastdss.star import scoring

        if not items:
            return []
        numbered = [item._replace(name=name) for name, item in enumerate(items)]
        try:
            star = scoring.score_turns(self._load(), numbered, self.options, approx=approx)
        except (ValueError, TypeError, torch.OutOfMemoryError) as error:
            if len(items) == 1:
                return [_failed_turn(items[0], _reason(error, items[0]))]
            at = error.row if isinstance(error, RowError) and error.row < len(items) else None
            if at is None:
                half = len(items) // 2
                return [*self._judged(items[:half], approx), *self._judged(items[half:], approx)]
            others = self._judged([*items[:at], *items[at + 1 :]], approx)
            return [*others[:at], *self._judged(items[at : at + 1], approx), *others[at:]]
        return [_scored_turn(item, found) for item, found in zip(items, star, strict=True)]


def _records_of(batch: Any) -> Any:
    """The batch in a form that ``read_rows`` takes: a mapping of columns becomes a list of records."""
    if not isinstance(batch, Mapping):
        if not hasattr(batch, "columns"):
            kinds = "a mapping from columns to lists, a pyarrow table or a pandas frame"
            raise UserTypeError(f"batch: expected {kinds}, got {type(batch).__name__}")
        return batch
    for name, values in batch.items():
        if isinstance(values, str) or not hasattr(values, "__len__"):
            raise UserTypeError(f"batch[{name!r}]: expected a list with one entry per row, got {type(values).__name__}")
    return records_of(batch)


def score_readable(scorer: Scorer, rows: Sequence[Row | FailedRow], report: Report) -> list[ScoredRow]:
    """Scores of ``rows`` in their order; a ``FailedRow`` gets its reason in place of scores."""
    readable = [row for row in rows if isinstance(row, Row)]
    scores = iter(scorer.score_rows(readable, report) if readable else ())
    report(len(rows) - len(readable))
    return [next(scores) if isinstance(row, Row) else _failed(row) for row in rows]


def scoring_batches(rows: Sequence[Row]) -> Iterator[list[int]]:
    """Indices of rows in batches of similar length, short ones first, of limited rows and characters."""
    sizes = [row.conversation.characters for row in rows]
    return length_batches(sizes, rows=BATCH_ROWS, total=BATCH_CHARACTERS)


def _failed(row: FailedRow) -> ScoredRow:
    return ScoredRow(row.id, row.content_hash, [], row.reason, row.left_out)


def _scored_turn(item: Judged, found: ScoredResponse) -> ScoredTurn:
    if found.failed:
        return _failed_turn(item, "the guard's logits are not finite")
    some = found.exact is not None and not bool(found.exact.all())
    exact = found.exact.tolist() if some and found.exact is not None else None
    return ScoredTurn(
        item.turn, found.scores.tolist(), found.ends, sorted(found.flags), exact=exact, missed=found.missed
    )


def _failed_turn(item: Judged, reason: str) -> ScoredTurn:
    return ScoredTurn(item.turn, [], [], [str(Flag.FAILED)], reason)


def _reason(error: Exception, item: Judged) -> str:
    """The error's message without its place in the batch; only the error's type where the message quotes the row, as
    another library's might."""
    text = error.reason if isinstance(error, RowError) else str(error)
    if isinstance(error, ValueError | TypeError) and not _quotes(text, item):
        return text
    before = item.conversation.turns[max(item.turn - 8, 0) : item.turn]
    roles = ", ".join(turn.role for turn in before)
    return f"{type(error).__name__} in a response of {len(item.text)} characters after the roles {roles}"


def _quotes(message: str, item: Judged) -> bool:
    texts = [turn.answer.text for turn in item.conversation.turns[: item.turn + 1]]
    return any(len(word) > 8 and word in message for text in texts for word in text.split())
