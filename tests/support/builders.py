"""Tiny tokenizers, tiny random models and a guard template with head, tail and answer prefix, made in milliseconds."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import (
    AttentionInterface,
    Gemma2Config,
    Gemma3TextConfig,
    GptOssConfig,
    GraniteConfig,
    Llama4TextConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)
from transformers.models.gemma2 import Gemma2ForCausalLM
from transformers.models.gemma3 import Gemma3ForCausalLM
from transformers.models.gpt_oss import GptOssForCausalLM
from transformers.models.granite import GraniteForCausalLM
from transformers.models.llama import LlamaForCausalLM
from transformers.models.llama4 import Llama4ForCausalLM
from transformers.models.mistral import MistralForCausalLM
from transformers.models.qwen2 import Qwen2ForCausalLM
from transformers.models.qwen3 import Qwen3ForCausalLM

from fastdss import Guard, GuardSpec

SPECIAL = ["<s>", "</s>", "<pad>", "<|start|>", "<|end|>", "<|eot_id|>"]

# Head, conversation and tail as Llama Guard has them; content is stripped, the tail follows it at once.
TEMPLATE = (
    "{{ bos_token }}<|start|>user\n\nTask: look for private details in the last message of the Agent.\n"
    "<BEGIN CONVERSATION>\n\n"
    "{% for message in messages %}"
    "{{ {'user': 'User', 'assistant': 'Agent', 'system': 'System'}[message['role']] }}: "
    "{{ message['content'] | trim }}\n\n"
    "{% endfor %}"
    "<END CONVERSATION>\n\nFirst line: safe or unsafe.<|end|><|start|>assistant"
)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|start|>{{ message['role'] }}\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
WORDS = {"answer_prefix": "\n\n", "safe": "safe", "unsafe": "unsafe"}

_CORPUS = [
    "Task: look for private details in the last message of the Agent.\n<BEGIN CONVERSATION>\n\nUser: Hello there.\n\n",
    "Agent: You can call her on 555 0100.\n\n<END CONVERSATION>\n\nFirst line: safe or unsafe.\n\nsafe\n\nunsafe\n\n",
    "Sure! Here is how: mix the flour, the milk and the eggs. Then wait.\n\nIs it safe? It is not unsafe.\n\n",
    "Mail anna@example.org, or write to 12 Elm Street; the password is swordfish!\n\nWhy not? No. Yes.\n\n",
] * 8

# As Llama 3 splits: punctuation takes following newlines with it, so a response's last "." joins the template's "\n\n".
_LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_LLAMA3 += r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TOKENIZERS = ("llama3", "gpt2", "metaspace", "unsplit")


@functools.cache
def make_tokenizer(kind: str = "llama3") -> PreTrainedTokenizerFast:
    """A tokenizer trained on a few sentences; ``unsplit`` merges across words, lines and everything."""
    byte_alphabet = pre_tokenizers.ByteLevel.alphabet()
    if kind == "metaspace":
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first")])
        bytes_ = [f"<0x{i:02X}>" for i in range(256)]
        trainer = trainers.BpeTrainer(
            vocab_size=620, special_tokens=["<unk>", *bytes_], max_token_length=8, show_progress=False
        )
    else:
        tokenizer = Tokenizer(models.BPE())
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind == "gpt2")
        split = [pre_tokenizers.Split(Regex(_LLAMA3), "isolated")] if kind == "llama3" else []
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*split, byte_level])
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=520, initial_alphabet=byte_alphabet, max_token_length=8, show_progress=False
        )
    corpus = _CORPUS if kind != "unsplit" else [line + "\n" for text in _CORPUS for line in text.split("\n")]
    tokenizer.train_from_iterator(corpus, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", chat_template=CHAT_TEMPLATE
    )
    fast.add_special_tokens({"additional_special_tokens": SPECIAL[3:]})
    fast.add_tokens(["<tool>"])  # an added token that is not special: also only the template's to write
    return fast


_SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 1024,
    "initializer_range": 0.18,  # verdicts differ from prefix to prefix, and fp32 rounding stays below 1e-6
}
ARCHITECTURES = {
    "llama": lambda v: LlamaForCausalLM(LlamaConfig(vocab_size=v, **_SHAPE)),
    "granite": lambda v: GraniteForCausalLM(
        GraniteConfig(
            vocab_size=v, logits_scaling=2.0, embedding_multiplier=0.7, residual_multiplier=1.5,
            attention_multiplier=0.6, **_SHAPE)
    ),
    "qwen3": lambda v: Qwen3ForCausalLM(Qwen3Config(vocab_size=v, **_SHAPE)),
    "mistral": lambda v: MistralForCausalLM(MistralConfig(vocab_size=v, sliding_window=24, **_SHAPE)),
    "gemma2": lambda v: Gemma2ForCausalLM(
        Gemma2Config(
            vocab_size=v, sliding_window=24, query_pre_attn_scalar=8, attn_logit_softcapping=2.0,
            final_logit_softcapping=3.0, **_SHAPE)
    ),
}  # fmt: skip
MORE_ARCHITECTURES = {
    "llama4_text": lambda v: Llama4ForCausalLM(
        Llama4TextConfig(
            vocab_size=v, attention_chunk_size=24, no_rope_layers=[1, 1, 0], floor_scale=16, num_local_experts=2,
            intermediate_size_mlp=48, pad_token_id=None, **_SHAPE)
    ),
    "qwen2": lambda v: Qwen2ForCausalLM(Qwen2Config(vocab_size=v, **_SHAPE)),
    "gemma3_text": lambda v: Gemma3ForCausalLM(
        Gemma3TextConfig(vocab_size=v, sliding_window=24, query_pre_attn_scalar=8, **_SHAPE)
    ),
    "gpt_oss": lambda v: _with_sinks(
        GptOssForCausalLM(GptOssConfig(vocab_size=v, sliding_window=24, num_local_experts=4, **_SHAPE))
    ),
}  # fmt: skip


def _with_sinks(model):
    """Sinks of about the size of the scores beside them, or nobody would miss them."""
    for name, parameter in model.named_parameters():
        if name.endswith("sinks"):
            torch.nn.init.normal_(parameter, std=1.0)
    return model


def make_model(architecture: str, vocabulary: int, dtype: torch.dtype = torch.float32, seed: int = 0):
    """A random model of three layers with grouped-query heads; the windows of Mistral and Gemma2 cut into the text."""
    torch.manual_seed(seed)
    model = (ARCHITECTURES | MORE_ARCHITECTURES)[architecture](vocabulary).to(dtype).eval()
    if architecture == "gemma2":
        model.set_attn_implementation("eager")  # transformers 5.17 would choose sdpa, which drops the softcap
    return model


def make_guard(
    architecture: str = "llama",
    kind: str = "llama3",
    dtype: torch.dtype = torch.float32,
    *,
    spec: GuardSpec | None = None,
    seed: int = 0,
    check: bool = True,
) -> Guard:
    tokenizer = make_tokenizer(kind)
    model = make_model(architecture, len(tokenizer), dtype, seed)
    return Guard(model, tokenizer, spec or make_spec(), check=check)


def make_spec(**changes) -> GuardSpec:
    return GuardSpec("test-guard", **{"template": TEMPLATE, **WORDS, **changes})


def dense_attention(
    module, query, key, value, attention_mask, scaling=None, sliding_window=None, softcap=None, s_aux=None, **_
):
    """The definition, in the inputs' own precision: softmax over a dense causal matrix of scores, of which a window or
    a chunk hides some, and beside which each head may have a sink."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.transpose(2, 3) * scaling
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    distance = torch.arange(key.shape[2])[:, None] - torch.arange(key.shape[2])[None, :]
    hidden = (distance < 0) | (distance >= (sliding_window or 2**30))
    kinds = getattr(module.config, "layer_types", None)
    if kinds and kinds[module.layer_idx] == "chunked_attention":
        chunk = torch.arange(key.shape[2]) // module.config.attention_chunk_size
        hidden |= chunk[:, None] != chunk[None, :]
    scores = scores.masked_fill(hidden, -torch.inf)
    if s_aux is not None:
        sinks = s_aux.to(scores)[None, :, None, None].expand(*scores.shape[:-1], 1)
        return (torch.cat([scores, sinks], dim=-1).softmax(-1)[..., :-1] @ value).transpose(1, 2), None
    return (scores.softmax(-1) @ value).transpose(1, 2), None


