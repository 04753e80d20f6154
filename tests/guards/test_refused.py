"""Models that a prefix tree cannot reproduce are refused with a way out, never scored wrongly."""

from __future__ import annotations

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from fastdss import Guard, star_scores
from fastdss.prefix.engine import check_supported, reference_logits
from tests.support.builders import _SHAPE, BATCH, CHAT_TEMPLATE, make_guard, make_spec, make_tokenizer

MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}


def random_model(kind: str, **changes):
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{"vocab_size": len(make_tokenizer()), **_SHAPE, **changes})
    return AutoModelForCausalLM.from_config(config).eval()


def test_two_attentions_of_one_layer():
    """DiffLlama's share their keys and not their values; with all tokens in one forward pass nobody would notice."""
    with pytest.raises(
        ValueError, match=r"DiffLlamaAttention attends more than once in a layer; use method='per_prefix'"
    ):
        Guard(random_model("diffllama"), make_tokenizer(), make_spec())


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("phimoe", {"num_local_experts": 4, "sliding_window": 110}),
        ("qwen2_moe", {**MOE, "use_sliding_window": True, "sliding_window": 110, "max_window_layers": 3}),
    ],
)
def test_a_window_that_only_the_mask_knows(kind, changes):
    """Longer than the probe at construction, as real windows are: within it the scores are exact, beyond it none."""
    guard = Guard(random_model(kind, **changes), make_tokenizer(), make_spec())
    short = {"prompt": ["Hi"], "response": ["You can wait."]}
    tree, naive = (star_scores(guard, short, method=method).scores[0] for method in ("tree", "per_prefix"))
    assert torch.allclose(tree, naive, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="keeps its window of 110 tokens from its attention; use method='per_prefix'"):
        star_scores(guard, BATCH)


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
@pytest.mark.parametrize("nested", [False, True])
def test_frequencies_that_depend_on_the_length(kind, nested):
    """Also with parameters per layer type, whose native length is not the config's."""
    rope = {"rope_type": kind, "original_max_position_embeddings": 64, "rope_theta": 1e4, "factor": 2.0}
    model = make_guard().model
    model.config.rope_parameters = {"full_attention": rope, "sliding_attention": {}} if nested else rope
    check_supported(model, 64)
    with pytest.raises(ValueError, match="beyond 64 tokens its rotary frequencies depend on the length"):
        check_supported(model, 65)


def test_position_biases_instead_of_positions():
    config = AutoConfig.for_model("bloom", vocab_size=len(make_tokenizer()), hidden_size=32, n_layer=2, n_head=4)
    with pytest.raises(ValueError, match="use method='per_prefix'"):
        Guard(AutoModelForCausalLM.from_config(config).eval(), make_tokenizer(), make_spec())


def test_runs_of_blanks_are_no_control_tokens():
    """Gemma lists them among its added tokens, and ordinary text with two blanks comes to them."""
    pieces = ["<unk>", "<s>", *(f"<0x{i:02X}>" for i in range(256)), "a", "b", "▁", "\n", "▁▁", "\n\n"]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    merges = [("▁", "▁"), ("\n", "\n")]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in ("▁▁", "\n\n", "<table>")])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", chat_template=CHAT_TEMPLATE)
    fast.add_special_tokens({"additional_special_tokens": ["<|start|>", "<|end|>"]})
    guard = Guard(random_model("llama", vocab_size=len(fast)), fast, make_spec(safe="a", unsafe="b"))
    batch = {"prompt": ["a  b"], "response": ["c  d\n\na <table> b"]}
    tree, naive = (star_scores(guard, batch, every=1, method=method) for method in ("tree", "per_prefix"))
    assert torch.allclose(tree.scores[0], naive.scores[0], rtol=0, atol=1e-6)
    assert "control_tokens" not in tree.flags[0]  # neither blanks nor a tag that no template writes
    row = tree.token_weights(fast)[0]
    assert fast.convert_tokens_to_ids("▁▁") in row["labels"]
    assert fast.convert_tokens_to_ids("<table>") in row["labels"]


def test_an_unchecked_guard_is_checked_before_its_tree_is_taken():
    """check=False is for method="per_prefix". Without it Bart, whose positions count from the pack's first token, was
    scored through the tree, wrongly and in silence."""
    changes = {"d_model": 32, "decoder_layers": 3, "decoder_attention_heads": 4, "decoder_ffn_dim": 48, "init_std": 0.2}
    guard = Guard(random_model("bart", **changes), make_tokenizer(), make_spec(), check=False)
    right = star_scores(guard, BATCH, method="per_prefix").scores
    wrong = star_scores(guard, BATCH, method="tree").scores
    assert max((a - b).abs().max() for a, b in zip(right, wrong, strict=True)) > 1e-2
    for use in (lambda: star_scores(guard, BATCH), lambda: guard.stream("Hello")):
        with pytest.raises(ValueError, match=r"miss the model's own .* use method='per_prefix', which check=False"):
            use()


def test_dynamic_frequencies_do_not_depend_on_the_texts_before():
    """One forward per prefix: each is that of a model that saw nothing else, shorter prefixes after longer ones too."""
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
    model = random_model("llama", rope_parameters=rope, max_position_embeddings=64)
    rows = [list(range(10, 10 + length)) for length in (190, 70, 130, 64, 20)]
    found = reference_logits(model, [3, 5], rows)
    for ids, logits in zip(rows, found, strict=True):
        fresh = random_model("llama", rope_parameters=rope, max_position_embeddings=64)
        alone = fresh(input_ids=torch.tensor([ids])).logits[0, -1, [3, 5]].detach()
        assert torch.allclose(logits, alone, rtol=0, atol=1e-6)
