"""Tiny random models in double precision, batches with weights, and the DSS loss by its plain formula."""

from __future__ import annotations

import re

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM

VOCAB = 61
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": VOCAB,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# Each does something of its own to the logits, the head or the loss.
FAMILIES = {
    "Llama": {},
    "Granite": {"logits_scaling": 8.0},
    "Gemma2": {"final_logit_softcapping": 3.0, "query_pre_attn_scalar": 8},
    "Qwen3": {"tie_word_embeddings": True},
    "Cohere2": {"logit_scale": 0.25},
    "Mixtral": {"num_local_experts": 4, "output_router_logits": True, "router_aux_loss_coef": 0.1},
    "Phi": {},  # its head has a bias
}


def tiny_model(family: str = "Llama", *, dtype: torch.dtype = torch.float64, seed: int = 0, **overrides):
    config = getattr(transformers, f"{family}Config")(**(SIZES | FAMILIES.get(family, {}) | overrides))
    # transformers' grouped GEMM for experts knows no double precision
    eager = {"experts_implementation": "eager"} if family == "Mixtral" else {}
    model = AutoModelForCausalLM.from_config(config, **eager)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():  # large enough that scale, softcap and bias matter
        parameter.data.normal_(std=0.3, generator=generator)
    return model.to(dtype)


def tiny_batch(
    rows: int = 3, length: int = 9, *, dtype: torch.dtype = torch.float64, seed: int = 1
) -> dict[str, Tensor]:
    """Right-padded rows of several lengths; prompts and padding do not count; exact 0 and 1 among the weights."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCAB, (rows, length), generator=generator)
    lengths = torch.tensor([length - 2 * (row % 3) for row in range(rows)])
    mask = torch.arange(length) < lengths[:, None]
    labels = ids.masked_fill(~mask, -100)
    labels[:, :2] = -100
    weights = torch.rand(rows, length, generator=generator, dtype=dtype)
    weights[0, 3], weights[0, 4] = 0, 1
    ref = -4 * torch.rand(rows, length, generator=generator, dtype=dtype)
    return {
        "input_ids": ids,
        "attention_mask": mask.long(),
        "labels": labels,
        "token_weights": weights,
        "ref_logprobs": ref,
    }


def own_logits(model, batch: dict[str, Tensor]) -> Tensor:
    return model(input_ids=batch["input_ids"], attention_mask=batch.get("attention_mask")).logits


def plain_loss(
    logits: Tensor,
    batch: dict[str, Tensor],
    *,
    kl: str = "k2",
    kl_scale: float = 0.5,
    ref_logits: Tensor | None = None,
    num_items_in_batch: float | None = None,
) -> Tensor:
    """Equation 3 as it is written, on logits ``[B, T, V]``; without an engine, a chunk or a shortcut."""
    labels, weights = batch["labels"][:, 1:], batch["token_weights"][:, 1:]
    log_p = F.log_softmax(logits[:, :-1].to(torch.promote_types(logits.dtype, torch.float32)), dim=-1)
    counts = labels != -100
    logp = log_p.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    if kl in ("reverse", "forward"):
        log_q = F.log_softmax(ref_logits[:, :-1], dim=-1)
        first, second = (log_p, log_q) if kl == "reverse" else (log_q, log_p)
        divergence = (first.exp() * (first - second)).sum(-1)
    else:
        d = logp - batch["ref_logprobs"][:, 1:]
        divergence = {"k1": d, "k2": d * d / 2, "k3": torch.exp(-d) - 1 + d}[kl]
    token = weights * -logp + (1 - weights) * kl_scale * divergence
    return token[counts].sum() / (counts.sum() if num_items_in_batch is None else num_items_in_batch)


def gradients(model, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-10) -> None:
    """Same parameters, and each gradient within ``tolerance`` in the relative Frobenius norm."""
    assert found.keys() == expected.keys(), found.keys() ^ expected.keys()
    for name, gradient in expected.items():
        error = (found[name] - gradient).norm() / gradient.norm().clamp(min=1e-30)
        assert error <= tolerance, f"{name}: relative error {error:.3g} > {tolerance:.3g}"


TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SENTENCES = [
    "Sure, here is how you can reach the office.",
    "Take a deep breath and write down what you want to say.",
    "The answer is forty two, and the phone number is private.",
    "I cannot share that, but I can help you with something else.",
]


def tiny_tokenizer():
    """A fast byte-level BPE tokenizer of 320 tokens, with a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(SENTENCES * 4, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.chat_template = TEMPLATE
    return fast


def scored_rows(count: int = 6) -> list[dict]:
    """Conversations with the scorer's columns: a score per five words, falling in every other response."""
    rows = []
    for index in range(count):
        response = " ".join(SENTENCES[(index + k) % 4] for k in range(1 + index % 3))
        ends = [match.end() for match in re.finditer(r"\S+", response)]
        ends = [*ends[4::5], *([ends[-1]] if len(ends) % 5 else [])]
        scores = [0.9 - 0.8 * (index % 2) * (k >= len(ends) // 2) for k in range(len(ends))]
        rows.append({"prompt": f"Question {index}?", "response": response, "scores": scores, "ends": ends})
    return rows
