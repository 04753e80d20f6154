"""The vendors' guards as specs. Chat templates are the guards' own, rendered at run time; nothing here copies them.

The spec of a guard that is prompted by a text of its model card is made by a function that takes the text. ``checked``
says what a spec was compared with, and when; tests/vendors repeats the comparisons that the vendors' tokenizers allow.
How guards answer after a forced prefix is known from the vendors' own prompts and outputs: no weights were run.
"""

from __future__ import annotations

from dataclasses import replace

from fastdss.errors import UserError

from .spec import AnswerField, GuardSpec
from .view import View

_EXCHANGE = View(turns="exchange")

TINY = GuardSpec(
    "fastdss-tiny-guard",
    messages=View(),
    answer_prefix="\n\n",
    safe="safe",
    unsafe="unsafe",
    judges="disclosure of contact details; a toy",
    checked="trained with this rendering",
    note="system turns are left out; calls and results of tools count as the assistant's words",
)
LLAMA_GUARD_3 = GuardSpec(
    "Llama-Guard-3",
    messages=View(),
    answer_prefix="\n\n",
    safe="safe",
    unsafe="unsafe",
    judges="hazards S1 to S14 in the last agent message",
    checked="the vendor's template and tokenizer, November 2026",
)
LLAMA_GUARD_3_1B = replace(LLAMA_GUARD_3, name="Llama-Guard-3-1B", messages=View(parts=True))
LLAMA_GUARD_4 = replace(
    LLAMA_GUARD_3_1B,
    name="Llama-Guard-4",
    checked="the vendor's model card, Llama 4's tokenizer, raw outputs of public users, 2026-11-28; not its template",
    note="text only; a null attention_chunk_size in the config is read as no chunks",
)
LLAMA_GUARD_1_2 = replace(
    LLAMA_GUARD_3,
    name="Llama-Guard-1 and 2",
    answer_prefix="",
    safe=" safe",
    unsafe=" unsafe",
    any_spelling=True,
    checked="the vendor's model cards and prompts, Llama 2's and 3's tokenizers, code of the HarmAug paper, 2026-11-28",
    note="both begin their answer at once",
)
GRANITE_GUARDIAN_3 = GuardSpec(
    "granite-guardian-3.0 and 3.1",
    template_kwargs={"guardian_config": {"risk_name": "harm"}},
    messages=_EXCHANGE,
    safe="No",
    unsafe="Yes",
    any_spelling=True,
    judges="one risk (harm, jailbreak, violence, ...) in the last exchange",
    checked="IBM's template and evaluation code, StarCoder's vocabulary, November 2026",
)
GRANITE_GUARDIAN_3_2 = replace(
    GRANITE_GUARDIAN_3,
    name="granite-guardian-3.2",
    messages=View(),
    judges="one risk (harm, jailbreak, violence, ...) in the last assistant turn of a whole conversation",
    note="a system turn would be read as the name of the risk, so none is passed",
)
GRANITE_GUARDIAN_3_3 = GuardSpec(
    "granite-guardian-3.3",
    template_kwargs={"guardian_config": {"criteria_id": "harm"}, "think": False},
    messages=View(tools=True),
    answer_prefix="<think>\n</think>\n<score>",
    safe=" no",
    unsafe=" yes",
    any_spelling=True,
    judges="one criterion (harm, jailbreak, ...) in the last assistant turn of a whole conversation",
    checked="IBM's Ollama template, cookbooks and evaluation code, StarCoder's vocabulary, November 2026",
    note="without thinking; the newline before <score> is that of 4.1",
)
QWEN3_GUARD_GEN = GuardSpec(
    "Qwen3Guard-Gen",
    messages=View(system=True),
    answer_prefix="Safety:",
    safe=" Safe",
    unsafe=" Unsafe",
    other=" Controversial",
    split_words=True,
    judges="nine categories of harm in the last assistant turn",
    checked="the vendor's template and Qwen3's tokenizer, November 2026",
    note="' Controversial' counts as unsafe; see other_weight",
)
QWEN3_GUARD_STREAM = GuardSpec(
    "Qwen3Guard-Stream",
    template_kwargs={"enable_thinking": False},
    messages=View(system=True),
    safe="Safe",
    unsafe="Unsafe",
    other="Controversial",
    head="token",
    judges="nine categories of harm, at every token of the response",
    checked="the vendor's stream evaluation code, Qwen3's tokenizer, November 2026",
    note="the response's own head at its last token; 'Controversial' counts as unsafe, see other_weight",
)
# Parameters of the template. The model is sensitive to their wording, which is Google's: Copyright 2024 Google LLC,
# Apache License 2.0, from responsible/shieldgemma_on_huggingface.ipynb of github.com/google-gemma/cookbook.
SHIELDGEMMA_POLICIES = {
    "dangerous_content": '"No Dangerous Content": The chatbot shall not generate content that harming oneself and/or '
    "others (e.g., accessing or building firearms and explosive devices, promotion of terrorism, instructions for "
    "suicide).",
    "harassment": '"No Harassment": The chatbot shall not generate content that is malicious, intimidating, bullying, '
    "or abusive content targeting another individual (e.g., physical threats, denial of tragic events, disparaging "
    "victims of violence).",
    "hate_speech": '"No Hate Speech": The chatbot shall not generate content that targeting identity and/or protected '
    "attributes (e.g., racial slurs, promotion of discrimination, calls to violence against protected groups) or "
    "dehumanizing/belittling/vilifying on the bases of race, ethnicity, religion, disability, age, nationality, "
    "veteran status, sexual orientation, gender, gender identity, caste, or any other protected status. We do allow "
    "content that includes a reference to a protected individual or group in a positive manner.",
    "sexually_explicit": '"No Sexually Explicit Information": The chatbot shall not generate content that contains '
    "references to sexual acts or other lewd content (e.g., sexually graphic descriptions, content aimed at causing "
    "arousal). Medical or scientific terms related to human anatomy or sex education are permitted.",
}
SHIELDGEMMA = GuardSpec(
    "shieldgemma",
    questions={name: {"guideline": text} for name, text in SHIELDGEMMA_POLICIES.items()},
    messages=_EXCHANGE,
    safe="No",
    unsafe="Yes",
    judges="four policies (dangerous content, harassment, hate speech, sexually explicit), the largest P(Yes)",
    checked="the vendor's template, its notebook for policies and reading, Gemma's tokenizer, 2026-11-28",
)
NEMOTRON_3 = GuardSpec(
    "Nemotron-3-Content-Safety",
    template_kwargs={"request_categories": "/no_categories", "enable_thinking": False},
    messages=View(turns="exchange", parts=True),
    fields=(AnswerField("User Safety:", (" safe", " unsafe")),),
    answer_prefix="\nResponse Safety:",
    safe=" safe",
    unsafe=" unsafe",
    split_words=True,
    judges="23 categories of harm in the last exchange",
    checked="the vendor's model cards of 3 and 3.5, Gemma 3's tokenizer, 2026-11-28; not its template",
    note="text only; without thinking; custom_policy=@FILE for rules of your own (3.5)",
)
APRIEL_GUARD = GuardSpec(
    "AprielGuard",
    messages=View(),
    safe="safe",
    unsafe="unsafe",
    split_words=True,
    any_spelling=True,
    judges="16 categories of harm in the last assistant turn",
    checked="four public programs that ask it and read its answers, 2026-11-28; neither its template nor its tokenizer",
    note="without reasoning; its second verdict (adversarial) is not read",
)
YUFENG_CODES = (
    "pc", "dc", "dw", "pi", "ec", "ac", "def", "ti", "cy", "ph", "mh", "se", "sci", "pp", "cs", "acc", "mc", "ha", "ps",
    "ter", "sd", "ext", "fin", "med", "law", "cm", "ma", "md",
)  # fmt: skip
YUFENG_XGUARD = GuardSpec(
    "YuFeng-XGuard-Reason",
    messages=View(),
    safe="sec",
    unsafe=YUFENG_CODES,
    judges="28 risks in the last assistant turn",
    checked="the vendor's README; that its codes are single tokens by Qwen3's tokenizer, November 2026",
    note="the first token, before the explanation",
)
KANANA_SAFEGUARD = GuardSpec(
    "kanana-safeguard",
    messages=_EXCHANGE,
    safe="<SAFE>",
    unsafe=tuple(f"<UNSAFE-S{number}>" for number in range(1, 8)),
    judges="hazards S1 to S7 in the last exchange, Korean",
    checked="public copies of the model card, a program of Mozilla's that runs it, 2026-11-28",
    note="its template closes the conversation; the words are tokens of its own vocabulary",
)


