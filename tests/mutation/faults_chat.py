"""Faults in how conversations are read."""

from __future__ import annotations

from .fault import Fault

PARTS = "fastdss/chat/tool_parts.py"
PROVED = "tests/chat/test_tool_parts.py"

TOOL_PARTS = [
    Fault("tool parts", PARTS, "part.get('input') or {}", "{}", PROVED, within="_with_calls"),
    Fault("tool parts", PARTS, "list(parts[:first])", "list(parts[:first - 1])", PROVED, within="_with_calls"),
    Fault("tool parts", PARTS, "kinds[number] != _CALL", "False", PROVED, within="_with_calls"),
    Fault("tool parts", PARTS, "{'tool_call_id': part.get('tool_use_id'), 'name': part.get('name')}", "{}", PROVED),
    Fault("tool parts", PARTS, "found[-1]['role'] == 'user'", "False", PROVED, within="_by_turns"),
    Fault("tool parts", PARTS, "('input_schema', 'inputSchema', 'parameters')", "('parameters',)",
          "tests/chat/test_kinds.py -k definition", within="definitions"),
]  # fmt: skip

TURNS, SHAPES, LAYOUTS = (f"fastdss/chat/{name}.py" for name in ("turns", "shapes", "layouts"))
KINDS_PROVED = "tests/chat/test_kinds.py"

KINDS = [
    Fault("kinds", TURNS, "function[named[0]] if named else {}", "{}", KINDS_PROVED, within="_call"),
    Fault("kinds", TURNS, "role == 'tool' and _is_data(content)", "False", KINDS_PROVED, within="_content"),
    Fault("kinds", TURNS, "train and bool(given[key])", "train", KINDS_PROVED, within="_trained"),
    Fault("kinds", TURNS, "kind == following == tokenize.STRING", "False", KINDS_PROVED, within="_joins_texts"),
    Fault("kinds", SHAPES, "found[answered]", "found[asked]", KINDS_PROVED, within="_of_round"),
    Fault("kinds", SHAPES, "rest.pop('output_with_loss')", "True", KINDS_PROVED, within="_of_round"),
    Fault("kinds", LAYOUTS, "(*turns[-1].calls, *turn.calls)", "turn.calls", KINDS_PROVED, within="_listed"),
    Fault("kinds", LAYOUTS, "before.train == turn.train", "False", KINDS_PROVED, within="_goes_on"),
    Fault("kinds", LAYOUTS, "'kto_tag' in record", "False", KINDS_PROVED, within="is_kto"),
    Fault("kinds", LAYOUTS, "label in (0, 1)", "False", KINDS_PROVED, within="is_kto"),
    Fault("kinds", LAYOUTS, "_text('instruction', record.take('instruction'))", "''", KINDS_PROVED, within="_question"),
    Fault("kinds", LAYOUTS, "len(roles) == len(read)", "True", KINDS_PROVED, within="_is_list"),
    Fault("kinds", PARTS, "called.get('input', called.get('args'))", "{}", KINDS_PROVED, within="_in_known_form"),
]  # fmt: skip

FILES, JSON, CSV = (f"fastdss/corpus/{name}.py" for name in ("files", "json_files", "csv_files"))
FILES_PROVED = "tests/corpus/test_other_files.py"

CONVERSATION, TAGS = (f"fastdss/chat/{name}.py" for name in ("conversation", "own_tags"))
POLICY_PROVED = "tests/chat/test_policy_spelling.py"

