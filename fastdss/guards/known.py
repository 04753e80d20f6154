"""Finds out which of the known guards a model is: by its name, its config, and words of its chat template."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fastdss.errors import UserError
from fastdss.models.sources import check_revision, check_source
from fastdss.upstream.transformers import remembered_name

from . import classifiers, vendors
from .spec import GuardSpec

TINY_FOLDER = Path(__file__).parent / "tiny_guard"
TINY = vendors.TINY
Maker = Callable[..., GuardSpec]


class Known(NamedTuple):
    """A known guard, and how it is recognised: by its id or folder, its config, and words of its chat template.

    ``spec`` is a function where the guard is prompted by a text that the user must bring.
    """

    spec: GuardSpec | Maker
    name: str  # a regular expression for its id or folder
    kinds: tuple[str, ...] = ()  # values of model_type or architectures that its config may have
    # Regular expressions, all of which match its chat template; empty: its template does not tell which guard it is.
    template: tuple[str, ...] = ()
    example: str = ""  # an id on the Hub

    @property
    def called(self) -> str:
        return self.spec.name if isinstance(self.spec, GuardSpec) else self.spec.__name__

    @property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """All texts and words that the user may bring, by name."""
        return {} if isinstance(self.spec, GuardSpec) else inspect.signature(self.spec).parameters

    @property
    def texts(self) -> list[str]:
        """The names of the texts that the user must bring."""
        return [name for name, parameter in self.parameters.items() if parameter.default is parameter.empty]

    def sample(self) -> GuardSpec:
        """The spec, with a stand-in for each text that the user must bring."""
        stand_in = "{prompt}\n{response}"
        return self.spec if isinstance(self.spec, GuardSpec) else self.spec(*[stand_in for _ in self.texts])


_LLAMA_TASK = r"excluded_category_keys|\bcategories\b"
_PARTS = r"\[.text.\]|\.text\b|selectattr|is (not )?string"
_NOT_PARTS = rf"\A(?![\s\S]*({_PARTS}))"
_RISK = (r"guardian_config", r"risk_name", r"\A(?![\s\S]*criteria_id)")
_LOOP = r"for \w+ in messages"
KNOWN = (
    Known(TINY, r"fastdss.tiny.guard|^tiny_guard$", ("llama",), (r"the tiny guard judges",), "tiny"),
    Known(vendors.LLAMA_GUARD_3, r"llama.guard.3(?!.?11?b)", ("llama",), (_LLAMA_TASK, _NOT_PARTS),
          "meta-llama/Llama-Guard-3-8B"),
    Known(vendors.LLAMA_GUARD_3_1B, r"llama.guard.3.1b", ("llama",), (_LLAMA_TASK, _PARTS),
          "meta-llama/Llama-Guard-3-1B"),
    Known(vendors.LLAMA_GUARD_4, r"llama.guard.4", ("llama4", "llama4_text"), (_LLAMA_TASK, _PARTS),
          "meta-llama/Llama-Guard-4-12B"),
    Known(vendors.LLAMA_GUARD_1_2, r"llamaguard.7b|llama.guard.2", ("llama",), (), "meta-llama/Meta-Llama-Guard-2-8B"),
    Known(vendors.GRANITE_GUARDIAN_3, r"granite.guardian.3\.[01](?!\d)", ("granite", "granitemoe"),
          (*_RISK, rf"\A(?![\s\S]*{_LOOP})"), "ibm-granite/granite-guardian-3.1-2b"),
    Known(vendors.GRANITE_GUARDIAN_3_2, r"granite.guardian.3\.2(?!\d)", ("granite", "granitemoe"), (*_RISK, _LOOP),
          "ibm-granite/granite-guardian-3.2-5b"),
    Known(vendors.GRANITE_GUARDIAN_3_3, r"granite.guardian.3\.3", ("granite",), (r"guardian_config", r"criteria_id"),
          "ibm-granite/granite-guardian-3.3-8b"),
    Known(vendors.granite_guardian_4, r"granite.guardian.4", ("granite", "granitemoehybrid"), (),
          "ibm-granite/granite-guardian-4.1-8b"),
    Known(classifiers.GRANITE_HAP, r"granite.guardian.hap", ("roberta",), (), "ibm-granite/granite-guardian-hap-38m"),
    Known(vendors.QWEN3_GUARD_GEN, r"qwen3guard.gen", ("qwen3",), (r"Safety:", r"Controversial"),
          "Qwen/Qwen3Guard-Gen-0.6B"),
    Known(vendors.QWEN3_GUARD_STREAM, r"qwen3guard.stream", ("Qwen3ForGuardModel",), (), "Qwen/Qwen3Guard-Stream-0.6B"),
    Known(vendors.SHIELDGEMMA, r"shieldgemma", ("gemma2",), (r"\bguideline\b",), "google/shieldgemma-2b"),
    Known(vendors.nemotron_guard, r"nemotron(?!.*reasoning).*guard|nemoguard", ("llama",), (),
          "nvidia/Llama-3.1-Nemotron-Safety-Guard-8B-v3"),
    Known(vendors.nemotron_reasoning, r"nemotron.*safety.reasoning", ("gemma3", "gemma3_text"), (),
          "nvidia/Nemotron-Content-Safety-Reasoning-4B"),
    Known(vendors.NEMOTRON_3, r"nemotron.3(\.5)?.content.safety", ("gemma3", "gemma3_text"), (r"request_categories",),
          "nvidia/Nemotron-3.5-Content-Safety"),
    Known(vendors.APRIEL_GUARD, r"aprielguard", ("mistral",), (), "ServiceNow-AI/AprielGuard"),
    Known(vendors.wildguard, r"wildguard", ("mistral",), (), "allenai/wildguard"),
    Known(vendors.polyguard, r"polyguard", ("qwen2", "mistral", "ministral"), (), "ToxicityPrompts/PolyGuard-Qwen"),
    Known(vendors.harmbench, r"harmbench.*cls", ("llama", "mistral"), (), "cais/HarmBench-Llama-2-13b-cls"),
    Known(vendors.md_judge, r"md.judge.v0.1", ("mistral",), (), "OpenSafetyLab/MD-Judge-v0.1"),
    Known(vendors.shieldstral, r"shieldstral", ("mistral3", "ministral3", "mistral"), (),
          "mistralai/Shieldstral-1.0-3B"),
    Known(vendors.aegis, r"aegis.*safety", ("llama",), (), "nvidia/Aegis-AI-Content-Safety-LlamaGuard-Defensive-1.0"),
    Known(vendors.dynaguard, r"dynaguard", ("qwen3",), (), "tomg-group-umd/DynaGuard-8B"),
    Known(vendors.YUFENG_XGUARD, r"xguard", ("qwen3",), (), "Alibaba-AAIG/YuFeng-XGuard-Reason-0.6B"),
    Known(vendors.KANANA_SAFEGUARD, r"kanana.safeguard.8b", ("llama",), (), "kakaocorp/kanana-safeguard-8b"),
    Known(vendors.gpt_oss_safeguard, r"gpt.oss.safeguard", ("gpt_oss",), (), "openai/gpt-oss-safeguard-20b"),
    Known(classifiers.DUOGUARD, r"duoguard", ("qwen2", "llama"), (), "DuoGuard/DuoGuard-0.5B"),
    Known(classifiers.PROMPT_GUARD_2, r"prompt.guard.2", ("deberta-v2",), (), "meta-llama/Llama-Prompt-Guard-2-86M"),
    Known(classifiers.PROMPT_GUARD_1, r"prompt.guard.86m", ("deberta-v2",), (), "meta-llama/Prompt-Guard-86M"),
    Known(classifiers.PROMPT_INJECTION, r"deberta.*prompt.injection", ("deberta-v2",), (),
          "protectai/deberta-v3-base-prompt-injection-v2"),
    Known(classifiers.UNBIASED_TOXIC_ROBERTA, r"unbiased.toxic.roberta", ("roberta",), (),
          "unitary/unbiased-toxic-roberta"),
    Known(classifiers.TOXIC_BERT, r"toxic.bert", ("bert",), (), "unitary/toxic-bert"),
    Known(classifiers.HARMAUG, r"harmaug", ("deberta-v2",), (), "hbseong/HarmAug-Guard"),
)  # fmt: skip
_OUT_OF_REACH = (  # a regular expression for the guard's name, its model_type, and why it cannot be used
    (r"guardreasoner|thinkguard", "", "it reasons before its verdict, which one token cannot tell"),
    (r"llama.guard.3.?11b|shieldgemma.2(?!b)|llavaguard", "mllama", "it judges images"),
    (r"topic.control", "", "it says whether a request keeps to a topic, not whether the response is safe"),
    (r"nemoguard.jailbreak|sguard.jailbreak|kanana.safeguard.(siren|prompt)", "", "it judges the user's turn alone"),
    (r"granite.guardian.*lora", "", "it is an adapter for another task than the guard's verdict"),
    (r"md.judge.v0.2|shieldlm", "", "it needs code from its repository, which fastdss never runs"),
    (r"sguard.content", "", "it gives five verdicts one after another, and a spec reads one"),
)


def find_spec(name: str) -> GuardSpec:
    """The spec of a guard by its Hub id or a part of it; ``ValueError`` where that fits no known guard, or several."""
    return find_known(name, {})


def find_known(name: str, options: Mapping[str, Any]) -> GuardSpec:
    """Like ``find_spec``, but a spec's own name will do too; ``options`` has the texts that some guards need."""
    own = [known for known in KNOWN if known.called.lower() == name.lower()]
    return made(own[0], [name], options) if own else choose_spec([name], options=options)