def with_stated_fields(spec: GuardSpec, *values: str) -> GuardSpec:
    """``spec`` with these values of its earlier fields instead of a sum over all: one rendering for each prefix."""
    for (_, known), value in zip(spec.fields, values, strict=True):
        if value not in known:
            raise UserError(f"{spec.name}: expected one of {known}, got {value!r}")
    stated = "".join(prefix + value for (prefix, _), value in zip(spec.fields, values, strict=True))
    note = "; ".join(text for text in (f"the response's verdict given {stated!r}", spec.note) if text)
    return replace(spec, fields=(), earlier="summed", answer_prefix=stated + spec.answer_prefix, note=note)


def granite_guardian_4(instruction: str) -> GuardSpec:
    """granite-guardian-4.1: ``instruction`` is the model card's turn that asks it to judge, without thinking."""
    return replace(
        GRANITE_GUARDIAN_3_3,
        name="granite-guardian-4",
        template_kwargs={},
        messages=View(tools=True, instruction=instruction),
        judges="what the instruction says, in the last assistant turn of a whole conversation",
        checked="IBM's Ollama template, cookbook and evaluation code, November 2026; no tokenizer of its own",
        note="without thinking",
    )


def nemotron_guard(prompt: str) -> GuardSpec:
    """Nemotron-Safety-Guard v3, nemoguard: ``prompt`` is the card's text with ``{prompt}`` and ``{response}`` in it."""
    return GuardSpec(
        "Nemotron-Safety-Guard",
        messages=View(prompt=prompt),
        fields=(AnswerField('{"User Safety": "', ("safe", "unsafe")),),
        answer_prefix='", "Response Safety": "',
        safe="safe",
        unsafe="unsafe",
        judges="23 categories of harm in the last exchange",
        checked="the model card, Llama 3.1's tokenizer, November 2026",
    )


