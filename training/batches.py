"""Conversations as token trees: a trunk (the whole rendering) and a branch per judged prefix, with a block mask.

This is the tree that the scorer walks: a branch starts where the tokens of its own rendering leave the trunk.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
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
        picked = set(rng.sample(after, min(len(after), count - 3)))
        picked.update(before[-1:] if rng.random() < 0.5 else before[-6:][:1])
        picked.update(after[:1])
        picked.update(rng.sample(after[:10], 1))
    return sorted(picked)


def varied(rng: Random, ids: list[int], kin: Sequence[list[int]], kept: Sequence[bool]) -> list[int]:
    """Some words replaced by words that mean or look alike, or by any word, so that no single one decides."""
    share = rng.choice([0.0, 0.0, 0.05, 0.15])
    return [
        i
        if keep or not kin[i] or rng.random() >= share
        else rng.choice(kin[i] if rng.random() < 0.6 else _any(rng, kin))
        for i, keep in zip(ids, kept, strict=True)
    ]


def _any(rng: Random, kin: Sequence[list[int]]) -> list[int]:
    """The kin of a word drawn at random."""
    while not (found := rng.choice(kin)):
        pass
    return found


def build_tree(
    rng: Random,
    tokenizer: PreTrainedTokenizerFast,
    conversation: Conversation,
    branches: int,
    kin: Sequence[list[int]],
) -> Tree:
    """``kin`` lists for each token those that may stand in for it in the response, outside of private values."""
    messages = conversation.messages()
    messages[-1] = {"role": "assistant", "content": _MARK}
    before, after = render(tokenizer, messages).split(_MARK)
    response, encode = conversation.response, tokenizer.backend_tokenizer.encode
    trunk = encode(before + response + after, add_special_tokens=False)
    ids, positions = list(trunk.ids), list(range(len(trunk.ids)))
    low, high = len(before), len(before) + len(response)
    offsets = enumerate(trunk.offsets)
    inside = [(i, start - low, min(stop, high) - low) for i, (start, stop) in offsets if start < high and stop > low]
    places = [(i, stop) for i, _, stop in inside]
    spans = [(start, stop) for _, start, stop in inside]
    first, last = places[0][0], places[-1][0] + 1
    kept = [any(a < end and begin < b for a, b in conversation.items) for begin, end in spans]
    ids[first:last] = varied(rng, ids[first:last], kin, kept)
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
    mask: Tensor  # [B, 1, L, L], true where a token is seen
    verdicts: Tensor  # [n, 2] row and place
    verdict_labels: Tensor  # [n]
    tokens: Tensor  # [m, 2]
    token_labels: Tensor  # [m]
    tags: Tensor  # [k, 2]
    tag_labels: Tensor  # [k]


def collate(trees: list[Tree], pad: int) -> Batch:
    width = max(len(t.ids) for t in trees)
    ids, positions, block, trunk_seen = torch.tensor([pad, 0, -1, 0])[:, None, None].repeat(1, len(trees), width)
    for row, tree in enumerate(trees):
        length = len(tree.ids)
        ids[row, :length], positions[row, :length] = torch.tensor(tree.ids), torch.tensor(tree.positions)
        block[row, :length] = 0
        for number, (begin, end, shared) in enumerate(tree.blocks, start=1):
            block[row, begin:end], trunk_seen[row, begin:end] = number, shared
    place = torch.arange(width)
    mask = (block[:, :, None] == block[:, None]) | ((block[:, None] == 0) & (place < trunk_seen[:, :, None]))
    mask = (mask & (place <= place[:, None])).unsqueeze(1)
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
