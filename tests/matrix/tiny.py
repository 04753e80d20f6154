"""Any causal LM or vision-language class of transformers, made tiny and random from its own configuration class."""

from __future__ import annotations

import copy
import dataclasses
import inspect
from typing import Any

import torch
import transformers
from transformers.models.auto import modeling_auto

VOCAB = 128
LARGEST = 50_000_000  # parameters; more are no longer tiny, whatever the configuration's fields were called


def words(text: str) -> list[str]:
    return text.split()


def runnable(*classes: str) -> tuple[str, ...]:
    """The classes whose own forward runs: in transformers 5.24.0 Llama 4's reads a field that its text part lacks."""
    broken = {"5.24.0": {"Llama4ForConditionalGeneration"}}.get(transformers.__version__, set())
    return tuple(name for name in classes if name not in broken)


# Of a configuration's fields, by name: what makes a model tiny. A field that a class does not have is left out.
SMALL: dict[str, Any] = {}
for names, value in {
    "vocab_size n_vocab text_vocab_size": VOCAB,
    "hidden_size d_model n_embd dim n_embed embed_dim word_embed_proj_dim": 32,
    "intermediate_size ffn_dim d_ff n_inner ffn_hidden_size decoder_ffn_dim encoder_ffn_dim dim_ff dff": 48,
    "num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers depth": 2,
    "num_attention_heads n_head n_heads num_heads decoder_attention_heads encoder_attention_heads": 4,
    "num_key_value_heads num_kv_heads n_head_kv": 2,
    "head_dim v_head_dim qk_nope_head_dim attention_head_dim kv_channels qk_head_dim dim_head d_kv": 8,
    "qk_rope_head_dim rotary_dim": 4,
    "max_position_embeddings n_positions n_ctx max_seq_len max_sequence_length original_max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "num_experts num_local_experts n_routed_experts moe_num_experts": 4,
    "num_experts_per_tok moe_k moe_topk moe_top_k num_experts_per_token experts_per_token": 2,
    "moe_intermediate_size expert_ffn_hidden_size shared_intermediate_size shared_expert_intermediate_size": 24,
    "q_lora_rank kv_lora_rank": 16,
    "n_group topk_group n_shared_experts num_shared_experts first_k_dense_replace": 1,
    "state_size ssm_state_size mamba_d_state": 8,
    "attn_pdrop": 0,  # Mpt's is an integer in transformers 5.17
    "attention_dropout embd_pdrop resid_pdrop dropout hidden_dropout attention_probs_dropout_prob": 0.0,
    "hidden_dropout_prob activation_dropout classifier_dropout embedding_dropout ffn_dropout resid_dropout": 0.0,
    "layerdrop decoder_layerdrop summary_first_dropout residual_dropout": 0.0,
    "use_cache": False,
}.items():
    SMALL |= dict.fromkeys(names.split(), value)
VISION: dict[str, Any] = SMALL | {"image_size": 28, "patch_size": 14, "num_channels": 3, "in_channels": 3}


