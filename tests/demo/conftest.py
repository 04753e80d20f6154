"""A policy small enough to fine-tune in a test."""

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from fastdss.models.sources import SMOLLM2_TEMPLATE


@pytest.fixture(scope="session")
def tiny_policy(tmp_path_factory):
    """A random Llama of two layers whose tokens are bytes."""
    folder = tmp_path_factory.mktemp("policy")
    special = ["<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE({text: i for i, text in enumerate([*special, *alphabet])}, []))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|im_end|>")
    tokenizer.add_special_tokens({"additional_special_tokens": special[:1]})
    tokenizer.chat_template = SMOLLM2_TEMPLATE
    tokenizer.save_pretrained(folder)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"vocab_size": len(tokenizer), "eos_token_id": 1, "pad_token_id": 1, "bos_token_id": 0}
    LlamaForCausalLM(LlamaConfig(**sizes, **ends, max_position_embeddings=1024)).save_pretrained(folder)
    return str(folder)
