"""The guards that fastdss knows. Chat templates are the guards' own, rendered at run time; nothing here copies them.

Guards whose prompt is no chat template but a text on the model card (Nemotron, WildGuard, PolyGuard, Granite 4.1) are
made by a function that takes that text. Guards with several fields (prompt harm, refusal, response harm) are read at
the response's field, *given* stated values of the fields before it; ``note`` says which.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

from .chat import Conversation, Message
from .guard import GuardSpec


def without_system(conversation: Conversation) -> list[Message]:
    """User and assistant turns only: templates that insist on alternation refuse system turns."""
    return [message for message in conversation if message["role"] != "system"]


def as_parts(conversation: Conversation) -> list[Message]:
    """As ``without_system``, content as a list of typed parts."""
    return [
        {"role": message["role"], "content": [{"type": "text", "text": message["content"]}]}
        for message in without_system(conversation)
    ]


def last_exchange(conversation: Conversation) -> list[Message]:
    """The last user turn and the assistant's answer to it."""
    return without_system(conversation)[-2:]


def judged_by(instruction: str) -> Callable[[Conversation], list[Message]]:
    """The last exchange, then a user turn that asks for the judgement."""
    return lambda conversation: [*last_exchange(conversation), {"role": "user", "content": instruction}]


def in_one_message(prompt: str, system: str | None = None) -> Callable[[Conversation], list[Message]]:
    """One user message: ``prompt`` with ``{prompt}`` and ``{response}`` replaced by the last exchange."""
    parts: list[str] = re.split(r"(\{prompt\}|\{response\})", prompt)
    if {"{prompt}", "{response}"} - set(parts):
        raise ValueError("prompt: expected a text that holds {prompt} and {response}")

    def messages(conversation: Conversation) -> list[Message]:
        turns = last_exchange(conversation)
        texts = {"{response}": turns[-1]["content"], "{prompt}": turns[0]["content"] if len(turns) > 1 else ""}
        content = "".join(texts.get(part, part) for part in parts)
        before = [{"role": "system", "content": system}] if system else []
        return [*before, {"role": "user", "content": content}]

    return messages


TINY = GuardSpec("fastdss-tiny-guard", answer_prefix="\n\n", safe="safe", unsafe="unsafe")

LLAMA_GUARD_3 = GuardSpec("Llama-Guard-3", messages=without_system, answer_prefix="\n\n", safe="safe", unsafe="unsafe")
LLAMA_GUARD_3_1B = replace(LLAMA_GUARD_3, name="Llama-Guard-3-1B", messages=as_parts)

GRANITE_GUARDIAN_3 = GuardSpec(
    "granite-guardian-3.0 to 3.2",
    template_kwargs={"guardian_config": {"risk_name": "harm"}},
    messages=last_exchange,
    safe="No",
    unsafe="Yes",
    note="one risk at a time (harm); the last exchange only, as the template has it",
)
GRANITE_GUARDIAN_3_3 = GuardSpec(
    "granite-guardian-3.3",
    template_kwargs={"guardian_config": {"criteria_id": "harm"}, "think": False},
    messages=last_exchange,
    answer_prefix="<score>",
    safe=" no",
    unsafe=" yes",
    note="without thinking; the blank before the verdict was not seen in the original, construction checks it",
)
QWEN3_GUARD_GEN = GuardSpec(
    "Qwen3Guard-Gen",
    messages=without_system,
    answer_prefix="Safety:",
    safe=" Safe",
    unsafe=" Unsafe",
    other=" Cont",
    note="' Cont' is the first piece of ' Controversial', which counts as unsafe; see other_weight",
)
SHIELDGEMMA = GuardSpec(
    "shieldgemma",
    template_kwargs={"guideline": "The chatbot shall not generate content that is harmful, illegal or abusive."},
    messages=last_exchange,
    safe="No",
    unsafe="Yes",
    note="one guideline at a time; card and template disagree on where it stands, the template decides",
)


# The fields before the response's in WildGuard and PolyGuard: a harmless request that was not refused.
_HARMLESS_AND_ANSWERED = "Harmful request: no\nResponse refusal: no\nHarmful response:"


def granite_guardian_4(instruction: str) -> GuardSpec:
    """granite-guardian-4.x: ``instruction`` is the judge's turn from the model card."""
    return GuardSpec(
        "granite-guardian-4",
        messages=judged_by(instruction),
        answer_prefix="<think>\n</think><score>",
        safe=" no",
        unsafe=" yes",
        note="the thinking block is forced to be empty; its exact bytes were not seen in the original",
    )


def nemotron_guard(prompt: str) -> GuardSpec:
    """Nemotron-Safety-Guard v3: ``prompt`` is the card's text with ``{prompt}`` and ``{response}`` in it."""
    return GuardSpec(
        "Nemotron-Safety-Guard",
        messages=in_one_message(prompt),
        answer_prefix='{"User Safety": "safe", "Response Safety": "',
        safe="safe",
        unsafe="unsafe",
        note="the response's verdict given that the user's message is safe",
    )


def wildguard(prompt: str) -> GuardSpec:
    """WildGuard: ``prompt`` is the published instruction with ``{prompt}`` and ``{response}``; no chat template."""
    return GuardSpec(
        "wildguard",
        template="{{ bos_token }}{{ messages[-1]['content'] }}",
        messages=in_one_message(prompt),
        answer_prefix=_HARMLESS_AND_ANSWERED,
        safe=" no",
        unsafe=" yes",
        note="the response's verdict given a harmless request that was not refused",
    )


def polyguard(prompt: str, system: str) -> GuardSpec:
    """PolyGuard: system and user texts of the model card; fields in WildGuard's order."""
    return GuardSpec(
        "PolyGuard",
        messages=in_one_message(prompt, system),
        answer_prefix=_HARMLESS_AND_ANSWERED,
        safe=" no",
        unsafe=" yes",
        note="the response's verdict given a harmless request that was not refused; the order of fields was not seen",
    )


_KNOWN: list[tuple[str, GuardSpec]] = [
    (r"fastdss.tiny.guard|tiny_guard", TINY),
    (r"llama.guard.3.1b", LLAMA_GUARD_3_1B),
    (r"llama.guard.3", LLAMA_GUARD_3),
    (r"granite.guardian.3\.[012](?!\d)", GRANITE_GUARDIAN_3),
    (r"granite.guardian.3\.3", GRANITE_GUARDIAN_3_3),
    (r"qwen3guard.gen", QWEN3_GUARD_GEN),
    (r"shieldgemma", SHIELDGEMMA),
]
_BY_TEXT = [
    (r"granite.guardian.4", "granite_guardian_4"),
    (r"nemotron.*guard", "nemotron_guard"),
    (r"wildguard", "wildguard"),
    (r"polyguard", "polyguard"),
]


def find_spec(name: str) -> GuardSpec:
    """The spec of a guard by its Hub id or path; ``ValueError`` when none is known or the card's text is needed."""
    for pattern, spec in _KNOWN:
        if re.search(pattern, name, re.IGNORECASE):
            return spec
    for pattern, function in _BY_TEXT:
        if re.search(pattern, name, re.IGNORECASE):
            raise ValueError(
                f"{name!r} is prompted by a text on its model card: pass spec=fastdss.specs.{function}(...)"
            )
    raise ValueError(f"no GuardSpec is known for {name!r}; pass spec=GuardSpec(...)")
