"""Faults in what the demo claims, in what an interrupted run keeps, and in how models are named."""

from __future__ import annotations

from .fault import Fault

EXPECTED, STOP = "fastdss/demo/expectations.py", "fastdss/train/run/stop.py"
SAID, RESUME = "tests/demo/test_expectations.py", "tests/train/run/test_resume.py"
SOURCES, NAMES = "fastdss/models/sources.py", "tests/models/test_sources.py"

TRAINING, LOSSES = "fastdss/demo/training.py", "tests/demo/test_rivals.py"
TABLES, STUDY = "benchmarks/embedded_tables.py", "tests/demo/test_safety_study.py"

FAULTS = [
    Fault("expectations", EXPECTED, "wilson(count.count, count.total, ONE_SIDED)",
          "wilson(count.count, count.total)", SAID),
    Fault("expectations", EXPECTED, "hypot(share - low, other_high - of_other)",
          "hypot(share - low, of_other - other_low)", SAID),
    Fault("expectations", EXPECTED, "high < limit", "high <= 1", SAID),
    Fault("expectations", EXPECTED, "NOT_SEEN in found", "False", SAID),
    Fault("rivals", TRAINING, "place <= EARLY_TOKENS", "place < EARLY_TOKENS", f"{LOSSES} -k strength"),
    Fault("rivals", TRAINING, "arm.method == 'dft'", "False", f"{LOSSES} -k first_step", within="_loss"),
    Fault("rivals", TRAINING, "arm.method == 'constrained'", "False", f"{LOSSES} -k first_step", within="_loss"),
    Fault("rivals", "fastdss/demo/policy.py", "del blocks[:count]", "del blocks[count:]", f"{LOSSES} -k order"),
    Fault("rivals", TRAINING, "error < SAME", "True", f"{LOSSES} -k refused"),
    Fault("embedded study", TABLES, 'answer["useful"] and not answer["leaks"]', 'answer["useful"]',
          f"{STUDY} -k useful"),
    Fault("embedded study", TABLES, 'style in (None, answer["style"])', "True", f"{STUDY} -k pool"),
    Fault("embedded study", "benchmarks/embedded_rows.py", "rng.choice((1, 2))", "0",
          f"{STUDY} -k harm_stands"),
    Fault("keeper", STOP, "control.should_save = control.should_training_stop = True",
          "control.should_training_stop = True", f"{RESUME} -k ctrl_c"),
    Fault("keeper", STOP, "time.monotonic() - self.last >= 60 * self.minutes", "False",
          f"{RESUME} -k by_the_clock"),
    Fault("shards", "fastdss/corpus/plan.py", "size *= 2", "size *= 4",
          "tests/corpus/test_run.py -k first_shards"),
    Fault("model names", SOURCES, "near and '/' not in name", "False", f"{NAMES} -k misspelt"),
    Fault("model names", SOURCES, "isinstance(try_to_load_from_cache(name, 'config.json', revision=revision), str)",
          "False", f"{NAMES} -k cached"),
]  # fmt: skip
