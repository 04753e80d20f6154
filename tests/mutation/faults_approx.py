"""Faults in approximate scores: the fit, the promise, gates, samples, audits, and what is told of them."""

from __future__ import annotations

from .fault import Fault

RIDGE, PROMISE = "fastdss/star/ridge.py", "fastdss/star/promise.py"
GATES, PROBE = "fastdss/star/gates.py", "fastdss/star/probe.py"
DATA_SET, SAMPLE, RUN = "fastdss/corpus/approximate.py", "fastdss/corpus/sample.py", "fastdss/corpus/run.py"
RIDGES, PROMISES = "tests/star/test_ridge.py", "tests/star/test_promise.py"
PROBES, SIMULATED = "tests/star/test_probe.py", "tests/star/test_simulated.py"
DATA_SETS = "tests/corpus/test_approximate.py"

FAULTS = [
    Fault("approximate", RIDGE, "torch.sqrt(1 + leverage.clamp(min=0))", "torch.sqrt(0 * leverage + 1)", RIDGES),
    Fault("approximate", RIDGE, "x @ self.weights + self.offset", "x @ self.weights", RIDGES),
    Fault(
        "approximate",
        PROMISE,
        "promise.at_most) > 1 - promise.confidence",
        "promise.at_most) > promise.confidence",
        f"{PROMISES} -k thousand",
    ),
    Fault(
        "approximate",
        PROMISE,
        "for d, e in zip(doubts, errors, strict=True) if not e <= tolerance",
        "for d, e in zip(doubts, errors, strict=True) if e > tolerance",
        f"{PROMISES} -k least_doubtful",
    ),
    Fault("approximate", PROMISE, "(1 - _RIVAL * share) / (1 - share)", "1.0", f"{PROMISES} -k audit"),
    Fault("approximate", GATES, "if doubt <= self.threshold", "if doubt >= self.threshold", f"{PROBES} -k marked"),
    Fault("approximate", GATES, "exact[k - places.start] = False", "exact[0] = False", f"{PROBES} -k settles"),
    Fault("approximate", GATES, "wrong.get(row, False) or not missed", "not missed", f"{PROBES} -k settles"),
    Fault("approximate", GATES, "if whole for k in places", "if not whole for k in places", f"{PROBES} -k settles"),
    Fault(
        "approximate",
        GATES,
        "enumerate(places) if score in self._states",
        "enumerate(places, 1) if score in self._states",
        f"{PROBES} -k reading_keeps",
    ),
    Fault("approximate", PROBE, "probe._certified(sampled, used)", "probe._certified(fitted, used)", SIMULATED),
    Fault("approximate", PROBE, "if getattr(options, name) != value:", "if False:", f"{PROBES} -k refused"),
    Fault(
        "approximate", PROBE, "if bool(torch.isfinite(seen.scores).all()):", "if True:", f"{PROBES} -k without_scores"
    ),
    Fault(
        "approximate",
        PROBE,
        "rows.setdefault(id(seen.judged.conversation), [])",
        "rows.setdefault(len(rows), [])",
        f"{PROBES} -k every_turn",
    ),
    Fault(
        "approximate",
        PROBE,
        "[str(self.seed), *(turn.answer.text",
        "[str(self.seed), *(turn.role",
        f"{PROBES} -k audited",
    ),
    Fault(
        "approximate",
        SAMPLE,
        "elif entry > self._lowest[0]:",
        "elif len(self._lowest) < self.wanted:",
        f"{DATA_SETS} -k a_sample",
    ),
    Fault("approximate", SAMPLE, "{self.seed}\\0{row.id}", "{row.id}", f"{DATA_SETS} -k a_sample"),
    Fault(
        "approximate",
        DATA_SET,
        "approx = None if self.withdrawn else probe",
        "approx = probe",
        f"{DATA_SETS} -k audit_that_disagrees",
    ),
    Fault(
        "approximate",
        DATA_SET,
        '"withdrawn": self.withdrawn}',
        '"withdrawn": False}',
        f"{DATA_SETS} -k audit_that_disagrees",
    ),
    Fault("approximate", DATA_SET, "any(not value <= self.audit", "all(value <= self.audit", f"{DATA_SETS} -k trail"),
    Fault(
        "approximate",
        DATA_SET,
        "self._read = replace(probe, audit=None), known",
        "self._read = probe, known",
        f"{DATA_SETS} -k audit_that_disagrees",
    ),
    Fault(
        "approximate",
        DATA_SET,
        'return {"probe": self.probe_hash, ',
        'return {"probe": "one", ',
        f"{DATA_SETS} -k other_probe",
    ),
    Fault("approximate", RUN, "takewhile(lambda shard: not stops(), work)", "work", f"{DATA_SETS} -k stops_at_once"),
    Fault("approximate", "fastdss/corpus/merge.py", '{"exact": judged.exact}', "{}", f"{DATA_SETS} -k merged"),
    Fault(
        "approximate",
        "fastdss/score_report/data.py",
        "if not mark and not failed",
        "if mark and not failed",
        "tests/score_report/test_data.py -k approximate",
    ),
]