AttentionInterface.register("fastdss_test_dense", dense_attention)

BATCH = {
    "prompt": ["Hello there.", "How do I reach Anna?", "How do I reach Anna?", "Is it safe?"],
    "response": [
        "Sure! Here is how: mix the flour,\n\nthe milk and the eggs. Then wait. It is safe.",
        "You can call her on 555 0100. Mail anna@example.org, or write to 12 Elm Street; the password is swordfish!",
        "No.",
        "Grüße aus München 🙂🙃 naïve\n\n  \n日本語の文 です。 Why not?  Yes. \n",
    ],
}


def spread(scores: list[Tensor]) -> float:
    """How much the scores of a batch differ: a guard that says the same of everything tests nothing."""
    flat = torch.cat(scores)
    return (flat.max() - flat.min()).item()


def offloaded(model: Any, away: str, folder: Path) -> Any:
    """``model`` of three layers with one part on the disk, as ``device_map="auto"`` leaves one that is too large."""
    accelerate = pytest.importorskip("accelerate")
    layers = [f"model.layers.{index}" for index in range(3)]
    parts = ["model.embed_tokens", *layers, "model.norm", "model.rotary_emb", "lm_head"]
    places = {part: "disk" if part == away else "cpu" for part in parts}
    return accelerate.dispatch_model(model, places, main_device="cpu", offload_dir=str(folder), force_hooks=True)
