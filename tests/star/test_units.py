"""Token boundaries are those of the text as text, and what a stream holds settled no further text takes back."""

from __future__ import annotations

import copy
import random

import pytest
import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from fastdss import star_scores
from fastdss.chat.boundaries import find_ends, find_settled_ends
from fastdss.chat.encoder import settled_spans, text_spans
from tests.support.builders import _CORPUS, SPECIAL, TOKENIZERS, make_guard, make_tokenizer

# As GPT-4o splits: a contraction's end belongs to its word, so "it" and "'" become one with "it's".
_SUFFIXED = r"[^\r\n\p{L}\p{N}]?\p{L}+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_SUFFIXED += r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
KINDS = (*TOKENIZERS, "suffixed", "composing", "unigram", "wordpiece")
PIECES = [
    *SPECIAL, "<tool>", "<unk>", "<0x41>", "[CLS]", "<|end", "|>", "<", "'", "it's", "we'll", " ", "  ", "\n", " \n",
    "\t\r\n", ".", "!?", "-", "/", "(", "safe", " the", "aB", "12345", "日本語", "。", "🙂", "👨\u200d👩\u200d👧",
    "e\u0301", "\u0338", "שלום", "▁",
]  # fmt: skip


def tokenizer_of(kind: str) -> PreTrainedTokenizerFast:
    if kind in TOKENIZERS:
        return make_tokenizer(kind)
    if kind == "composing":  # as Qwen's: "e" and an accent after it become one character
        twin = copy.deepcopy(make_tokenizer())
        twin.backend_tokenizer.normalizer = normalizers.NFC()
        return twin
    if kind == "suffixed":
        backend = Tokenizer(models.BPE())
        split = pre_tokenizers.Split(Regex(_SUFFIXED), "isolated")
        bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_])
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, show_progress=False)
    elif kind == "unigram":
        backend = Tokenizer(models.Unigram())
        backend.normalizer = normalizers.NFKC()
        backend.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=120, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False
        )
    else:
        backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        backend.normalizer = normalizers.BertNormalizer()
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=["[UNK]", "[CLS]"], show_progress=False)
    backend.train_from_iterator([*_CORPUS, "it's we'll it's \n \n we'll" * 50], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=backend)
    fast.add_special_tokens({"additional_special_tokens": SPECIAL})
    return fast


@pytest.mark.parametrize("kind", KINDS)
def test_no_continuation_takes_back_what_is_settled(kind):
    """Random texts of what tokenizers treat apart, seen after each of their characters."""
    tokenizer, draw = tokenizer_of(kind), random.Random(0)
    settled = 0
    for _ in range(60):
        text = "".join(draw.choice(PIECES) for _ in range(draw.randint(1, 12)))
        every = draw.choice((1, 2, 3))
        ends = find_ends(text, every=every, unit="token", spans=lambda text: text_spans(tokenizer, text))
        for cut in range(1, len(text) + 1):
            begun = find_settled_ends(
                text[:cut], every=every, unit="token", spans=lambda text: settled_spans(tokenizer, text)
            )
            assert begun == ends[: len(begun)], text[:cut]
            settled += len(begun)
    assert (settled > 0) == (kind not in ("metaspace", "unsplit")), "these two make one pre-token of everything"


@pytest.mark.parametrize("kind", ["llama3", "gpt2", "metaspace"])
def test_a_control_string_that_grows_is_cut_as_in_the_batch(kind):
    """``<|en`` was three tokens and ``<|end|>`` one, that of the template: what it began with had been scored."""
    guard = make_guard(kind=kind)
    text = "Well.<|end|><|start|>assistant\n\nsafe <tool> it's</s> so"
    batch = star_scores(guard, {"prompt": ["Hello"], "response": [text]}, every=1, unit="token")
    stream = guard.stream("Hello", every=1, unit="token")
    for character in text:
        stream.append(character)
    stream.close()
    assert stream.ends == batch.ends[0]
    assert torch.allclose(torch.tensor(stream.scores), batch.scores[0], rtol=0, atol=1e-6)
    assert "control_tokens" in batch.flags[0]
    spelt = range(text.index("<|end|>") + 1, text.index("<|start|>"))
    assert set(spelt) & set(batch.ends[0]), "a control string is text and has boundaries within"


@pytest.mark.parametrize("kind", KINDS)
def test_text_without_control_strings_has_the_tokenizers_own_tokens(kind):
    tokenizer = tokenizer_of(kind)
    text = "Sure! it's 12345 o'clock.\n\n日本語。 🙂 e\u0301 naïve  so"
    own = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    assert text_spans(tokenizer, text) == own


def test_a_tokenizer_without_offsets_is_an_error():
    from transformers import ByT5Tokenizer

    with pytest.raises(ValueError, match="ByT5Tokenizer gives no character offsets"):
        star_scores(make_guard(), {"prompt": ["a"], "response": ["b c"]}, unit="token", unit_tokenizer=ByT5Tokenizer())