# What a class needs besides, by its name: rules between fields that no table by name can know.
MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}}
PLAIN_ROPE = {"rope_type": "default", "rope_theta": 1e4}
BY_LAYER_TYPE = {"rope_parameters": {"full_attention": PLAIN_ROPE, "sliding_attention": PLAIN_ROPE}}
SMALL_VQ = {"base_channels": 32, "channel_multiplier": [1], "latent_channels": 32}
SPECIAL: dict[str, dict[str, Any]] = {
    "ChameleonForConditionalGeneration": {"vocabulary_map": {"<image>": 100}, "vq_config": SMALL_VQ},
    "CohereCompassForCausalLM": BY_LAYER_TYPE,
    "CohereCompassForConditionalGeneration": {"text_config": BY_LAYER_TYPE},
    "DbrxForCausalLM": {"attn_config": {"rope_theta": 1e4, "kv_n_heads": 2, "clip_qkv": 8}},
    "DeepseekV4ForCausalLM": {"max_position_embeddings": 1024},  # room for two documents longer than its blocks
    "DeepseekOcr2ForConditionalGeneration": {"text_config": {"mlp_layer_types": ["dense", "sparse"]}},
    "Emu3ForConditionalGeneration": {
        "vocabulary_map": {"<image>": 100},
        "vq_config": {"base_channels": 32, "channel_multiplier": [1], "hidden_size": 32, "codebook_size": 64},
    },
    "HunYuanVLForConditionalGeneration": {"text_config": MROPE},
    "Inkling2ForConditionalGeneration": {"vision_config": {"text_hidden_size": 32}},
    "JanusForConditionalGeneration": {
        "vq_config": SMALL_VQ | {"projection_dim": 32, "image_token_embed_dim": 32, "num_embeddings": 64}
    },
    "MuseSparkForConditionalGeneration": {
        "audio_config": {"patch_sizes": [16, 6], "hidden_sizes": [16, 16], "depths": [1, 1], "out_hidden_size": 32}
    },
    "NemotronH_Omni_Reasoning_V3": {"audio_config": {"projection_hidden_size": 32, "projection_bias": False}},
    "ZambaForCausalLM": {"num_hidden_layers": 4, "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"]},
    "BambaForCausalLM": {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1},
    "FalconH1ForCausalLM": {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_ssm": 64},
    "Cosmos3EdgeForConditionalGeneration": {"text_config": MROPE},
    "Dots3NoteForCausalLM": {"per_layer_config": {}},
    "Dots3NoteForConditionalGeneration": {"text_config": {"per_layer_config": {}}},
    "Ernie4_5_VLMoeForConditionalGeneration": {"text_config": MROPE | {"moe_intermediate_size": [24, 24]}},
    "Glm46VForConditionalGeneration": {"text_config": MROPE},
    "Glm4vForConditionalGeneration": {"text_config": MROPE},
    "Glm4vMoeForConditionalGeneration": {"text_config": MROPE | {"head_dim": 16}},  # of which it rotates half
    "GlmOcrForConditionalGeneration": {"text_config": MROPE},
    "GraniteDoclingForConditionalGeneration": {"vision_config": {"out_hidden_size": 32}},
    "Molmo2ForConditionalGeneration": {
        "vision_config": {"image_size": [28, 28]},
        "adapter_config": {"vision_feature_layer": [0, 1]},
    },
    "Step3p7ForConditionalGeneration": {"text_config": {"sliding_window": 64}},
    "GPTNeoForCausalLM": {"attention_types": [[["global", "local"], 1]]},
    "GraniteMoeHybridForCausalLM": {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1},
    "Gemma3nForCausalLM": {"num_kv_shared_layers": 0, "vocab_size_per_layer_input": VOCAB},
    "Gemma4ForCausalLM": {"vocab_size_per_layer_input": VOCAB, "num_kv_shared_layers": 0},
    "Gemma4ForConditionalGeneration": {"text_config": {"vocab_size_per_layer_input": VOCAB}},
    "LongcatFlashForCausalLM": {"qk_head_dim": 12, "head_dim": 4},
    "Mamba2ForCausalLM": {"num_heads": 8, "head_dim": 8, "n_groups": 1},
    "PaddleOCRVLForConditionalGeneration": {"text_config": MROPE},
    "Qwen2VLForConditionalGeneration": {"text_config": MROPE},
    "Qwen2_5OmniThinkerForConditionalGeneration": {"text_config": MROPE, "vision_start_token_id": 122},
    "Qwen3OmniMoeThinkerForConditionalGeneration": {"text_config": MROPE, "vision_start_token_id": 122},
    "Qwen2_5_VLForConditionalGeneration": {"text_config": MROPE},
    "Lfm2MoeForCausalLM": {"layer_types": ["conv", "full_attention"]},
    "ReformerModelWithLMHead": {"is_decoder": True, "axial_pos_embds": False},
    "RoCBertForCausalLM": {"pronunciation_vocab_size": 20, "shape_vocab_size": 20},
    "XLMWithLMHeadModel": {"causal": True, "emb_dim": 32},
    "XmodForCausalLM": {"is_decoder": True, "default_language": "en_XX"},
    "Zamba2ForCausalLM": {"layers_block_type": ["mamba", "hybrid"], "mamba_d_state": 8, "mamba_ngroups": 1},
    "ZayaForCausalLM": {"num_experts_per_tok": 1},
}
for name in words(
    "BertLMHeadModel BertGenerationDecoder BigBirdForCausalLM CamembertForCausalLM "
    "Data2VecTextForCausalLM ElectraForCausalLM ErnieForCausalLM MegatronBertForCausalLM "
    "RemBertForCausalLM RobertaForCausalLM RobertaPreLayerNormForCausalLM RoCBertForCausalLM "
    "RoFormerForCausalLM XLMRobertaForCausalLM XLMRobertaXLForCausalLM XmodForCausalLM"
):
    SPECIAL.setdefault(name, {})["is_decoder"] = True


