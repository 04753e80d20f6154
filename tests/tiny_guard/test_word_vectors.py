"""Borrowed word pieces and vectors, the trees' mask, and words that stand in for others; all on small made-up data."""

from __future__ import annotations

from random import Random

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from training.batches import Tree, collate, varied
from training.word_vectors import WordEmbedding, WordVectors

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
MERGES = [("t", "h"), ("th", "e"), ("m", "e"), ("n", "e"), ("the", "me"), ("ne", "th"), ("neth", "er"), ("e", "r")]
MERGES = [MERGES[-1], *MERGES[:-1]]


@pytest.fixture
def source() -> WordVectors:
    pieces = [*ALPHABET, *(a + b for a, b in MERGES)]
    return WordVectors(pieces, MERGES, torch.randn(len(pieces), 12, generator=torch.Generator().manual_seed(0)))


def split(words: WordVectors, text: str) -> list[str]:
    model = models.BPE(vocab={p: i for i, p in enumerate(words.pieces)}, merges=words.merges)
    return Tokenizer(model).encode(text).tokens


def test_a_subset_brings_along_what_its_pieces_are_merged_from(source: WordVectors) -> None:
    few = source.subset(len(ALPHABET) + 4, ["theme"])
    assert set(few.pieces) - set(ALPHABET) == {"th", "the", "me", "theme"}
    assert split(few, "theme") == split(source, "theme") == ["theme"]
    assert split(few, "nether") == ["n", "e", "the", "r"]
    assert all(torch.equal(few.vectors[i], source.vectors[source.pieces.index(p)]) for i, p in enumerate(few.pieces))


def test_a_subset_fills_up_with_words_by_rank_and_stops_at_its_size(source: WordVectors) -> None:
    assert set(source.subset(len(ALPHABET) + 2, []).pieces) - set(ALPHABET) == {"er", "th"}
    assert set(source.subset(10_000, []).pieces) == set(source.pieces)


def test_kin_are_the_nearest_other_words(source: WordVectors) -> None:
    kin = source.kin(2)
    words = [i for i, p in enumerate(source.pieces) if len(p) >= 3]
    assert all(not kin[i] for i in range(len(kin)) if i not in words)
    rows = source.vectors[words] - source.vectors[words].mean(0)
    alike = torch.cosine_similarity(rows[:, None], rows[None], dim=-1).fill_diagonal_(-2)
    for row, i in zip(alike, words, strict=True):
        assert kin[i] == [words[j] for j in row.topk(2).indices]


def test_only_words_with_kin_are_varied_and_private_values_never() -> None:
    kin = [[], [5, 6], [], [7], [], [], [], []]
    seen = [varied(Random(i), [0, 1, 2, 3, 1], kin, [False] * 4 + [True]) for i in range(600)]
    assert {ids[0] for ids in seen} == {0}
    assert {ids[1] for ids in seen} == {1, 5, 6, 7}
    assert {ids[3] for ids in seen} == {3, 5, 6, 7}
    assert {ids[4] for ids in seen} == {1}
    near = sum(ids[1] in (5, 6) for ids in seen)
    assert near > 2 * sum(ids[1] == 7 for ids in seen)


def test_the_map_moves_every_known_word_and_only_free_rows_are_their_own() -> None:
    vectors = torch.randn(9, 6, generator=torch.Generator().manual_seed(0))
    vectors[4] = 0
    embedding = WordEmbedding(vectors, width=3, components=5, scale=0.04)
    ids = torch.tensor([[4, 2], [7, 4]])
    torch.testing.assert_close(embedding(ids), embedding.table()[ids])
    before = embedding.table().detach().clone()
    with torch.no_grad():
        embedding.map += 1
    moved = (embedding.table() - before).abs().sum(1) > 0
    assert moved.tolist() == [i != 4 for i in range(9)]
    embedding.table()[4].sum().backward()
    assert embedding.free.grad is not None
    assert embedding.free.grad.abs().sum() == 3


def test_a_branch_sees_its_share_of_the_trunk_and_itself() -> None:
    """Two branches, so that one could see the other, in a batch with a shorter tree, so that there is padding."""
    labels = ([(4, 1.0)], [(1, 0.0)], [(1, 0.0)])
    tree = Tree(list(range(1, 9)), [0, 1, 2, 3, 2, 3, 1, 2], [(4, 6, 2), (6, 8, 1)], *labels)
    mask = collate([tree, Tree([1, 2], [0, 1], [], *labels)], pad=0).mask[:, 0]
    rows = ["10000000", "11000000", "11100000", "11110000", "11001000", "11001100", "10000010", "10000011"]
    assert ["".join(str(int(x)) for x in row) for row in mask[0]] == rows
    assert mask[1, :2, :2].tolist() == [[True, False], [True, True]]
    assert not mask[1, :2, 2:].any()
    assert mask.any(-1).all()
