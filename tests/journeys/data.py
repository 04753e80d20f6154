"""Files of every format of the table, written as people have them, and the conversation that each holds.

``EXPECTED[name]``: roles and texts of the conversation, and which turns are trained.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SAFE = "Mix the flour and the water. Let the dough rest for an hour, then bake it until it is brown."
LEAK = "That is Ada Quill. Her phone number is 555-0147 and she lives at 12 Fern Road. Have a good day!"
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
TOOL = {"type": "function", "function": {"name": "weather", "description": "of a city", "parameters": {}}}
CALL_TEXT = '{"name": "weather", "arguments": {"city": "Oslo"}}'


def turn(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


CHAT = [turn("user", "Hi"), turn("assistant", SAFE), turn("user", "Who?"), turn("assistant", LEAK)]
TEXTS = [("user", "Hi"), ("assistant", SAFE), ("user", "Who?"), ("assistant", LEAK)]
ASKED = [("user", "Who?"), ("assistant", LEAK)]

# name -> (record, format, roles and texts, trained turns)
RECORDS: dict[str, tuple[dict[str, Any], str, list[tuple[str, str]], list[int]]] = {
    "messages": ({"messages": CHAT}, "messages", TEXTS, [1, 3]),
    "messages_system": (
        {"messages": CHAT, "system": "Be kind."}, "messages", [("system", "Be kind."), *TEXTS], [2, 4]
    ),
    "conversations": ({"conversations": CHAT}, "messages", TEXTS, [1, 3]),
    "developer": (
        {"messages": [turn("developer", "Be kind."), *CHAT]}, "messages", [("system", "Be kind."), *TEXTS], [2, 4]
    ),
    "text_cell": ({"messages": json.dumps(CHAT)}, "messages", TEXTS, [1, 3]),
    "sharegpt": (
        {"conversations": [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": LEAK}]},
        "sharegpt", ASKED, [1],
    ),
    "sharegpt_tools": (
        {
            "conversations": [
                {"from": "human", "value": "Weather?"},
                {"from": "function_call", "value": CALL_TEXT},
                {"from": "observation", "value": "12 degrees"},
                {"from": "gpt", "value": SAFE},
            ],
            "system": "Be kind.",
            "tools": json.dumps([TOOL]),
        },
        "sharegpt",
        [("system", "Be kind."), ("user", "Weather?"), ("assistant", CALL_TEXT), ("tool", "12 degrees"),
         ("assistant", SAFE)],
        [2, 4],
    ),
    "alpaca": ({"instruction": "Who?", "input": "", "output": LEAK}, "alpaca", ASKED, [1]),
    "alpaca_input": (
        {"instruction": "Sort.", "input": "b, a", "output": "a, b it is."}, "alpaca",
        [("user", "Sort.\nb, a"), ("assistant", "a, b it is.")], [1],
    ),
    "alpaca_history": (
        {"instruction": "Who?", "output": LEAK, "system": "Be kind.", "history": [["Hi", SAFE]]}, "alpaca",
        [("system", "Be kind."), *TEXTS], [2, 4],
    ),
    "prompt_response": ({"prompt": "Who?", "response": LEAK}, "prompt-response", ASKED, [1]),
    "prompt_completion": (
        {"prompt": [turn("user", "Who?")], "completion": [turn("assistant", LEAK)]}, "prompt-response", ASKED, [1]
    ),
    "question_answer": ({"question": "Who?", "answer": LEAK}, "prompt-response", ASKED, [1]),
    "query_response": ({"query": "Who?", "response": LEAK}, "prompt-response", ASKED, [1]),
    "dolly": (
        {"instruction": "Who?", "context": "The note says Ada.", "response": LEAK, "category": "qa"},
        "prompt-response", [("user", "Who?\nThe note says Ada."), ("assistant", LEAK)], [1],
    ),
    "openorca": (
        {"system_prompt": "Be kind.", "question": "Who?", "response": LEAK}, "prompt-response",
        [("system", "Be kind."), *ASKED], [2],
    ),
    "preference": ({"prompt": "Who?", "chosen": LEAK, "rejected": "No."}, "preference", ASKED, [1]),
    "preference_messages": ({"chosen": CHAT, "rejected": CHAT[:2], "score_chosen": 8.5}, "preference", TEXTS, [1, 3]),
    "hh": (
        {"chosen": f"\n\nHuman: Hi\n\nAssistant: {SAFE}\n\nHuman: Who?\n\nAssistant: {LEAK}", "rejected": "x"},
        "preference", TEXTS, [1, 3],
    ),
    "openai_calls": (
        {
            "messages": [
                turn("user", "Weather?"), turn("assistant", None, tool_calls=[CALL]),
                turn("tool", "12 degrees", tool_call_id="c1"), turn("assistant", SAFE),
            ],
            "tools": [TOOL],
        },
        "openai",
        [("user", "Weather?"), ("assistant", CALL_TEXT), ("tool", "12 degrees"), ("assistant", SAFE)],
        [1, 3],
    ),
    "openai_parts": (
        {"messages": [turn("user", [{"type": "text", "text": "Who?"}]), turn("assistant", LEAK)]}, "openai", ASKED, [1]
    ),
    "openai_weight": (
        {"messages": [CHAT[0], {**CHAT[1], "weight": 0}, CHAT[2], {**CHAT[3], "weight": 1}]}, "openai", TEXTS, [3]
    ),
    "axolotl_train": (
        {"messages": [CHAT[0], {**CHAT[1], "train": False}, CHAT[2], CHAT[3]]}, "messages", TEXTS, [3]
    ),
    "kto": ({"prompt": "Who?", "completion": LEAK, "label": True}, "kto", ASKED, [1]),
    "ultrachat": ({"data": [text for _, text in TEXTS]}, "ultrachat", TEXTS, [1, 3]),
    "thinking": (
        {"messages": [turn("user", "Who?"), turn("assistant", SAFE, reasoning_content="Is it safe to say?")]},
        "messages",
        [("user", "Who?"), ("assistant", f"<think>\nIs it safe to say?\n</think>\n\n{SAFE}")], [1],
    ),
}  # fmt: skip

OASST = [
    {"message_id": "q", "parent_id": None, "message_tree_id": "q", "role": "prompter", "text": "Hi", "rank": None},
    {"message_id": "a1", "parent_id": "q", "message_tree_id": "q", "role": "assistant", "text": SAFE, "rank": 0},
    {"message_id": "a2", "parent_id": "q", "message_tree_id": "q", "role": "assistant", "text": "Hello.", "rank": 1},
    {"message_id": "q2", "parent_id": "a1", "message_tree_id": "q", "role": "prompter", "text": "Who?", "rank": None},
    {"message_id": "b1", "parent_id": "q2", "message_tree_id": "q", "role": "assistant", "text": LEAK, "rank": 0},
    {"message_id": "b2", "parent_id": "q2", "message_tree_id": "q", "role": "assistant", "text": "No.", "rank": 1},
]


def write(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path
