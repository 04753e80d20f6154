"""The guards that fastdss knows. Chat templates are the guards' own, rendered at run time; nothing here copies them.

Guards whose prompt is no chat template but a text on the model card (Nemotron, WildGuard, PolyGuard, Granite 4.1) are
made by a function that takes that text. Guards with several fields (prompt harm, refusal, response harm) are read at
the response's field, *given* stated values of the fields before it (``note`` says which) or summed over their values.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from fastdss.chat.encoder import Conversation, Message
from fastdss.errors import UserError

from .spec import AnswerField, GuardSpec

TINY_FOLDER = Path(__file__).parent / "tiny_guard"


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
        raise UserError("prompt: expected a text that holds {prompt} and {response}")

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
QWEN3_GUARD_STREAM = GuardSpec(
    "Qwen3Guard-Stream",
    template_kwargs={"enable_thinking": False},
    messages=without_system,
    safe="Safe",
    unsafe="Unsafe",
    other="Controversial",
    token_head=True,
    note="the response's own head at its last token; 'Controversial' counts as unsafe, see other_weight",
)
SHIELDGEMMA = GuardSpec(
    "shieldgemma",
    template_kwargs={"guideline": "The chatbot shall not generate content that is harmful, illegal or abusive."},
    messages=last_exchange,
    safe="No",
    unsafe="Yes",
    note="one guideline at a time; card and template disagree on where it stands, the template decides",
)


_TWO_FIELDS = (AnswerField("Harmful request:", (" no", " yes")), AnswerField("\nResponse refusal:", (" no", " yes")))


def with_stated_fields(spec: GuardSpec, *values: str) -> GuardSpec:
    """``spec`` given these values of its earlier fields, instead of their sum: one rendering for each prefix."""
    for (_, known), value in zip(spec.fields, values, strict=True):
        if value not in known:
            raise UserError(f"{spec.name}: expected one of {known}, got {value!r}")
    stated = "".join(prefix + value for (prefix, _), value in zip(spec.fields, values, strict=True))
    note = f"the response's verdict given {stated!r}"
    return replace(spec, fields=(), answer_prefix=stated + spec.answer_prefix, note=note)


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


def nemotron_guard(prompt: str, *, marginal: bool = False) -> GuardSpec:
    """Nemotron-Safety-Guard v3: ``prompt`` is the card's text with ``{prompt}`` and ``{response}`` in it.

    Given that the user's message is safe; with ``marginal``, summed over both verdicts on it.
    """
    spec = GuardSpec(
        "Nemotron-Safety-Guard",
        messages=in_one_message(prompt),
        fields=(AnswerField('{"User Safety": "', ("safe", "unsafe")),),
        answer_prefix='", "Response Safety": "',
        safe="safe",
        unsafe="unsafe",
    )
    return spec if marginal else with_stated_fields(spec, "safe")


def wildguard(prompt: str, *, marginal: bool = False) -> GuardSpec:
    """WildGuard: ``prompt`` is the published instruction with ``{prompt}`` and ``{response}``; no chat template.

    Given a harmless request that was not refused; with ``marginal``, summed over what the guard says of both.
    """
    spec = GuardSpec(
        "wildguard",
        template="{{ bos_token }}{{ messages[-1]['content'] }}",
        messages=in_one_message(prompt),
        fields=_TWO_FIELDS,
        answer_prefix="\nHarmful response:",
        safe=" no",
        unsafe=" yes",
    )
    return spec if marginal else with_stated_fields(spec, " no", " no")


def polyguard(prompt: str, system: str, *, marginal: bool = False) -> GuardSpec:
    """PolyGuard: system and user texts of the model card; fields and ``marginal`` as WildGuard's.

    The order of the fields was not seen in the original.
    """
    spec = GuardSpec(
        "PolyGuard",
        messages=in_one_message(prompt, system),
        fields=_TWO_FIELDS,
        answer_prefix="\nHarmful response:",
        safe=" no",
        unsafe=" yes",
    )
    return spec if marginal else with_stated_fields(spec, " no", " no")


class Known(NamedTuple):
    """How a guard is told apart: by the last part of its id or folder, its config, and words of its chat template.

    ``spec`` is the name of a function where the guard is prompted by a text that the user must bring.
    """

    spec: GuardSpec | str
    name: str  # a pattern
    kinds: tuple[str, ...] = ()  # model_type or architectures
    template: tuple[str, ...] = ()  # patterns, all of which the template holds; none: no template tells


_LLAMA_TASK = r"excluded_category_keys|\bcategories\b"
_PARTS = r"\[.text.\]|\.text\b|selectattr|is (not )?string"
KNOWN = (
    Known(TINY, r"fastdss.tiny.guard|^tiny_guard$", ("llama",), (r"the tiny guard judges",)),
    Known(LLAMA_GUARD_3_1B, r"llama.guard.3.1b", ("llama",), (_LLAMA_TASK, _PARTS)),
    Known(LLAMA_GUARD_3, r"llama.guard.3(?!.?11?b)", ("llama",), (_LLAMA_TASK, rf"\A(?![\s\S]*({_PARTS}))")),
    Known(
        GRANITE_GUARDIAN_3, r"granite.guardian.3\.[012](?!\d)", ("granite", "granitemoe"),
        (r"guardian_config", r"risk_name", r"\A(?![\s\S]*criteria_id)"),
    ),
    Known(GRANITE_GUARDIAN_3_3, r"granite.guardian.3\.3", ("granite",), (r"guardian_config", r"criteria_id")),
    Known(QWEN3_GUARD_GEN, r"qwen3guard.gen", ("qwen3",), (r"Safety:", r"Controversial")),
    Known(QWEN3_GUARD_STREAM, r"qwen3guard.stream", ("Qwen3ForGuardModel",)),
    Known(SHIELDGEMMA, r"shieldgemma", ("gemma2",), (r"\bguideline\b",)),
    Known("granite_guardian_4", r"granite.guardian.4", ("granite",)),
    Known("nemotron_guard", r"nemotron.*guard", ("llama",)),
    Known("wildguard", r"wildguard", ("mistral",)),
    Known("polyguard", r"polyguard", ("qwen2", "mistral", "ministral")),
)  # fmt: skip


def find_spec(name: str) -> GuardSpec:
    """The spec of a guard by its Hub id, or by a part of one; ``ValueError`` where that is none or several."""
    return choose_spec([name])


def choose_spec(
    names: Sequence[str], config: Mapping[str, Any] | None = None, template: str | dict | None = None
) -> GuardSpec:
    """The spec of the guard that is called one of ``names``, has this ``config`` (of config.json) and chat template.

    A name decides where the config does not speak against it: the last part of the id or path, else the whole, else
    the name that the config remembers. Without a telling name, config and template must fit one guard alone.
    ``ValueError`` names the choices where several fit, and the function to call where a text of the user's is needed.
    """
    config = config or {}
    kinds = {config.get("model_type"), *(config.get("architectures") or ())} - {None}
    possible = [known for known in KNOWN if not kinds or not known.kinds or kinds & set(known.kinds)]
    called = [name for name in names if name]
    whole = [*called, str(config.get("_name_or_path") or "")]
    for texts in ([re.split(r"[/\\]", name.rstrip("/\\"))[-1] for name in called], called, whole):
        found = [known for known in possible if any(re.search(known.name, text, re.IGNORECASE) for text in texts)]
        if found:
            return _only(found, called)
    texts = list(template.values()) if isinstance(template, dict) else [template or ""]
    return _only([known for known in possible if kinds and _told_by(known, kinds, texts)], called)


def read_config(name_or_path: str, *, revision: str | None = None, gguf_file: str | None = None) -> dict[str, Any]:
    """The model's config.json as it is written, whatever class it names; empty for GGUF files, which have none."""
    from transformers import PreTrainedConfig

    return {} if gguf_file else PreTrainedConfig.get_config_dict(name_or_path, revision=revision)[0]


def _told_by(known: Known, kinds: set[str], templates: Sequence[str]) -> bool:
    if not known.template:
        return any(kind in kinds for kind in known.kinds if kind[0].isupper())  # an architecture of its own
    return any(all(re.search(pattern, text) for pattern in known.template) for text in templates)


def _only(found: list[Known], names: Sequence[str]) -> GuardSpec:
    shown = " ".join(map(repr, names)) or "this model"
    if not found:
        raise UserError(f"no GuardSpec is known for {shown}; pass spec=GuardSpec(...), or the name of a known guard")
    choices = [known.spec if isinstance(known.spec, str) else known.spec.name for known in found]
    if len(found) > 1:
        raise UserError(f"{shown} could be any of {choices}; pass spec= with the one that is meant")
    if isinstance(found[0].spec, str):
        raise UserError(
            f"{shown} is prompted by a text on its model card: pass spec=fastdss.guards.{found[0].spec}(...)"
        )
    return found[0].spec
