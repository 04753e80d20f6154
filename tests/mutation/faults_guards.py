"""Faults of what a guard is asked and how its answer is read."""

from __future__ import annotations

from .fault import Fault

VIEW, SIGHT, ANSWERS = "fastdss/guards/view.py", "fastdss/guards/sight.py", "fastdss/guards/answers.py"
CLASSES, QUESTIONS, KNOWN = "fastdss/guards/classes.py", "fastdss/guards/questions.py", "fastdss/guards/known.py"
ATTENTION, WHOLE = "fastdss/prefix/attention.py", "fastdss/prefix/whole.py"
VIEWS, SEEN, READ = "tests/guards/test_view.py", "tests/guards/test_sight.py", "tests/guards/test_answers.py"
KINDS, HEADS = "tests/guards/test_attention_kinds.py", "tests/guards/test_classifiers.py"

FAULTS = [
    Fault("view", VIEW, '"assistant" if turn["role"] == "tool"', '"user" if turn["role"] == "tool"', VIEWS),
    Fault("view", VIEW, "if index >= last or", "if index >= len(turns) - 2 or", VIEWS),
    Fault("view", VIEW, 'if self.system or turn["role"] != "system"', "if True", VIEWS),
    Fault("view", VIEW, "for text in texts if text)", "for text in texts[-1:] if text)", VIEWS),
    Fault("sight", SIGHT, "lost = [part for part in wanted if MARKS[part] not in text]", "lost = []",
          f"{SEEN} -k 'parts or dropped'"),
    Fault("sight", SIGHT, 'if text.rfind(MARKS["response"]) < ', 'if False and text.rfind(MARKS["response"]) < ',
          f"{SEEN} -k dropped"),
    Fault("answers", ANSWERS, "shares = torch.softmax(logits[..., self._row[place.ids], columns]",
          "shares = torch.softmax(logits[..., 0, columns]", "tests/guards/test_fields.py -k brute_force"),
    Fault("answers", ANSWERS, "options = {**_spellings(worth, tokenizer), **options}", "pass", f"{READ} -k spelling"),
    Fault("answers", ANSWERS, "            if len(options) > 1:\n", "            if False:\n", f"{READ} -k refused"),
    Fault("questions", "fastdss/guards/guard.py", "self.answers.scores(rows, temperature).amin(-1)",
          "self.answers.scores(rows, temperature).amax(-1)", f"{SEEN} -k questions"),
    Fault("date", QUESTIONS, "if prints_date(spec, tokenizer):", "if False:", f"{SEEN} -k dates"),
    Fault("choice", KNOWN, "_only(agreed or told or found, called, options)", "_only(agreed or found, called, options)",
          "tests/guards/test_choose_spec.py -k gives_away"),
    Fault("classes", CLASSES, "torch.sigmoid(torch.cat([safe, -unsafe], dim=-1))",
          "torch.sigmoid(torch.cat([safe, unsafe], dim=-1))", f"{HEADS} -k independent"),
    Fault("classes", "fastdss/models/classifier.py", "LMHead(score.weight, score.bias, 1.0, None)",
          "LMHead(score.weight, score.bias, 0.5, None)", f"{HEADS} -k own_classifier"),
    Fault("classes", "fastdss/models/classifier.py", "if ids[k - 1] != pad)", "if True)", f"{HEADS} -k padding"),
    Fault("classes", WHOLE, "padded_rows([[1] * len(text) for text in batch], 0, longest)",
          "padded_rows([[1] * len(text) for text in batch], 1, longest)", f"{HEADS} -k any_size"),
    Fault("chunks", ATTENTION, "end = n if chunk is None else min(n, low + chunk - segment.start)", "end = n", KINDS),
    Fault("chunks", ATTENTION, "return (scale(own) / scale(told)).to(query)[:, None]", "return 1.0", KINDS),
    Fault("sinks", ATTENTION, "torch.softmax(torch.cat([scores, beside], dim=-1), dim=-1, dtype=dtype)[..., :-1]",
          "torch.softmax(scores, dim=-1, dtype=dtype)", KINDS),
]  # fmt: skip