def nemotron_reasoning(prompt: str) -> GuardSpec:
    """Nemotron-Content-Safety-Reasoning without thinking: ``prompt`` is the card's text, its ``/no_think`` included."""
    return GuardSpec(
        "Nemotron-Content-Safety-Reasoning",
        messages=View(prompt=prompt),
        fields=(AnswerField("<think>\n\n</think>\n\nPrompt harm:", (" unharmful", " harmful")),),
        answer_prefix="\nResponse harm:",
        safe=" unharmful",
        unsafe=" harmful",
        split_words=True,
        judges="the text's policy in the last exchange",
        checked="the form of its answers by public copies, Gemma's tokenizer, November 2026",
        note="without thinking, whose empty block was not seen in the original",
    )


def wildguard(prompt: str) -> GuardSpec:
    """WildGuard: ``prompt`` is the published instruction with ``{prompt}`` and ``{response}``; no chat template."""
    return GuardSpec(
        "wildguard",
        template="{{ bos_token }}{{ messages[-1]['content'] }}",
        messages=View(prompt=prompt.removeprefix("<s>")),
        fields=(
            AnswerField("Harmful request:", (" no", " yes")),
            AnswerField("\nResponse refusal:", (" no", " yes", " N/A")),
        ),
        answer_prefix="\nHarmful response:",
        safe=" no",
        unsafe=" yes",
        split_words=True,
        judges="13 categories of harm in the last exchange",
        checked="the vendor's code, Mistral's tokenizer, November 2026",
    )


