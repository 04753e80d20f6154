"""Faults of what a guard is asked and how its answer is read."""

from __future__ import annotations

from .fault import Fault

VIEW, SIGHT, ANSWERS = "fastdss/guards/view.py", "fastdss/guards/sight.py", "fastdss/guards/answers.py"
CLASSES, QUESTIONS, KNOWN = "fastdss/guards/classes.py", "fastdss/guards/questions.py", "fastdss/guards/known.py"
ATTENTION, WHOLE = "fastdss/prefix/attention.py", "fastdss/prefix/whole.py"
VIEWS, SEEN, READ = "tests/guards/test_view.py", "tests/guards/test_sight.py", "tests/guards/test_answers.py"
FIELDS = "tests/guards/test_fields.py"
KINDS, HEADS = "tests/guards/test_attention_kinds.py", "tests/guards/test_classifiers.py"

FAULTS = [
    Fault("view", VIEW, "'assistant' if turn['role'] == 'tool' else turn['role']",
          "'user' if turn['role'] == 'tool' else turn['role']", VIEWS, within="_alternating"),
    Fault("view", VIEW, "index >= last", "index >= len(turns) - 2", VIEWS, within="_last_exchange"),
    Fault("view", VIEW, "self.system or turn['role'] != 'system'", "True", VIEWS, within="View.__call__"),
    Fault("view", VIEW, "(text for text in texts if text)", "(text for text in texts[-1:] if text)", VIEWS,
          within="_alternating"),
    Fault("sight", SIGHT, "[part for part in wanted if MARKS[part] not in text]", "[]",
          f"{SEEN} -k 'parts or dropped'", within="_lost"),
    Fault("sight", SIGHT, "text.rfind(MARKS['response']) < max((text.find(MARKS[part]) for part in wanted))",
          "False and text.rfind(MARKS['response']) < max((text.find(MARKS[part]) for part in wanted))",
          f"{SEEN} -k dropped", within="check_sight"),
    Fault("sight", SIGHT, "'Q7Q ' * 2000 + 'Q8Q'", "'Q7Q ' * 2 + 'Q8Q'", f"{SEEN} -k dropped"),
    Fault("sight", SIGHT, "present[more]", "False", f"{SEEN} -k 'first_turns or prompts_place'", within="check_seen"),
    Fault("sight", SIGHT, "roles.count('user') > 1", "False", f"{SEEN} -k first_turns", within="check_seen"),
    Fault("classes", "fastdss/models/classifier.py", "(divides.cumsum(-1) - divides.long()).clamp",
          "divides.cumsum(-1).clamp", f"{HEADS} -k numbers", within="token_types"),
    Fault("classes", WHOLE, "token_types(ids, separator)", "{}", f"{HEADS} -k numbers", within="batched_logits"),
    Fault("answers", ANSWERS, "self._row[place.ids]", "0", f"{FIELDS} -k brute_force", within="Answers._value"),
    Fault("answers", ANSWERS, "place.greedy", "False", f"{FIELDS} -k greedy", within="Answers._value"),
    Fault("answers", ANSWERS, "spec.earlier == 'likeliest' and depth < len(spec.fields)",
          "spec.earlier == 'likeliest'", f"{FIELDS} -k greedy", within="_compile"),
    Fault("answers", ANSWERS, "read.argmax", "read.argmin", f"{FIELDS} -k greedy", within="Answers._value"),
    Fault("answers", ANSWERS, "options = {**_spellings(worth, tokenizer), **options}", "pass", f"{READ} -k spelling",
          within="_compile"),
    Fault("answers", ANSWERS, "len(options) > 1", "False", f"{READ} -k refused", within="_branch"),
    Fault("questions", "fastdss/guards/guard.py", "self.answers.scores(rows, temperature).amin",
          "self.answers.scores(rows, temperature).amax", f"{SEEN} -k questions", within="GuardModel.scores"),
    Fault("date", QUESTIONS, "prints_date(spec, tokenizer)", "False", f"{SEEN} -k dates", within="make_encoders"),
    Fault("choice", KNOWN, "by_both or by_template or by_name", "by_both or by_name",
          "tests/guards/test_choose_spec.py -k gives_away", within="choose_spec"),
    Fault("classes", CLASSES, "[safe, -unsafe]", "[safe, unsafe]", f"{HEADS} -k independent", within="Classes.scores"),
    Fault("classes", "fastdss/models/classifier.py", "LMHead(score.weight, score.bias, 1.0, None)",
          "LMHead(score.weight, score.bias, 0.5, None)", f"{HEADS} -k own_classifier", within="class_head"),
    Fault("classes", "fastdss/models/classifier.py", "ids[k - 1] != pad", "True", f"{HEADS} -k padding",
          within="without_padding"),
    Fault("classes", WHOLE, "padded_rows([[1] * len(text) for text in batch], 0, longest)",
          "padded_rows([[1] * len(text) for text in batch], 1, longest)", f"{HEADS} -k any_size",
          within="batched_logits"),
    Fault("loading", "fastdss/guards/loading.py", "found['missing_keys']", "[]",
          "tests/guards/test_loading.py -k lacks", within="load_guard"),
    Fault("loading", "fastdss/prefix/engine.py", "rules.get('rope_type') == 'dynamic'", "False",
          "tests/guards/test_refused.py -k texts_before", within="reference_logits"),
    Fault("loading", "fastdss/star/scoring.py", "options.method == 'auto'", "False",
          "tests/guards/test_refused.py -k unchecked", within="_logits"),
    Fault("loading", "fastdss/guards/loading.py", "kind in transformers.MODEL_FOR_CAUSAL_LM_MAPPING", "True",
          "tests/guards/test_loading.py -k text_and_images", within="_loader"),
    Fault("loading", "fastdss/guards/options.py", "spec.template_kwargs.get(name) is False", "False",
          "tests/guards/test_options.py -k think", within="_with_option"),
    Fault("loading", KNOWN, "re.search(pattern, name, re.IGNORECASE)", "False",
          "tests/guards/test_choose_spec.py -k out_of_reach", within="_refuse_out_of_reach"),
    Fault("loading", ATTENTION, "attentions_of(model.config)", "attention_of(model.config)",
          "tests/guards/test_loading.py -k each_part", within="using_prefix_attention"),
    Fault("loading", "fastdss/star/stream.py",
          "guard.check_tree()\nself._texts = GrowingTexts(guard.model, guard.token_ids, guard.head, budget=budget)",
          "self._texts = GrowingTexts(guard.model, guard.token_ids, guard.head, budget=budget)",
          "tests/guards/test_refused.py -k unchecked", within="StarStreams.__init__"),
    Fault("chunks", ATTENTION, "n if chunk is None else min(n, low + chunk - segment.start)", "n", KINDS,
          within="_stretches"),
    Fault("chunks", ATTENTION, "(scale(own) / scale(told)).to(query)[:, None]", "None", KINDS, within="_temperatures"),
    Fault("sinks", ATTENTION, "torch.softmax(torch.cat([scores, beside], dim=-1), dim=-1, dtype=dtype)[..., :-1]",
          "torch.softmax(scores, dim=-1, dtype=dtype)", KINDS, within="softmax_shares"),
]  # fmt: skip