SPELLING = [
    Fault("spelling", CONVERSATION, "thought.strip()", "''", POLICY_PROVED, within="Turn.thinking"),
    Fault("spelling", CONVERSATION, "self.content[self.thinking[1]:]", "self.content", POLICY_PROVED),
    Fault("spelling", TURNS, "closing in after", "False", POLICY_PROVED),
    Fault("spelling", CONVERSATION, "self.content.index(THINK_TAGS[0]) + len(THINK_TAGS[0])", "0",
          "tests/chat/test_long_texts.py -k thought"),
    Fault("spelling", TURNS, "reasoning.strip() == Turn(role, content).thinking[0]", "False",
          "tests/chat/test_long_texts.py -k written_once"),
    Fault("spelling", TAGS, "not text.startswith(opening, position)", "False", POLICY_PROVED, within="_blocks"),
    Fault("spelling", TAGS, "not spelled.startswith('{')", "False", POLICY_PROVED, within="_blocks"),
    Fault("spelling", TAGS, "turn.thinking[1] == 0", "False", POLICY_PROVED, within="with_words"),
    Fault("spelling", TAGS, "shift + begin + first", "shift + first", POLICY_PROVED, within="with_calls"),
    Fault("spelling", TAGS, "shift + begin + at + 1", "shift + begin + at", POLICY_PROVED, within="with_calls"),
    Fault("spelling", TAGS, "result.strip()", "turn.content", POLICY_PROVED, within="without_tags"),
]  # fmt: skip

COLUMNS, TABLES, SOURCES = (f"fastdss/corpus/{name}.py" for name in ("columns", "tables", "sources"))
REPEATED = "tests/corpus/test_check.py -k repeats"
FOLDERS = "tests/corpus/test_files.py -k read_whole"
QUOTES = "tests/hardening/test_readers.py -k quote"

KINDS_OF_FILES = [
    Fault("kinds of files", FILES, "self.begun and (not self.frame.eof)", "False", FILES_PROVED, within="_Zstandard"),
    Fault("kinds of files", JSON, "any(map(_spreads, given))", "False", FILES_PROVED, within="_layout"),
    Fault("kinds of files", JSON, "whole.keys() == {'data'}", "False", FILES_PROVED, within="_is_columns"),
    Fault("kinds of files", CSV, "odd <= _ODD * len(_HIGH.findall(sample))", "True", FILES_PROVED),
    Fault("kinds of files", CSV, "len(_SIGN_IN_WORD.findall(sample))", "0", FILES_PROVED, within="_is_western"),
    Fault("kinds of files", CSV, "sum(map(len, foreign))", "0", FILES_PROVED),
    Fault("kinds of files", "fastdss/corpus/check.py", "row.content_hash in self.known_chats", "False", REPEATED),
    Fault("kinds of files", "fastdss/corpus/check.py", "row.id in self.known_ids", "False", REPEATED),
    Fault("kinds of files", SOURCES, "any(path.match(name) for path in inside)", "False", FOLDERS),
    Fault("kinds of files", SOURCES, "len(configs) > 1", "False", FOLDERS),
    Fault("kinds of files", SOURCES, "is_unread(path.name)", "False", FOLDERS),
    Fault("kinds of files", "fastdss/chat/turns.py", "given.get('channel') in _CHANNELS", "False",
          "tests/chat/test_kinds.py -k channel", within="read_turn"),
    Fault("kinds of files", "fastdss/chat/record.py", "not isinstance(values['star'], int | float)", "True",
          "tests/chat/test_kinds.py -k rating", within="holds_scores"),
    Fault("kinds of files", CSV, "len(lines.record) > 1 or _goes_on(lines.record[0], delimiter, skip_blanks)", "False",
          QUOTES, within="_records"),
    Fault("kinds of files", CSV, "broken != lines.began", "False", QUOTES, within="_records"),
    Fault("kinds of files", CSV, "ended is None", "False", QUOTES, within="_goes_on"),
]  # fmt: skip

