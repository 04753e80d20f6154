"""Approximate scores of data sets: a random sample is scored exactly, a probe is fitted on it, and the rest is gated.

Sample, probe and what was shown about it lie in a cache entry of their own, whose name depends on the promise, the seed
and the rows of the sample; the scores' entry depends on the probe's hash as well. A run that was killed goes on with
the same probe, and scores of two probes, or exact ones, never meet. Which rows were audited, and how far off they would
have been, is written in their shards: whether the audit speaks against the promise is read there, in the input's order,
whoever scored what.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from fastdss.errors import UserError
from fastdss.files import write_atomically
from fastdss.star.gates import Reading, check_approximable
from fastdss.star.probe import TrunkProbe
from fastdss.star.probe_file import probe_bytes, read_probe
from fastdss.star.promise import Audit, Promise

from .rows import Row
from .sample import Sample
from .scorer import Report, Scorer, StarScorer
from .store import ScoredRow, Shards

_log = logging.getLogger(__name__)
ENGINES = (
    "local",
    "datasets",
)  # processes of other machines would not have the probe, ranks would each need the sample


@dataclass
class ProbedScorer:
    """``scorer`` with its scores approximated by the probe in ``folder``, and those of the sample as they are there.

    With ``withdrawn``, everything is computed. It pickles as the names of two files.
    """

    scorer: StarScorer
    folder: Path
    sample: str
    probe_name: str
    withdrawn: bool = False
    _read: tuple[TrunkProbe, dict[str, ScoredRow]] | None = field(default=None, init=False, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_read": None}

    @property
    def probe(self) -> TrunkProbe:
        return self._files[0]

    @property
    def probe_hash(self) -> str:
        return self.probe_name.removeprefix("probe-").removesuffix(".safetensors")

    def identity(self) -> dict[str, Any]:
        return self.scorer.identity()

    def depends(self) -> dict[str, Any]:
        """What the scores depend on beside the scorer."""
        return {"probe": self.probe_hash, "withdrawn": self.withdrawn}

    def settle(self, earlier: Mapping[str, str]) -> dict[str, str]:
        return self.scorer.settle(earlier)

    def score_rows(self, rows: Sequence[Row], report: Report) -> list[ScoredRow]:
        """Rows of the sample are known; the others' scores are computed or approximated."""
        probe, known = self._files
        new = [row for row in rows if row.id not in known]
        report(len(rows) - len(new))
        approx = None if self.withdrawn else probe
        scored = iter(self.scorer.score_rows(new, report, approx=approx) if new else ())
        return [known[row.id] if row.id in known else next(scored) for row in rows]

    @property
    def _files(self) -> tuple[TrunkProbe, dict[str, ScoredRow]]:
        if self._read is None:
            probe = read_probe((self.folder / self.probe_name).read_bytes())
            known = {row.id: row for row in Shards(self.folder).read(self.sample)}
            self._read = replace(probe, audit=None), known
        return self._read


def probed(
    scorer: StarScorer, sample: Sample, folder: Path, report: Report, settle: Callable[[], object]
) -> ProbedScorer:
    """The scorer with a probe; scores the sample and fits on it unless the entry ``folder`` has both already.

    ``settle`` is called before anything is scored. Raises ``ValueError`` for guards that nothing approximates.
    """
    shards, name = Shards(folder), sample.name
    shards.prepare(alone=True)
    found = _finished_probe(folder)
    if found is None or shards.valid(name) is None:
        settle()
        check_approximable(scorer.guards, scorer.options)
        reading = Reading()
        scored = scorer.score_rows(sample.rows, report, approx=reading)
        shards.write(name, scored)
        probe = TrunkProbe.learn(reading, promise=sample.promise, options=scorer.options, seed=sample.seed)
        content = probe_bytes(probe)
        found = f"probe-{hashlib.sha256(content).hexdigest()}.safetensors"
        write_atomically(folder / found, content)
    return ProbedScorer(scorer, folder, name, found)


def approximable(scorer: Scorer, engine: str) -> StarScorer:
    """The scorer, unless it or the engine cannot approximate."""
    if engine not in ENGINES:
        raise UserError(f"approx: expected engine {' or '.join(ENGINES)}, got {engine!r}")
    if not isinstance(scorer, StarScorer):
        raise UserError(f"approx: expected a StarScorer, got {type(scorer).__name__}")
    return scorer


def _finished_probe(folder: Path) -> str | None:
    """The entry's probe; one that is not what its name says is set aside."""
    for path in sorted(folder.glob("probe-*.safetensors")):
        if path.name == f"probe-{hashlib.sha256(path.read_bytes()).hexdigest()}.safetensors":
            return path.name
        os.replace(path, path.with_suffix(".damaged"))
    return None


class AuditTrail:
    """The audit of an entry's shards, in the input's order, as far as they are finished."""

    def __init__(self, shards: Shards, names: Sequence[str], promise: Promise) -> None:
        self.audit = Audit(promise)
        self.scores = self.approximated = 0
        self._shards = shards
        self._names = names
        self._next = 0

    def disagrees(self) -> bool:
        """Whether what was finished by now speaks against the promise."""
        while self._next < len(self._names) and not self.audit.disagrees:
            name = self._names[self._next]
            if not self._shards.path(name).exists():
                break
            self._next += 1
            for row in self._shards.read(name):
                self._add(row)
        return self.audit.disagrees

    def _add(self, row: ScoredRow) -> None:
        missed = [turn.missed for turn in row.scored if turn.missed is not None]
        if missed:
            self.audit.add(any(not value <= self.audit.promise.tolerance for value in missed))
        self.scores += sum(len(turn.scores) for turn in row.scored)
        self.approximated += sum(turn.exact.count(False) for turn in row.scored if turn.exact is not None)


def record(sample: Sample, scorer: ProbedScorer | None = None, trail: AuditTrail | None = None) -> dict[str, Any]:
    """What the manifest says under ``approx``; ``words`` for people."""
    found: dict[str, Any] = {**asdict(sample.promise), "seed": sample.seed}
    if scorer is None or trail is None:
        return {**found, "approximated": 0, "words": f"All scores are exact: {sample.too_few}."}
    certificate = scorer.probe.certificate
    found |= {
        "sample": scorer.sample,
        "sample_rows": len(sample.rows),
        "probe": scorer.probe_hash,
        "certificate": {name: value for name, value in asdict(certificate).items() if name != "promise"},
        "audit": {"rows": trail.audit.rows, "wrong": trail.audit.wrong, "disagrees": trail.audit.disagrees},
        "approximated": 0 if scorer.withdrawn else trail.approximated,
    }
    return {**found, "words": _words(scorer, trail)}


def _words(scorer: ProbedScorer, trail: AuditTrail) -> str:
    certificate, audit = scorer.probe.certificate, trail.audit
    if certificate.threshold is None:
        return f"All scores are exact: {certificate}."
    if scorer.withdrawn:
        return (
            f"All scores are exact: {audit.wrong} of {audit.rows} rows that were computed to audit the approximation "
            f"were off by more than {certificate.promise.tolerance:g}, so it was given up."
        )
    return (
        f"{trail.approximated:,} of {trail.scores:,} scores are approximations: {certificate.promise}. It was shown on "
        f"{certificate.sampled_rows} rows drawn at random, {certificate.wrong_rows} of which were off; of "
        f"{audit.rows} more that were audited, {audit.wrong} were."
    )


def warn(words: str) -> None:
    """Say that everything is computed after all."""
    _log.warning(words)
