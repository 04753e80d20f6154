"""Faults in approximate scores: the fit, the promise, gates, samples, audits, and what is told of them."""

from __future__ import annotations

from .fault import Fault

RIDGE, PROMISE = "fastdss/star/ridge.py", "fastdss/star/promise.py"
GATES, PROBE = "fastdss/star/gates.py", "fastdss/star/probe.py"
DATA_SET, SAMPLE = "fastdss/corpus/approximate.py", "fastdss/corpus/sample.py"
RIDGES, PROMISES = "tests/star/test_ridge.py", "tests/star/test_promise.py"
PROBES, SIMULATED = "tests/star/test_probe.py", "tests/star/test_simulated.py"
SHORTCUTS = "tests/prefix/test_shortcuts.py"
DATA_SETS = "tests/corpus/test_approximate.py"

FAULTS = [
    Fault("approximate", RIDGE, "1 + leverage.clamp(min=0)", "1 + 0 * leverage", RIDGES),
    Fault("approximate", RIDGE, "x @ self.weights + self.offset", "x @ self.weights", RIDGES),
    Fault("approximate", PROMISE, "not e <= tolerance", "e > tolerance", f"{PROMISES} -k least_doubtful"),
    Fault("approximate", PROMISE, "(1 - _RIVAL * share) / (1 - share)", "1.0", f"{PROMISES} -k audit"),
    Fault("approximate", GATES, "doubt <= self.threshold", "doubt >= self.threshold", f"{PROBES} -k marked"),
    Fault("approximate", GATES, "exact[k - places.start]", "exact[0]", f"{PROBES} -k settles"),
    Fault(
        "approximate",
        GATES,
        "wrong.get(row, False) or not missed <= self.tolerance",
        "not missed <= self.tolerance",
        f"{PROBES} -k settles",
    ),
    Fault("approximate", PROBE, "probe._certified(sampled, used)", "probe._certified(fitted, used)", SIMULATED),
    Fault("approximate", PROBE, "torch.isfinite(seen.scores).all()", "True", f"{PROBES} -k without_scores"),
    Fault("approximate", PROBE, "threshold if share >= _LEAST_SPARED else None", "threshold", f"{PROBES} -k hardly"),
    Fault("approximate", GATES, "total / (k + 1)", "total", f"{PROBES} -k means_are"),
    Fault(
        "approximate",
        GATES,
        "self._states[self._owner[score]][score] = state",
        "self._states[0][score] = state",
        f"{PROBES} -k means_are",
    ),
    Fault("approximate", SAMPLE, "entry > self._lowest[0]", "False", f"{DATA_SETS} -k a_sample"),
    Fault(
        "approximate", DATA_SET, "None if self.withdrawn else probe", "probe", f"{DATA_SETS} -k audit_that_disagrees"
    ),
    Fault("approximate", "fastdss/corpus/merge.py", "{'exact': judged.exact}", "{}", f"{DATA_SETS} -k merged"),
    Fault(
        "approximate",
        "fastdss/score_report/data.py",
        "not mark and (not failed)",
        "mark and (not failed)",
        "tests/score_report/test_data.py -k approximate",
    ),
    Fault("shortcuts", "fastdss/prefix/packing.py", "len(tree.trunk) - end", "0", f"{SHORTCUTS} -k lent_keys"),
    Fault(
        "shortcuts",
        "fastdss/prefix/packing.py",
        "len(tail) >= _WORTH_IT * length",
        "len(tail) >= length",
        f"{SHORTCUTS} -k wanted",
    ),
    Fault(
        "shortcuts", "fastdss/prefix/attention.py", "move(lent, -away)", "move(lent, away)", f"{SHORTCUTS} -k lent_keys"
    ),
    Fault("shortcuts", "fastdss/prefix/attention.py", "segment.lent is None", "True", f"{SHORTCUTS} -k lent_keys"),
    Fault(
        "shortcuts",
        "fastdss/prefix/engine.py",
        "_MOVED * there.norm()",
        "9 * there.norm()",
        f"{SHORTCUTS} -k otherwise",
    ),
    Fault(
        "shortcuts", "fastdss/prefix/engine.py", "max(budget, gate.shortcut)", "budget", f"{SHORTCUTS} -k same_after"
    ),
    Fault("shortcuts", PROBE, "logits = logits + shortcuts", "logits = logits", f"{PROBES} -k predict_better"),
    Fault("shortcuts", PROBE, "correction.spread < ridge.spread", "True", f"{PROBES} -k predict_better"),
    Fault("shortcuts", PROBE, "seen.states.keys() == seen.shortcuts.keys()", "True", f"{PROBES} -k predict_better"),
    Fault(
        "shortcuts",
        GATES,
        "self._states.pop(score)",
        "self._states[scores[0]]",
        f"{PROBES} -k heard_the",
    ),
]