def text_classes() -> list[str]:
    """The names of all causal LM classes."""
    return sorted(set(modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()))


def vision_classes() -> list[str]:
    return sorted(set(modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.values()) - set(text_classes()))


def fields_of(cls: type) -> set[str]:
    named = {field.name for field in dataclasses.fields(cls)} if dataclasses.is_dataclass(cls) else set()
    return named | set(inspect.signature(cls.__init__).parameters)


def parts_of(cls: type) -> dict[str, tuple[type, dict[str, Any]]]:
    """The configurations within one of ``cls``: their classes, and what they are given where nothing is said."""
    if not hasattr(cls, "sub_configs_defaults"):  # transformers below 5.20 keeps its defaults in the code
        parts = {name: getattr(cls(), name, None) for name in cls.sub_configs}
        return {name: (type(part), {"model_type": part.model_type}) for name, part in parts.items() if part is not None}
    return {
        name: (
            spec.get_config_class(spec.model_type) if spec.model_type else spec.config_class,
            ({"model_type": spec.model_type} if spec.model_type else {}) | (spec.init_kwargs or {}),
        )
        for name, spec in cls.sub_configs_defaults.items()
    }


def shrunk(cls: type, table: dict[str, Any] = SMALL, **overrides: Any) -> dict[str, Any]:
    """Keyword arguments that make a tiny configuration of ``cls``, its parts included."""
    fields = fields_of(cls)
    made = {name: value for name, value in table.items() if name in fields}
    for name, (own, kind) in parts_of(cls).items():
        small = SMALL if "text" in name or "decoder" in name or "llm" in name else VISION
        kept = {key: value for key, value in kind.items() if key not in small}
        made[name] = kept | shrunk(own, small, **overrides.pop(name, {}))
    if "qk_rope_head_dim" in made:  # latent attention: the width of a head follows from its parts, no head is shared
        made.pop("head_dim", None)
        made["num_key_value_heads"] = made.get("num_attention_heads", 4)
    return made | overrides


def tiny_config(name: str, **overrides: Any) -> Any:
    cls = getattr(transformers, name).config_class
    # copied: a configuration adds to the dictionaries it is given, which the next one would then be given
    return cls(**shrunk(cls, **copy.deepcopy(SPECIAL.get(name, {}) | overrides)))


def smallest(name: str) -> int:
    """Parameters of the tiny model, found without making any."""
    with torch.device("meta"):
        model = getattr(transformers, name)._from_config(tiny_config(name))
    return sum(parameter.numel() for parameter in model.parameters())


def tiny_model(name: str, dtype: torch.dtype = torch.float64, seed: int = 0, **overrides: Any) -> Any:
    """A random model in ``dtype``, in evaluation mode, its weights large enough that every part matters.

    overrides: of its configuration's fields.
    """
    cls = getattr(transformers, name)
    experts = {"experts_implementation": "eager"} if cls._can_set_experts_implementation() else {}
    torch.manual_seed(seed)
    model = cls._from_config(tiny_config(name, **overrides), **experts).to(dtype).eval()
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(std=0.15, generator=generator)
    return model