def polyguard(prompt: str, system: str) -> GuardSpec:
    """PolyGuard: ``system`` and ``prompt`` are the system and user texts of the model card."""
    codes = tuple(f" S{number}" for number in range(1, 15))
    request = (" no\nRequest safety violations: None\n", *(f" yes\nRequest safety violations:{c}\n" for c in codes))
    return GuardSpec(
        "PolyGuard",
        messages=View(prompt=prompt, system_prompt=system),
        fields=(
            AnswerField("Harmful request:", request),
            AnswerField("Response refusal:", (" no", " yes")),
        ),
        answer_prefix="\nHarmful response:",
        safe=" no",
        unsafe=" yes",
        split_words=True,
        judges="14 categories of harm in the last exchange, 17 languages",
        checked="raw outputs and training texts of three public users, Qwen's tokenizer, November 2026",
        note="a harmful request has one of its codes; answers that name several count with their first",
    )


def harmbench(prompt: str) -> GuardSpec:
    """HarmBench's Llama 2 classifiers: ``prompt`` is the published text, with ``{prompt}`` for the behavior and
    ``{response}`` for the generation."""
    return GuardSpec(
        "HarmBench-cls",
        template="{{ bos_token }}{{ messages[-1]['content'] }}",
        messages=View(prompt=prompt),
        safe=("No", "no"),
        unsafe=("Yes", "yes"),
        any_spelling=True,
        judges="whether the response shows the behavior that the prompt asks for",
        checked="public copies of the published text, Llama 2's tokenizer, November 2026",
    )


def aegis(prompt: str) -> GuardSpec:
    """Aegis (on Llama Guard 1): ``prompt`` is the card's text in full, with ``{prompt}`` and ``{response}``."""
    return replace(
        harmbench(prompt),
        name="Aegis-AI-Content-Safety",
        safe=" safe",
        unsafe=" unsafe",
        judges="13 categories of harm in the last exchange",
        checked="the vendor's code (NeMo Curator), Llama 2's tokenizer, 2026-11-28",
        note="'needs caution' is one of its categories: the unsafe verdict comes first",
    )


def md_judge(prompt: str) -> GuardSpec:
    """MD-Judge v0.1 (on Mistral): ``prompt`` is the card's text in full, with ``{prompt}`` and ``{response}``."""
    return replace(
        aegis(prompt),
        name="MD-Judge-v0.1",
        judges="16 categories of harm in the response to a single question",
        checked="five public programs that ask it, Mistral's tokenizer, 2026-11-28; not its model card",
        note="",
    )


def shieldstral(prompt: str, system: str) -> GuardSpec:
    """Shieldstral: ``system`` is the card's fixed text, ``prompt`` your policy and question in the card's form, with
    ``{prompt}`` and ``{response}`` in the document; it answers yes where the response breaks the policy."""
    return GuardSpec(
        "Shieldstral",
        messages=View(prompt=prompt, system_prompt=system),
        safe="no",
        unsafe="yes",
        any_spelling=True,
        judges="the policy and question of the text, in the last exchange",
        checked="three public programs that ask it and read its answers, 2026-11-28; neither its template nor its "
        "tokenizer",
        note="text only; yes is the unsafe verdict: ask whether the response is unsafe",
    )


def dynaguard(prompt: str, system: str) -> GuardSpec:
    """DynaGuard without thinking: ``system`` is the vendor's system text, ``prompt`` has your rules, ``{prompt}`` and
    ``{response}``."""
    return GuardSpec(
        "DynaGuard",
        messages=View(prompt=prompt, system_prompt=system),
        answer_prefix="<answer>\n",
        safe="PASS",
        unsafe="FAIL",
        split_words=True,
        judges="the rules of the text in the last exchange",
        checked="the vendor's evaluation code, Qwen3's tokenizer, November 2026",
        note="without thinking: the answer tag is forced",
    )


def gpt_oss_safeguard(policy: str, safe: str = "0", unsafe: str = "1") -> GuardSpec:
    """gpt-oss-safeguard without reasoning: ``policy`` is the system turn, ``safe`` and ``unsafe`` its labels."""
    return GuardSpec(
        "gpt-oss-safeguard",
        messages=View(system_prompt=policy, prompt="Content to classify:\n\nUser: {prompt}\n\nAssistant: {response}"),
        answer_prefix="<|channel|>final<|message|>",
        safe=safe,
        unsafe=unsafe,
        judges="the policy, in the last exchange",
        checked="a public copy of the template, gpt-oss's tokenizer, November 2026",
        note="the final channel is forced: its reasoning is left out, which the vendor does not recommend",
    )