def choose_spec(
    names: Sequence[str],
    config: Mapping[str, Any] | None = None,
    template: str | dict[str, Any] | None = None,
    *,
    options: Mapping[str, Any] | None = None,
) -> GuardSpec:
    """The spec of a guard with one of ``names``, this ``config`` (of config.json) and this chat template.

    A name decides unless config or template contradict it: the last part of the id or path, else the whole, else the
    name that the config remembers. A template that belongs to another guard outweighs the name. Where no name fits,
    config and template must fit exactly one guard. ``ValueError`` names the choices where several fit, and the texts
    that the user must bring (in ``options``) where one is missing.
    """
    config = config or {}
    kinds = {config.get("model_type"), *(config.get("architectures") or ())} - {None}
    possible = [known for known in KNOWN if not kinds or not known.kinds or kinds & set(known.kinds)]
    called = [name for name in names if name]
    whole = [*called, remembered_name(config)]
    texts = list(template.values()) if isinstance(template, dict) else [template or ""]
    by_template = [known for known in possible if kinds and _is_recognised(known, kinds, texts)]
    for parts in ([re.split(r"[/\\]", name.rstrip("/\\"))[-1] for name in called], called, whole):
        _refuse_out_of_reach(parts, kinds)
        by_name = [known for known in possible if any(re.search(known.name, text, re.IGNORECASE) for text in parts)]
        if by_name:
            by_both = [known for known in by_name if known in by_template]
            return _only(by_both or by_template or by_name, called, options)
    return _only(by_template, called, options)


