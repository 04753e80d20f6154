"""The vendors' guards that are classifiers: a class of a head is the verdict, and most of them read a single text.

``checked`` says what a spec was compared with, and when, as in vendors.py.
"""

from __future__ import annotations

from dataclasses import replace

from .spec import GuardSpec
from .view import View

DUOGUARD = GuardSpec(
    "DuoGuard",
    template="{{ messages[-1]['content'] }}",
    messages=View(turns="response"),
    unsafe=tuple(map(str, range(12))),
    head="sequence",
    independent=True,
    judges="twelve categories of harm in the response's text, the likeliest",
    checked="the vendor's README and two public wrappers, November 2026",
    note="it was trained on single texts: the prompt is not shown",
)
_ENCODER = "an encoder: one forward for each prefix"
PROMPT_GUARD_2 = GuardSpec(
    "Llama-Prompt-Guard-2",
    template="{{ cls_token }}{{ messages[-1]['content'] }}{{ sep_token }}",
    messages=View(turns="response"),
    safe="0",
    unsafe="1",
    head="sequence",
    judges="jailbreaks and injections in the response's text alone",
    checked="the vendor's model card and inference code, 2026-11-28",
    note="made for prompts and tool results of at most 512 tokens; asked as on its model card, without LlamaFirewall's "
    f"new spacing; {_ENCODER}",
)
TOXIC_BERT = replace(
    PROMPT_GUARD_2,
    name="toxic-bert",
    safe=(),
    unsafe=tuple(map(str, range(6))),
    independent=True,
    judges="six kinds of toxicity in the response's text alone, the likeliest",
    checked="the vendor's code (detoxify), 2026-11-28",
    note=_ENCODER,
)
HARMAUG = replace(
    PROMPT_GUARD_2,
    name="HarmAug-Guard",
    template="{{ cls_token }}{{ messages[-2]['content'] }}{{ sep_token }}{{ messages[-1]['content'] }}{{ sep_token }}",
    messages=View(turns="exchange"),
    judges="harm in the last assistant turn",
    checked="the vendor's code for training and evaluation, 2026-11-28",
    note=_ENCODER,
)
GRANITE_HAP = replace(
    PROMPT_GUARD_2,
    name="granite-guardian-hap",
    judges="hate, abuse and profanity in the response's text alone",
    checked="the vendor's code (data-prep-kit), 2026-11-28",
    note=f"IBM asks it sentence by sentence and takes the worst, here the whole text; {_ENCODER}",
)
UNBIASED_TOXIC_ROBERTA = replace(
    TOXIC_BERT,
    name="unbiased-toxic-roberta",
    unsafe=(
        "toxicity",
        "severe_toxicity",
        "obscene",
        "identity_attack",
        "insult",
        "threat",
        "sexual_explicit",
    ),
    judges="seven kinds of toxicity in the response's text alone, the likeliest",
    checked="public programs that print its labels, 2026-11-28; not the vendor's code",
    note=f"its other labels say whom a text mentions and are not read; {_ENCODER}",
)
PROMPT_GUARD_1 = replace(
    PROMPT_GUARD_2,
    name="Prompt-Guard-86M",
    unsafe=("1", "2"),
    checked="public programs that ask it and a summary of its card, 2026-11-28; not the card itself",
    note="injections (1) and jailbreaks (2) both count as unsafe, as its card asks of texts of third parties; made for "
    f"prompts and tool results of at most 512 tokens; {_ENCODER}",
)
PROMPT_INJECTION = replace(
    PROMPT_GUARD_2,
    name="deberta-v3-prompt-injection",
    judges="injections in the response's text alone",
    checked="two public programs that name its labels, 2026-11-28; not the vendor's code",
    note=f"made for prompts of at most 512 tokens; {_ENCODER}",
)
