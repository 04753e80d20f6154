"""Faults in approximate scores: the fit, the promise, gates, samples, audits, and what is told of them."""

from __future__ import annotations

from .fault import Fault

RIDGE, PROMISE = "fastdss/star/ridge.py", "fastdss/star/promise.py"
GATES, PROBE, COURSE = "fastdss/star/gates.py", "fastdss/star/probe.py", "fastdss/star/course.py"
DATA_SET, SAMPLE = "fastdss/corpus/approximate.py", "fastdss/corpus/sample.py"
RIDGES, PROMISES = "tests/star/test_ridge.py", "tests/star/test_promise.py"
PROBES, GATED, SIMULATED = "tests/star/test_probe.py", "tests/star/test_gates.py", "tests/star/test_simulated.py"
COURSES, FITTING = "tests/star/test_course.py", "fastdss/star/fitting.py"
SHORTCUTS, SIGHTS = "tests/prefix/test_shortcuts.py", "fastdss/prefix/shortcut_attention.py"
DATA_SETS = "tests/corpus/test_approximate.py"

WEIGHTS, DIGESTS = "fastdss/guards/weights.py", "tests/guards/test_weights.py"

FAULTS = [
    Fault(
        "weights",
        WEIGHTS,
        "torch.arange(_SAMPLED) * _SPREAD % size",
        "torch.arange(_SAMPLED) * (size // _SAMPLED)",
        f"{DIGESTS} -k row_and_column",
    ),
    Fault("weights", WEIGHTS, "repr(sorted(adapters_in_use(model).items())).encode()", "b''", f"{DIGESTS} -k adapters"),
    Fault(
        "weights",
        WEIGHTS,
        "loaded_weight(model, name) if tensor.is_meta else tensor",
        "torch.zeros(1) if tensor.is_meta else tensor",
        f"{DIGESTS} -k offloaded",
    ),
    Fault("weights", PROBE, "self.weights != weights_digest(guards[0].model)", "False", f"{PROBES} -k fine_tune"),
    Fault(
        "weights",
        GATES,
        "self.weights or weights_digest(guards[0].model)",
        "''",
        f"{PROBES} -k fine_tune",
        within="Reading.gate",
    ),
    Fault("approximate", RIDGE, "1 + leverage.clamp(min=0)", "1 + 0 * leverage", RIDGES),
    Fault("approximate", RIDGE, "crossed @ self.dual + self.offset", "crossed @ self.dual", RIDGES),
    Fault("approximate", RIDGE, "self.inverse - columns @ solved", "self.inverse", f"{RIDGES} -k without"),
    Fault("approximate", RIDGE, "self.dual - solved.t() @ self.dual[members]", "self.dual", f"{RIDGES} -k without"),
    Fault("approximate", PROMISE, "break", "continue", f"{PROMISES} -k first_threshold", within="choose_threshold"),
    Fault("approximate", PROMISE, "(1 - _RIVAL * share) / (1 - share)", "1.0", f"{PROMISES} -k audit"),
    Fault("approximate", GATES, "course.doubt > self.threshold", "course.doubt > 0", f"{PROBES} -k marked"),
    Fault("approximate", GATES, "[score - places.start for score in near]", "[0]", f"{GATED} -k settles"),
    Fault(
        "approximate",
        GATES,
        "for score in scores:\n    self._courses.pop(self._owner[score], None)",
        "pass",
        f"{GATED} -k anew",
    ),
    Fault("approximate", GATES, "at[score]", "0", f"{GATED} -k beside", within="Gating.told"),
    Fault("approximate", GATES, "math.isfinite(value)", "True", f"{GATED} -k heard_the"),
    Fault("approximate", COURSE, "math.isfinite(error)", "True", f"{GATED} -k failed_tells"),
    Fault(
        "approximate",
        COURSE,
        "doubts.masked_fill(self.known, 0).nan_to_num(nan=math.inf)",
        "doubts.masked_fill(self.known, 0)",
        f"{GATED} -k failed_tells",
    ),
    Fault("approximate", COURSE, "column[:, None] * (column / column[index])", "0", f"{COURSES} -k one_by_one"),
    Fault("approximate", COURSE, "persistence.scale * spreads", "spreads", f"{COURSES} -k one_by_one"),
    Fault("approximate", COURSE, "(1 - self.share) * (apart == 0)", "0 * apart", f"{COURSES} -k one_by_one"),
    Fault("approximate", COURSE, "math.log(scale) + logs / count", "math.log(scale)", f"{COURSES} -k many_errors"),
    Fault("approximate", COURSE, "abs(index - other) > _APART", "True", f"{COURSES} -k wait"),
    Fault(
        "approximate",
        "fastdss/prefix/rounds.py",
        "for begin, part in kept if wanted else ():\n    store.load(part, [begin])",
        "pass",
        f"{GATED} -k whatever_the_rounds",
    ),
    Fault("approximate", "fastdss/prefix/rounds.py", "left -= wanted", "pass", f"{GATED} -k whatever_the_rounds"),
    Fault(
        "approximate",
        GATES,
        "wrong.get(row, False) or not missed <= self.tolerance",
        "not missed <= self.tolerance",
        f"{GATED} -k settles",
    ),
    Fault(
        "approximate", PROBE, "probe._certified(sampled, best.used)", "probe._certified(fitted, best.used)", SIMULATED
    ),
    Fault("approximate", FITTING, "torch.isfinite(seen.scores).all()", "True", f"{PROBES} -k without_scores"),
    Fault("approximate", PROBE, "threshold if share >= _LEAST_SPARED else None", "threshold", f"{PROBES} -k hardly"),
    Fault(
        "approximate",
        PROBE,
        "('every', 'unit', 'turns', 'sharpen')",
        "('every', 'unit', 'sharpen')",
        f"{PROBES} -k refused",
    ),
    Fault(
        "approximate",
        PROBE,
        "size != config.hidden_size or deepest > config.num_hidden_layers",
        "size != config.hidden_size",
        f"{PROBES} -k refused",
    ),
    Fault("approximate", GATES, "total / (k + 1)", "total", f"{GATED} -k means_are"),
    Fault(
        "approximate",
        GATES,
        "self._states[self._owner[score]][score] = state",
        "self._states[0][score] = state",
        f"{GATED} -k means_are",
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
    Fault("shortcuts", SIGHTS, "plan.move(q, sights.away)", "q", f"{SHORTCUTS} -k lent_keys"),
    Fault("shortcuts", SIGHTS, "trunk < begin[:, None]", "trunk <= begin[:, None]", f"{SHORTCUTS} -k lent_keys"),
    Fault("shortcuts", SIGHTS, "moved >= begin[:, None]", "moved > 0", f"{SHORTCUTS} -k several_lengths"),
    Fault("shortcuts", SIGHTS, "owner[:, None] == owner", "owner[:, None] >= owner", f"{SHORTCUTS} -k lent_keys"),
    Fault("shortcuts", SIGHTS, "own <= places[:, None]", "own > 0", f"{SHORTCUTS} -k lent_keys"),
    Fault("shortcuts", SIGHTS, "places - self.stands >= window", "self.stands < 0", f"{SHORTCUTS} -k lent_keys"),
    Fault(
        "shortcuts",
        "fastdss/prefix/attention.py",
        "softcap * torch.tanh(scores / softcap)",
        "scores",
        f"{SHORTCUTS} -k lent_keys",
    ),
    Fault("shortcuts", SIGHTS, "rows[:, base:][:, sights.lent]", "rows[:, sights.lent]", f"{SHORTCUTS} -k lent_keys"),
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
    Fault("shortcuts", PROBE, "logits + shortcuts if self.shortcut else logits", "logits", f"{PROBES} -k better"),
    Fault("approximate", FITTING, "self.ridge.without(fitted == row)", "self.ridge", f"{PROBES} -k left_out"),
    Fault("shortcuts", PROBE, "correction.ridge.spread < best.ridge.spread", "True", f"{PROBES} -k predict_better"),
    Fault("shortcuts", PROBE, "seen.states.keys() == seen.shortcuts.keys()", "True", f"{PROBES} -k predict_better"),
]
