"""A guard's files -> its model, tokenizer and spec. No remote code runs and nothing is unpickled."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple

import torch

from fastdss.errors import UserError, expect
from fastdss.models.causal_lm import ignores_softcap
from fastdss.models.sources import check_whole

from .known import check_guard_source, choose_spec, read_config
from .options import with_options
from .spec import GuardSpec
from .spec_file import read_spec


class Loaded(NamedTuple):
    model: Any
    tokenizer: Any
    spec: GuardSpec


def resolve_spec(
    name: str,
    config: Mapping[str, Any],
    tokenizer: Any,
    *,
    spec: GuardSpec | str | None = None,
    options: Mapping[str, Any] | None = None,
    gguf_file: str | None = None,
) -> GuardSpec:
    """The spec with ``options`` applied: the one given, named or read from a file, else the one that fits the model."""
    template = getattr(tokenizer, "chat_template", None)
    if isinstance(spec, str):
        spec = read_spec(spec, options or {})
    if spec is None:
        spec = choose_spec([name, gguf_file or ""], config, template, options=options)
    _check_reach(name, config, spec)
    return with_options(spec, options or {}, spec.template or template)


def load_guard(
    name: str,
    *,
    spec: GuardSpec | str | None,
    options: Mapping[str, Any],
    revision: str | None,
    gguf_file: str | None,
    how: Mapping[str, Any],
) -> Loaded:
    """Load a guard. ``how`` has ``dtype``, ``device_map`` and ``quantization_config`` for transformers."""
    from transformers import AutoTokenizer

    expect("name_or_path", name, str, Path)
    name = str(name)
    expect("spec", spec, GuardSpec, str, NoneType)
    expect("options", options, Mapping)
    expect("revision", revision, str, NoneType)
    expect("gguf_file", gguf_file, str, NoneType)
    expect("device_map", how["device_map"], str, int, Mapping, torch.device, NoneType)
    quantised = how["quantization_config"]
    if not hasattr(quantised, "quant_method"):
        expect("quantization_config", quantised, Mapping, NoneType, wanted="a quantization config of transformers")
    _check_dtype(how["dtype"])
    check_guard_source(name, revision)
    source = {key: value for key, value in (("revision", revision), ("gguf_file", gguf_file)) if value is not None}
    tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False, **source)
    config = read_config(name, **source)
    spec = resolve_spec(name, config, tokenizer, spec=spec, options=options, gguf_file=gguf_file)
    model, found = _loader(spec, config).from_pretrained(
        name,
        use_safetensors=True if gguf_file is None else None,
        trust_remote_code=False,  # without an answer transformers would ask on the terminal
        output_loading_info=True,
        **{key: value for key, value in how.items() if value is not None},
        **_config_of(name, config, source),
        **source,
    )
    check_whole(name, model, found["missing_keys"])
    if ignores_softcap(model):
        model.set_attn_implementation("eager")
    return Loaded(model, tokenizer, spec)


def _check_dtype(dtype: Any) -> None:
    known = dtype == "auto" or isinstance(dtype, torch.dtype | Mapping | None)
    if not known and not (isinstance(dtype, str) and isinstance(getattr(torch, dtype, None), torch.dtype)):
        raise UserError(f"dtype: expected 'auto', a dtype of torch or its name, such as 'bfloat16', got {dtype!r}")


def _loader(spec: GuardSpec, config: Mapping[str, Any]) -> Any:
    import transformers

    if spec.head == "token":
        from .token_head import TokenHeadModel

        return TokenHeadModel
    if spec.head == "sequence":
        return transformers.AutoModelForSequenceClassification
    if config.get("model_type") in transformers.CONFIG_MAPPING:
        kind = transformers.CONFIG_MAPPING[config["model_type"]]
        language = kind in transformers.MODEL_FOR_CAUSAL_LM_MAPPING
        if not language and kind in transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
            return transformers.AutoModelForImageTextToText  # such as Mistral 3's, which is given text alone
    return transformers.AutoModelForCausalLM


def _config_of(name: str, written: Mapping[str, Any], source: Mapping[str, Any]) -> dict[str, Any]:
    """The argument ``config`` for Llama Guard 4, empty for other models: its config.json lacks the
    ``attention_chunk_size`` that transformers needs. It gets the context length, so that no text is cut into chunks."""
    text = written.get("text_config", written)
    if written.get("model_type") not in ("llama4", "llama4_text") or text.get("attention_chunk_size"):
        return {}
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(name, trust_remote_code=False, **source)
    inner = config.get_text_config()
    inner.attention_chunk_size = inner.max_position_embeddings
    return {"config": config}


def _check_reach(name: str, config: Mapping[str, Any], spec: GuardSpec) -> None:
    """Refuse a model that needs its repository's code, with a clearer message than transformers would give."""
    from transformers import CONFIG_MAPPING

    kind = config.get("model_type")
    if spec.head != "token" and config.get("auto_map") and kind not in CONFIG_MAPPING:
        raise UserError(f"{name}: a model of type {kind!r} needs code from its repository, which fastdss never runs")
