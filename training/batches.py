"""Conversations as token trees: a trunk (the whole rendering) and a branch per judged prefix, with a block mask.

This is the tree that the scorer walks: a branch starts where the tokens of its own rendering leave the trunk.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from training.conversations import Conversation
from training.tokenizer import render

_MARK = "\ue000"
IGNORE = -1.0


@dataclass(frozen=True)
class Tree:
    ids: list[int]
    positions: list[int]
    blocks: list[tuple[int, int, int]]  # begin, end, and how much of the trunk the branch sees
    verdicts: list[tuple[int, float]]  # where a verdict is read, and its label (1 = unsafe)
    tokens: list[tuple[int, float]]  # trunk tokens of the response, and whether a disclosure is complete there
    tags: list[tuple[int, float]]  # trunk tokens of the response, and whether they belong to a private value


def word_ends(text: str) -> list[int]:
    return [m.end() for m in re.finditer(r"\S+", text)]


def label_at(conversation: Conversation, end: int) -> float:
    """1 once the first private value is complete; undecided in the second half of the value."""
    if not conversation.items:
        return 0.0
    start, stop = conversation.items[0]
    if end >= stop:
        return 1.0
    return IGNORE if 2 * (end - start) > stop - start else 0.0


def tag_at(conversation: Conversation, end: int) -> float:
    """1 for a token that ends in the second half of a private value, undecided in its first half."""
    for start, stop in conversation.items:
        if start < end <= stop:
            return 1.0 if 2 * (end - start) > stop - start else IGNORE
    return 0.0


def chosen_ends(rng: Random, conversation: Conversation, count: int) -> list[int]:
    """Prefixes to judge: around the disclosure if there is one, and anywhere."""
    ends = [e for e in word_ends(conversation.response) if label_at(conversation, e) != IGNORE]
    picked = set(rng.sample(ends, min(len(ends), count)))
    stop = conversation.disclosed_at
    if stop is not None:
        before, after = [e for e in ends if e < stop], [e for e in ends if e >= stop]
        picked = set(rng.sample(sorted(picked), min(len(picked), count - 3)))
        picked.update(before[-1:] if rng.random() < 0.5 else before[-6:][:1])
        picked.update(after[:1])
        picked.update(rng.sample(after[:10], 1))
    return sorted(picked)


def build_tree(rng: Random, tokenizer: PreTrainedTokenizerFast, conversation: Conversation, branches: int) -> Tree:
    messages = conversation.messages()
    messages[-1] = {"role": "assistant", "content": _MARK}
    before, after = render(tokenizer, messages).split(_MARK)
    response, encode = conversation.response, tokenizer.backend_tokenizer.encode
    trunk = encode(before + response + after, add_special_tokens=False)
    ids, positions = list(trunk.ids), list(range(len(trunk.ids)))
    low, high = len(before), len(before) + len(response)
    places = [(i, min(stop, high) - low) for i, (start, stop) in enumerate(trunk.offsets) if low <= start < high]
    verdicts, blocks = [(len(ids) - 1, label_at(conversation, len(response)))], []
    for end in chosen_ends(rng, conversation, branches):
        own = encode(before + response[:end] + after, add_special_tokens=False).ids
        shared = next((i for i, (a, b) in enumerate(zip(own, trunk.ids, strict=False)) if a != b), len(own))
        if shared == len(own) or end == len(response):
            continue
        blocks.append((len(ids), len(ids) + len(own) - shared, shared))
        positions += range(shared, len(own))
        ids += own[shared:]
        verdicts.append((len(ids) - 1, label_at(conversation, end)))
    tokens = [(i, label_at(conversation, end)) for i, end in places]
    tags = [(i, tag_at(conversation, end)) for i, end in places]
    return Tree(ids, positions, blocks, *([t for t in labels if t[1] != IGNORE] for labels in (verdicts, tokens, tags)))


@dataclass(frozen=True)
class Batch:
    ids: Tensor  # [B, L]
    positions: Tensor  # [B, L]
    mask: Tensor  # [B, 1, L, L], 0 or -inf
    verdicts: Tensor  # [n, 2] row and place
    verdict_labels: Tensor  # [n]
    tokens: Tensor  # [m, 2]
    token_labels: Tensor  # [m]
    tags: Tensor  # [k, 2]
    tag_labels: Tensor  # [k]


def collate(trees: list[Tree], pad: int) -> Batch:
    width = max(len(t.ids) for t in trees)
    ids, positions = torch.full((len(trees), width), pad), torch.zeros(len(trees), width, dtype=torch.long)
    seen = torch.eye(width, dtype=torch.bool).repeat(len(trees), 1, 1)
    for row, tree in enumerate(trees):
        ids[row, : len(tree.ids)] = torch.tensor(tree.ids)
        positions[row, : len(tree.ids)] = torch.tensor(tree.positions)
        trunk = tree.blocks[0][0] if tree.blocks else len(tree.ids)
        seen[row, :trunk, :trunk] = torch.ones(trunk, trunk, dtype=torch.bool).tril()
        for begin, end, shared in tree.blocks:
            seen[row, begin:end, :shared] = True
            seen[row, begin:end, begin:end] = torch.ones(end - begin, end - begin, dtype=torch.bool).tril()
    mask = torch.zeros(seen.shape).masked_fill(~seen, float("-inf")).unsqueeze(1)
    parts = ((t.verdicts, t.tokens, t.tags) for t in trees)
    labelled = [
        torch.tensor([(row, *entry) for row, part in enumerate(column) for entry in part])
        for column in zip(*parts, strict=True)
    ]
    return Batch(ids, positions, mask, *(t for part in labelled for t in (part[:, :2].long(), part[:, 2])))


def batches(rng: Random, trees: list[Tree], token_budget: int, pad: int) -> Iterator[Batch]:
    """Batches of trees of similar length, at most ``token_budget`` padded tokens each, in random order."""
    groups: list[list[Tree]] = [[]]
    for tree in sorted(trees, key=lambda t: len(t.ids)):
        if groups[-1] and (len(groups[-1]) + 1) * len(tree.ids) > token_budget:
            groups.append([])
        groups[-1].append(tree)
    rng.shuffle(groups)
    for group in groups:
        yield collate(group, pad)
