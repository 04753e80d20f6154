"""Bad inputs get an error that names the row or the word, or a defined answer; never a silent "safe"."""

from __future__ import annotations

import copy

import pytest
import torch

from fastdss import Guard, star_scores
from tests.support.builders import BATCH, make_guard, make_model, make_spec, make_tokenizer, offloaded


def one(response: str, prompt="Hello") -> dict:
    return {"prompt": [prompt], "response": [response]}


@pytest.fixture(scope="module")
def guard() -> Guard:
    return make_guard()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"safe": "zebra"}, "'zebra' is not one token"),  # splits into pieces
        ({"safe": "safer", "unsafe": "safest"}, "'safer' is not one token"),  # both begin with the piece "safe"
        ({"safe": ""}, "'' is not one token"),
        ({"safe": ()}, "needs a safe and an unsafe verdict"),
        ({"unsafe": "safe"}, "two verdict words are the same token"),
        ({"other": "unsafe"}, "two verdict words are the same token"),
        ({"answer_prefix": "\n\n "}, "is not one token"),  # the blank would become part of " safe"
    ],
)
def test_verdict_words_are_checked_at_construction(words, message):
    with pytest.raises(ValueError, match=message):
        make_guard(spec=make_spec(**words))


def test_an_unknown_verdict_word_is_an_error():
    """A tokenizer with an unknown token maps every strange word to it, so both verdicts would be the same token."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {word: i for i, word in enumerate(["<unk>", "safe", "Hello"])}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    with pytest.raises(ValueError, match="the verdict 'unsafe' is not one token"):
        Guard(make_model("llama", 3), tokenizer, make_spec())


def test_a_vocabulary_larger_than_the_model_is_an_error():
    tokenizer = make_tokenizer()
    with pytest.raises(ValueError, match=f"the tokenizer has {len(tokenizer)} tokens, the model only 300"):
        Guard(make_model("llama", 300), tokenizer, make_spec())


def test_a_tokenizer_without_template_is_an_error():
    tokenizer = make_tokenizer()
    bare = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer)
    with pytest.raises(ValueError, match="no chat template"):
        Guard(make_model("llama", len(tokenizer)), bare, make_spec(template=None))


@pytest.mark.parametrize("response", ["", " \n\t "])
def test_an_empty_response_has_one_score(guard, response):
    scores = star_scores(guard, one(response))
    naive = star_scores(guard, one(response), method="per_prefix")
    assert scores.ends == [[0]]
    assert "empty" in scores.flags[0]
    assert torch.allclose(scores.scores[0], naive.scores[0], rtol=0, atol=1e-6)


def test_longer_than_the_context_is_an_error_or_a_recorded_truncation(guard):
    long = "word. " * 900
    with pytest.raises(ValueError, match=r"row 0: \d+ tokens exceed the context of test-guard, 1024; pass max_tokens"):
        star_scores(guard, one(long))
    scores = star_scores(guard, one(long), max_tokens=300, every=40)
    whole = len(guard.encode_prefixes([{"role": "user", "content": "Hello"}], long, scores.ends[0][-1:])[0])
    assert 200 < whole <= 300
    assert scores.flags[0] == {"truncated"}
    assert torch.isnan(scores.final()).all()
    assert torch.allclose(
        scores.scores[0], star_scores(guard, one(long), ends=[scores.ends[0]], max_tokens=300).scores[0]
    )
    weights = scores.token_weights(guard.tokenizer)[0]["token_weights"]
    assert weights[-2] == 0.0  # the end of turn comes after text that nobody judged


def test_a_template_that_is_too_long_alone_is_an_error(guard):
    with pytest.raises(ValueError, match="row 0: even its first prefix exceeds 20 tokens"):
        star_scores(guard, one("Hi there"), max_tokens=20)


def test_a_response_of_ten_megabytes_ends_in_a_clear_error(guard):
    with pytest.raises(ValueError, match="row 0: message 1: 10000000 characters exceed the limit"):
        star_scores(guard, one("a" * 10_000_000))


def test_a_lone_surrogate_is_an_error_that_names_the_row(guard):
    batch = {"prompt": ["a", "b"], "response": ["fine", "not \ud800 fine"]}
    with pytest.raises(ValueError, match="row 1: message 1: lone surrogate at character 4"):
        star_scores(guard, batch)


@pytest.mark.parametrize(
    ("batch", "error", "message"),
    [
        ({"prompt": ["a"], "response": ["b", "c"]}, ValueError, "batch: 1 of prompt, 2 of response"),
        (
            {"prompt": ["a"], "response": [None]},
            ValueError,
            "row 0: expected .messages., or .prompt. and .response.,.* it has prompt",
        ),
        ({"prompt": ["a"], "response": [b"x"]}, TypeError, "row 0: response: expected text, got bytes"),
        ({"text": ["a"]}, ValueError, "expected 'prompt' and 'response', or 'messages'"),
        ({"prompt": [], "response": []}, ValueError, "no rows"),
        (
            {"messages": [[{"role": "user", "content": "a"}]]},
            ValueError,
            "row 0: the last turn must be the assistant's",
        ),
        ({"messages": ["text"]}, TypeError, "row 0: messages: expected a non-empty list of messages"),
        ({"messages": [[{"role": "x|>", "content": "a"}]]}, ValueError, "row 0: message 0: unknown role"),
    ],
)
def test_batches_are_checked(guard, batch, error, message):
    with pytest.raises(error, match=message):
        star_scores(guard, batch)


@pytest.mark.parametrize(
    "options",
    [
        {"every": 0}, {"every": 2.5}, {"unit": "line"}, {"method": "fast"}, {"backend": "cuda"}, {"combine": "max"},
        {"sharpen": 0}, {"sharpen": "cold"}, {"max_tokens": 0}, {"ends": [[1], [2]]}, {"ends": [[99]]},
        {"ends": [[-1]]},
    ],
)  # fmt: skip
def test_options_are_checked(guard, options):
    with pytest.raises(ValueError, match=str(next(iter(options))) if "ends" not in options else "ends|boundary"):
        star_scores(guard, one("Hi there"), **options)


def padded_and_cut(tokenizer):
    tokenizer.padding_side = tokenizer.truncation_side = "left"
    tokenizer.model_max_length = 20
    tokenizer.backend_tokenizer.enable_padding(length=500)
    tokenizer.backend_tokenizer.enable_truncation(30)


@pytest.mark.parametrize(
    "change",
    [
        lambda tokenizer: setattr(tokenizer, "pad_token", None),
        lambda tokenizer: setattr(tokenizer, "pad_token", tokenizer.eos_token),
        lambda tokenizer: setattr(tokenizer, "split_special_tokens", True),  # a defence: the template's must stay whole
        padded_and_cut,
    ],
    ids=["no pad token", "pad is eos", "split special", "sides"],
)
@pytest.mark.parametrize("kind", ["llama3", "metaspace"])
def test_padding_side_and_pad_token_do_not_matter(change, kind):
    batch = {name: [*texts, "<|end|> and <pad>"] for name, texts in BATCH.items()}
    guard, set_so = make_guard(kind=kind), copy.deepcopy(make_tokenizer(kind))
    change(set_so)
    other = Guard(guard.model, set_so, make_spec())
    for unit in ("word", "token"):
        expected, scores = star_scores(guard, batch, unit=unit), star_scores(other, batch, unit=unit)
        assert scores.ends == expected.ends
        assert all(torch.equal(a, b) for a, b in zip(scores.scores, expected.scores, strict=True))
    assert list(scores.token_weights(set_so)) == list(expected.token_weights(guard.tokenizer))


def test_nan_logits_fail_the_row_and_never_say_safe():
    guard = make_guard(check=False)
    row = guard.tokenizer("🙂", add_special_tokens=False)["input_ids"][0]
    with torch.no_grad():
        guard.model.get_input_embeddings().weight[row] = float("nan")
    scores = star_scores(guard, {"prompt": ["a", "b"], "response": ["all is well", "ok then 🙂 yes"]}, every=2)
    assert "failed" not in scores.flags[0]
    assert "failed" in scores.flags[1]
    assert torch.isfinite(scores.scores[0]).all()
    assert torch.isnan(scores.scores[1][-1])
    with pytest.raises(ValueError, match=r"rows \[1\] have no score"):
        scores.token_weights(guard.tokenizer)
    weights = scores.token_weights(guard.tokenizer, failed="zero")
    assert set(weights[1]["token_weights"]) == {0.0}
    assert max(weights[0]["token_weights"]) > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_guard_that_could_score_nothing_is_refused(bad, dtype):
    """A damaged weight: every row would fail, after hours of loading and of the rows before the first look."""
    tokenizer = make_tokenizer()
    model = make_model("llama", len(tokenizer), dtype)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = bad
    with pytest.raises(
        ValueError, match=r"test-guard: the model's own verdict logits are not finite.*torch\.\w+ is too"
    ):
        Guard(model, tokenizer, make_spec())
    Guard(model, tokenizer, make_spec(), check=False)  # at one's own risk, and its rows fail


def test_utf8_characters_split_by_tokens_stay_whole(guard):
    """One emoji is four byte tokens here: a boundary after each token must not cut it."""
    text = "🙂🙃 naïve 日本"
    scores = star_scores(guard, one(text), unit="token", every=1)
    for end, ids in zip(
        scores.ends[0], guard.encode_prefixes([{"role": "user", "content": "Hello"}], text, scores.ends[0]), strict=True
    ):
        decoded = guard.tokenizer.decode(ids, skip_special_tokens=False)
        assert "\ufffd" not in decoded
        assert f"Agent: {text[:end]}\n\n" in decoded


def test_the_model_is_left_as_it_was(guard):
    model = guard.model
    model.train()
    model.set_attn_implementation("eager")
    try:
        star_scores(guard, BATCH)
        assert model.training
        assert model.config._attn_implementation == "eager"
        with pytest.raises(ValueError, match="every"):
            star_scores(guard, BATCH, every=0)
        assert all(p.requires_grad for p in model.parameters())
    finally:
        model.eval()
        model.set_attn_implementation("sdpa")


def test_attention_that_fastdss_does_not_know_is_an_error(guard, monkeypatch):
    """What a model hands to its attention function changes its result; ignoring it would be wrong in silence."""
    from transformers.models.llama.modeling_llama import LlamaAttention

    real = LlamaAttention.forward
    monkeypatch.setattr(LlamaAttention, "forward", lambda self, *args, **kwargs: real(self, *args, tilt=1, **kwargs))
    with pytest.raises(ValueError, match=r"attention that fastdss does not know: .*tilt"):
        Guard(guard.model, guard.tokenizer, make_spec())


def test_a_model_without_attention_is_an_error(guard):
    from transformers import MambaConfig, MambaForCausalLM

    config = MambaConfig(vocab_size=len(guard.tokenizer), hidden_size=32, num_hidden_layers=2, state_size=4)
    with pytest.raises(ValueError, match="method='per_prefix'"):
        Guard(MambaForCausalLM(config), guard.tokenizer, make_spec())


def test_length_dependent_rotary_frequencies_are_an_error(guard):
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = LlamaConfig(
        vocab_size=len(guard.tokenizer), max_position_embeddings=16,
        rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}, **shape
    )  # fmt: skip
    with pytest.raises(ValueError, match="beyond 16 tokens its rotary frequencies depend on the length"):
        Guard(LlamaForCausalLM(config), guard.tokenizer, make_spec())


@pytest.mark.parametrize("away", ["model.embed_tokens", "model.layers.2", "lm_head"])
def test_an_offloaded_layer_gives_the_same_scores_and_an_offloaded_head_a_clear_error(guard, away, tmp_path):
    """What ``device_map="auto"`` makes of a guard too large for its device; the embedding and head are read here."""
    expected = star_scores(guard, BATCH)
    model = offloaded(copy.deepcopy(guard.model), away, tmp_path)
    if "layers" not in away:
        with pytest.raises(ValueError, match="its embedding or its head is offloaded"):
            Guard(model, guard.tokenizer, make_spec())
        return
    scores = star_scores(Guard(model, guard.tokenizer, make_spec()), BATCH)
    assert all(torch.equal(a, b) for a, b in zip(scores.scores, expected.scores, strict=True))
