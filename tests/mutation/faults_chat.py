"""Faults in how conversations are read."""

from __future__ import annotations

from .fault import Fault

PARTS = "fastdss/chat/tool_parts.py"
PROVED = "tests/chat/test_tool_parts.py"

TOOL_PARTS = [
    Fault("tool parts", PARTS, "part.get('input') or {}", "{}", PROVED, within="_with_calls"),
    Fault("tool parts", PARTS, "list(parts[:first])", "list(parts[:first - 1])", PROVED, within="_with_calls"),
    Fault("tool parts", PARTS, "kinds[number] != _CALL", "False", PROVED, within="_with_calls"),
    Fault("tool parts", PARTS, "part['tool_use_id']", "part.get('id')", PROVED, within="_by_turns"),
    Fault("tool parts", PARTS, "found[-1]['role'] == 'user'", "False", PROVED, within="_by_turns"),
    Fault("tool parts", PARTS, "tool['input_schema']", "{}", PROVED, within="definition"),
]  # fmt: skip

FAULTS = [
    *TOOL_PARTS,
    Fault("policy", "fastdss/chat/policy.py", "encoding.ids[t] == eos", "False",
          "tests/chat/test_policy.py -k own_end", within="PolicyChat._through_eos"),
    Fault("policy", "fastdss/chat/policy.py", "self.encoder.is_control(encoding.ids[t])", "True",
          "tests/chat/test_policy.py -k own_end", within="PolicyChat._through_eos"),
    Fault("policy", "fastdss/chat/policy.py", "_first_from(encoding.offsets, len(encoding.text.rstrip())) - 1", "last",
          "tests/chat/test_policy.py -k closes_a_call", within="PolicyChat._tokens"),
]  # fmt: skip