def check_guard_source(name: str, revision: str | None = None) -> None:
    """``check_source`` for a guard; ``tiny`` and the known ids are suggested for a misspelt name."""
    check_revision("revision", name, revision)
    check_source("guard", name, revision=revision, known=("tiny", *(known.example for known in KNOWN)))


def read_config(name_or_path: str, *, revision: str | None = None, gguf_file: str | None = None) -> dict[str, Any]:
    """The model's config.json as a dict, without loading the class that it names; empty for GGUF files, without one."""
    from transformers import PreTrainedConfig

    return {} if gguf_file else PreTrainedConfig.get_config_dict(name_or_path, revision=revision)[0]


def made(known: Known, names: Sequence[str], options: Mapping[str, Any] | None = None) -> GuardSpec:
    """The known guard's spec, made with the user's texts where it needs some."""
    if isinstance(known.spec, GuardSpec):
        return known.spec
    options = options or {}
    missing = [text for text in known.texts if text not in options]
    if missing:
        shown = " ".join(map(repr, names)) or "this model"
        given = ", ".join(f"{text}=..." for text in known.texts)
        flags = " ".join(f"--guard-option {text}=@FILE" for text in missing)
        raise UserError(
            f"{shown} is prompted by a text on its model card: pass spec=fastdss.guards.{known.called}({given}), "
            f"or options={{...}} of these names ({flags})"
        )
    return known.spec(**{name: options[name] for name in known.parameters if name in options})


def _is_recognised(known: Known, kinds: set[str], templates: Sequence[str]) -> bool:
    """Whether a chat template or, where the guard has a model class of its own, the config shows this guard."""
    if not known.template:
        return any(kind in kinds for kind in known.kinds if kind[0].isupper())  # an architecture of its own
    return any(all(re.search(pattern, text) for pattern in known.template) for text in templates)


def _refuse_out_of_reach(names: Sequence[str], kinds: set[str]) -> None:
    for pattern, kind, why in _OUT_OF_REACH:
        if any(re.search(pattern, name, re.IGNORECASE) for name in names) or kind in kinds:
            raise UserError(f"no GuardSpec is known for {' '.join(map(repr, names))}: {why}")


def _only(found: list[Known], names: Sequence[str], options: Mapping[str, Any] | None) -> GuardSpec:
    """The spec of the one guard that was found; an error where there is none, or several."""
    shown = " ".join(map(repr, names)) or "this model"
    if not found:
        raise UserError(
            f"no GuardSpec is known for {shown}; pass spec= with a GuardSpec, the name of a known guard (fastdss "
            "guards lists them), a YAML file or FILE.py:NAME"
        )
    if len(found) > 1:
        choices = [known.called for known in found]
        raise UserError(f"{shown} could be any of {choices}; pass spec= with the one that is meant")
    return made(found[0], names, options)