POLICY = [
    Fault("policy", "fastdss/chat/policy.py", "encoding.ids[t] == eos", "False",
          "tests/chat/test_policy.py -k own_end", within="PolicyChat._through_eos"),
    Fault("policy", "fastdss/chat/policy.py", "self.encoder.is_control(encoding.ids[t])", "True",
          "tests/chat/test_policy.py -k own_end", within="PolicyChat._through_eos"),
    Fault("policy", "fastdss/chat/policy.py", "_first_from(encoding.offsets, len(encoding.text.rstrip())) - 1", "last",
          "tests/chat/test_policy.py -k closes_a_call", within="PolicyChat._tokens"),
    Fault("policy", "fastdss/chat/policy.py", "call.arguments_text", "str(call.arguments)",
          "tests/chat/test_policy.py -k needs_text", within="PolicyChat._message"),
    Fault("policy", "fastdss/chat/encoder.py", "not _raised_by_template(error)", "True",
          "tests/chat/test_policy.py -k whatever_a_template", within="ChatEncoder.render"),
    Fault("policy", "fastdss/chat/encoder.py", "not _raised_by_template(error)", "False",
          "tests/chat/test_policy.py -k no_templates", within="ChatEncoder.render"),
]  # fmt: skip

KEPT, VALUES = "tests/corpus/test_kept_rows.py", "tests/corpus/test_json_values.py"
TREES, NULLS, PLAN = "fastdss/chat/oasst.py", "fastdss/chat/nulls.py", "fastdss/corpus/plan.py"

NULLS_PROVED = "tests/chat/test_kinds.py -k a_null"

KEPT_ROWS = [
    Fault("kept rows", TREES, "reversed(list(enumerate(rows)))", "enumerate(rows)", KEPT, within="strays"),
    Fault("kept rows", TREES, "row['message_id'] in reached", "True", KEPT, within="strays"),
    Fault("kept rows", NULLS, "alike and filled", "False", NULLS_PROVED, within="as_meant"),
    Fault("kept rows", NULLS, "alike and filled", "alike", NULLS_PROVED, within="as_meant"),
    Fault("kept rows", NULLS, "alike and filled", "filled", NULLS_PROVED, within="as_meant"),
    Fault("kept rows", TABLES, "hasattr(value, 'tolist')", "False", KEPT, within="_frame"),
    Fault("kept rows", TABLES, "type(batch) is dict", "False", KEPT, within="records_of"),
    Fault("kept rows", TABLES, "type(batch) is dict", "True", KEPT, within="records_of"),
    Fault("kept rows", TABLES, "_kinds_with_json(table.schema)", "{}", KEPT, within="records_of"),
    Fault("kept rows", TABLES, "inner is not None or keeps(value, name)", "True", KEPT, within="_decoded"),
    Fault("kept rows", TABLES, "n in from_arrow", "True", KEPT, within="_frame"),
    Fault("kept rows", PLAN, "isinstance(row, Row)", "True", KEPT, within="_once"),
    Fault("kept rows", PLAN, "next(parts, [])", "next(parts)", KEPT, within="missing_shards"),
    Fault("kept rows", LAYOUTS, "not says_more", "True", KEPT, within="_goes_on"),
    Fault("kept rows", SOURCES, "path.is_relative_to(held)", "False", KEPT, within="_files_of"),
    Fault("kept rows", COLUMNS, "pa.types.is_struct(kind) and (not inner)", "False", KEPT, within="_has_empty_struct"),
    Fault("kept rows", JSON, "_in_utf8(sampled).read(PEEKED)", "_in_utf8(sampled).peek(PEEKED)", KEPT),
]  # fmt: skip

JSON_VALUES = [
    Fault("json values", JSON, "self.text[self.at:] + part", "part", VALUES, within="_Text._more"),
    Fault("json values", JSON, "error.pos > len(self.text) - _CUT", "False", VALUES, within="_Text.value"),
    Fault("json values", JSON, "error.msg.startswith('Unterminated')", "False", VALUES, within="_Text.value"),
    Fault("json values", JSON, "not cut", "False", VALUES, within="_Text.value"),
    Fault("json values", JSON, "end < len(self.text) - _CUT", "True", VALUES, within="_Text.value"),
    Fault("json values", JSON, "name == split", "True", VALUES, within="_values_of"),
]  # fmt: skip

FAULTS = [*TOOL_PARTS, *KINDS, *KINDS_OF_FILES, *KEPT_ROWS, *JSON_VALUES, *SPELLING, *POLICY]
