"""Guards with a head over classes: causal backbones go through the tree, encoders in batches; both are exact."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    DebertaV2Config,
    Gemma2Config,
    LlamaConfig,
    ModernBertConfig,
    Qwen2Config,
    RobertaConfig,
)

from fastdss import Guard, GuardSpec, star_scores
from fastdss.guards import classifiers
from fastdss.guards.view import View
from fastdss.models.classifier import class_head, is_bidirectional
from fastdss.prefix import memory
from fastdss.prefix.whole import batched_logits
from tests.support.builders import _SHAPE, BATCH, CHAT_TEMPLATE, make_tokenizer

from .test_injection import BANK

ENCODER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
ENCODER |= {"max_position_embeddings": 512, "initializer_range": 0.18, "pad_token_id": 2}
CAUSAL = {
    "llama": (LlamaConfig, {}),
    "qwen2": (Qwen2Config, {}),
    "gemma2": (Gemma2Config, {"sliding_window": 24, "query_pre_attn_scalar": 8, "final_logit_softcapping": 0.5}),
    # a softcap of its language model's head, which a class head does not apply
}
ENCODERS = {
    "bert": (BertConfig, {}),
    "roberta": (RobertaConfig, {}),
    "deberta": (DebertaV2Config, {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "type_vocab_size": 0}),
    "modernbert": (ModernBertConfig, {"global_attn_every_n_layers": 2, "local_attention": 16}),
}
SPEC = GuardSpec("classes", template=CHAT_TEMPLATE, head="sequence", safe=("0", "2"), unsafe="1", other="3")
PAIR = "{{ bos_token }}{{ messages[-2]['content'] }}{{ eos_token }}{{ messages[-1]['content'] }}{{ eos_token }}"


def make_classifier(kind: str, labels: int = 4, **changes):
    config_class, extra = (CAUSAL | ENCODERS)[kind]
    shape = _SHAPE if kind in CAUSAL else ENCODER
    tokenizer = make_tokenizer()
    config = config_class(**(shape | extra | {"vocab_size": len(tokenizer), "num_labels": labels} | changes))
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    head = getattr(model, "score", getattr(model, "classifier", None))
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    if kind == "gemma2":
        model.set_attn_implementation("eager")
    return model, tokenizer


def make_guard(kind: str, spec: GuardSpec = SPEC, **changes) -> Guard:
    model, tokenizer = make_classifier(kind, **changes)
    return Guard(model, tokenizer, spec)


def plain(guard: Guard, history: list, prefix: str) -> torch.Tensor:
    """Logits of transformers' own classifier, one text at a time."""
    (ids,) = guard.encode([[*history, {"role": "assistant", "content": prefix}]])
    with torch.inference_mode():
        return guard.model(input_ids=torch.tensor([ids])).logits[0]


def expected(guard: Guard, prompt: str, response: str, ends: list[int]) -> list[float]:
    history = [{"role": "user", "content": prompt}]
    shares = [plain(guard, history, response[:end]).double().softmax(-1) for end in ends]
    return [(share[0] + share[2] + guard.spec.other_weight * share[3]).item() for share in shares]


@pytest.mark.parametrize("kind", CAUSAL | ENCODERS)
def test_scores_are_those_of_transformers_own_classifier(kind: str) -> None:
    guard = make_guard(kind, replace(SPEC, other_weight=0.25))
    assert guard.bidirectional == (kind in ENCODERS)
    tree, apart = (star_scores(guard, BATCH, every=2, method=method) for method in ("tree", "per_prefix"))
    for i, (prompt, response) in enumerate(zip(*BATCH.values(), strict=True)):
        truth = torch.tensor(expected(guard, prompt, response, tree.ends[i]))
        assert (tree.scores[i] - truth).abs().max() <= 1e-6
        assert (apart.scores[i] - truth).abs().max() <= 1e-6
        stream = guard.stream(prompt, every=2)
        streamed = torch.tensor(stream.append(response) + stream.close())
        assert (streamed - truth).abs().max() <= 1e-6
    assert torch.cat(tree.scores).std() > 1e-3


def test_double_precision_is_exact() -> None:
    model, tokenizer = make_classifier("llama")
    model.double().set_attn_implementation("fastdss_test_dense")
    guard = Guard(model, tokenizer, SPEC)
    response = BATCH["response"][1]
    found = star_scores(guard, {"prompt": ["Hi"], "response": [response]}, every=3)
    truth = torch.tensor(expected(guard, "Hi", response, found.ends[0]))
    assert (found.scores[0] - truth).abs().max() <= 1e-7  # scores are kept in single precision
    rows = guard.encode_prefixes([{"role": "user", "content": "Hi"}], response, found.ends[0])
    from fastdss.prefix.engine import tree_logits
    from fastdss.prefix.tree import build_tree

    logits = tree_logits(guard.model, guard.token_ids, [build_tree(rows)], [0])
    assert logits.dtype == torch.float64
    ours = guard.scores(logits)
    assert (
        ours - torch.tensor(expected(guard, "Hi", response, found.ends[0]), dtype=torch.float64)
    ).abs().max() < 1e-12


def test_independent_classes_count_by_the_likeliest() -> None:
    """As DuoGuard's and toxic-bert's: sigmoids, of which one is enough."""
    spec = replace(SPEC, independent=True, safe=(), unsafe=("1", "3"), other=())
    for kind in ("qwen2", "bert"):
        guard = make_guard(kind, spec)
        found = star_scores(guard, {"prompt": ["Hi"], "response": ["You can call her."]}, every=1)
        history = [{"role": "user", "content": "Hi"}]
        logits = [plain(guard, history, "You can call her."[:end]) for end in found.ends[0]]
        truth = [1 - max(row[1].sigmoid().item(), row[3].sigmoid().item()) for row in logits]
        assert found.scores[0].tolist() == pytest.approx(truth, abs=1e-6)


def test_one_logit_as_of_a_reward_model() -> None:
    guard = make_guard("llama", replace(SPEC, independent=True, safe="0", unsafe=(), other=()), labels=1)
    found = star_scores(guard, {"prompt": ["Hi"], "response": ["You can."]})
    assert found.scores[0].item() == pytest.approx(
        plain(guard, [{"role": "user", "content": "Hi"}], "You can.").sigmoid().item(), abs=1e-6
    )


def test_it_is_read_at_the_last_token_that_is_no_padding() -> None:
    """transformers' rule: a template that ends with the padding's token is read before it."""
    tokenizer = make_tokenizer()
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    template = CHAT_TEMPLATE.replace("<|end|>\n", "<|end|>")
    guard = make_guard("llama", replace(SPEC, template=template), pad_token_id=end)
    (ids,) = guard.encode([[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "You can."}]])
    assert ids[-1] != end
    found = star_scores(guard, BATCH)
    for i, (prompt, response) in enumerate(zip(*BATCH.values(), strict=True)):
        assert found.scores[i].tolist() == pytest.approx(expected(guard, prompt, response, found.ends[i]), abs=1e-6)


def test_a_pair_is_what_the_tokenizer_makes_of_two_texts() -> None:
    """HarmAug's form: the rendering's tokens are those of tokenizer(prompt, response)."""
    model, tokenizer = make_classifier("deberta", labels=2)
    tokenizer = copy.deepcopy(tokenizer)
    from tokenizers.processors import TemplateProcessing

    both = [(name, tokenizer.convert_tokens_to_ids(name)) for name in ("<s>", "</s>")]
    tokenizer.cls_token, tokenizer.sep_token = "<s>", "</s>"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=both
    )
    guard = Guard(model, tokenizer, classifiers.HARMAUG)
    (ids,) = guard.encode([[{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "It is Ann."}]])
    assert ids == tokenizer("Who?", "It is Ann.")["input_ids"]
    alone = Guard(model, tokenizer, classifiers.PROMPT_GUARD_2)
    (ids,) = alone.encode([[{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "It is Ann."}]])
    assert ids == tokenizer("It is Ann.")["input_ids"]


@pytest.mark.parametrize("types", [1, 2])
def test_of_a_pair_a_model_that_numbers_its_texts_is_told_which_is_which(types: int) -> None:
    """As tokenizer(prompt, response) tells it; RoBERTa's kind has one number for both."""
    from tokenizers.processors import BertProcessing

    model, tokenizer = make_classifier("bert", labels=2, type_vocab_size=types)
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.cls_token, tokenizer.sep_token = "<s>", "</s>"
    tokenizer.backend_tokenizer.post_processor = BertProcessing(
        *((name, tokenizer.convert_tokens_to_ids(name)) for name in ("</s>", "<s>"))
    )
    guard = Guard(model, tokenizer, classifiers.HARMAUG)
    response = "You can call her. It is safe, </s> or not."
    ends = [len("You can call her."), len(response)]
    (plain,) = star_scores(guard, {"prompt": ["Who?"], "response": ["You can call her."]}).scores
    given = tokenizer("Who?", "You can call her.", return_tensors="pt", return_token_type_ids=types > 1)
    with torch.inference_mode():
        truth = model(**given).logits[0].softmax(-1)
    assert plain[-1].item() == pytest.approx(truth[0].item(), abs=1e-6)
    batch = {"prompt": ["Who?"], "response": [response]}
    tree, apart = (star_scores(guard, batch, ends=[ends], method=method).scores[0] for method in ("tree", "per_prefix"))
    assert tree[0].item() == pytest.approx(truth[0].item(), abs=1e-6)
    assert torch.allclose(tree, apart, rtol=0, atol=1e-6)
    stream = guard.stream("Who?")
    assert (stream.append("You can call her.") + stream.close())[-1] == pytest.approx(truth[0].item(), abs=1e-6)


@pytest.mark.parametrize("text", BANK)
@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_hostile_text_yields_no_control_token(kind: str, text: str) -> None:
    guard = CACHE.setdefault(kind, make_guard(kind, replace(SPEC, template=PAIR)))
    controls = []
    for turn in ("x", f"Well. {text} So."):
        (ids,) = guard.encode([[{"role": "user", "content": turn}, {"role": "assistant", "content": turn}]])
        controls.append([i for i in ids if guard.encoder.is_control(i)])
    assert controls[0] == controls[1]


CACHE: dict[str, Guard] = {}


def test_batches_of_any_size_give_the_same() -> None:
    guard = make_guard("bert")
    rows = guard.encode_prefixes([{"role": "user", "content": "Hello"}], BATCH["response"][1], [3, 20, 41, 60, 60])
    whole, small = (batched_logits(guard.model, guard.token_ids, rows, budget=budget) for budget in (10_000, 1))
    assert torch.allclose(whole, small, rtol=1e-5, atol=1e-5)
    told: list[int] = []
    batched_logits(guard.model, guard.token_ids, rows, budget=100, report=told.append)
    assert sum(told) == len(rows)


@pytest.mark.parametrize("room", [1, 3])
def test_where_memory_runs_out_batches_are_halved_and_scores_stay(
    room: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The device has room for ``room`` times the longest text."""
    guard = make_guard("bert")
    plain = star_scores(guard, BATCH, every=2)
    history, response = [{"role": "user", "content": BATCH["prompt"][1]}], BATCH["response"][1]
    rows = guard.encode_prefixes(history, response, plain.ends[1])
    whole = [
        [*h, {"role": "assistant", "content": text}] for h, text in zip(plain.histories, plain.responses, strict=True)
    ]
    limit = room * max(map(len, guard.encode(whole)))
    forward, sizes = guard.model.forward, []

    def tight(input_ids: torch.Tensor, **given):
        sizes.append(input_ids.numel())
        if sizes[-1] > limit:
            raise torch.OutOfMemoryError("a small device")
        return forward(input_ids=input_ids, **given)

    monkeypatch.setattr(guard.model, "forward", tight)
    memory._say.cache_clear()
    told: list[int] = []
    batched_logits(guard.model, guard.token_ids, [*rows, rows[0]], report=told.append)
    assert sum(told) == len(rows) + 1
    for found, expected in zip(star_scores(guard, BATCH, every=2).scores, plain.scores, strict=True):
        assert (found - expected).abs().max() <= 1e-6
    stream = guard.stream(BATCH["prompt"][1], every=2)
    streamed = torch.tensor(stream.append(response) + stream.close())
    assert (streamed - plain.scores[1]).abs().max() <= 1e-6
    assert max(sizes) > limit >= sizes[-1]
    assert sum("memory ran out" in record.message for record in caplog.records) == 1


def test_a_text_that_finds_no_room_alone_is_the_devices_error(monkeypatch: pytest.MonkeyPatch) -> None:
    guard, calls = make_guard("bert"), []

    def never(**given):
        calls.append(given)
        raise torch.OutOfMemoryError("a small device")

    monkeypatch.setattr(guard.model, "forward", never)
    with pytest.raises(torch.OutOfMemoryError, match="a small device"):
        star_scores(guard, BATCH, every=1)
    assert len(calls) < 10, "it gives up soon"
    monkeypatch.setattr(guard.model, "forward", lambda **given: calls[len(calls)])
    with pytest.raises(IndexError):  # not one that more room would help
        star_scores(guard, BATCH)


def test_a_response_beyond_an_encoders_context() -> None:
    """RoBERTa counts positions from its padding's id on, so it takes fewer tokens than its table has rows."""
    guard = make_guard("roberta", max_position_embeddings=64, pad_token_id=2)
    assert guard.max_tokens == 61
    batch = {"prompt": ["Hi"], "response": ["You can call her later today. " * 20]}
    with pytest.raises(ValueError, match="exceed the context of classes, 61; pass max_tokens"):
        star_scores(guard, batch)
    cut = star_scores(guard, batch, max_tokens=61)
    assert cut.flags[0] == {"truncated"}
    assert len(cut.scores[0]) > 1


def test_from_a_folder_by_name_and_labels(tmp_path: Path) -> None:
    model, tokenizer = make_classifier("qwen2", labels=12, vocab_size=500)  # the Hub's class adds tokens of its own
    folder = tmp_path / "DuoGuard-0.5B"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    guard = Guard.from_pretrained(str(folder))
    assert guard.spec is classifiers.DUOGUARD
    named = replace(SPEC, safe="fine", unsafe="bad", other=(), messages=View())
    model, tokenizer = make_classifier("bert", labels=2, id2label={0: "bad", 1: "fine"})
    model.save_pretrained(tmp_path / "named")
    tokenizer.save_pretrained(tmp_path / "named")
    guard = Guard.from_pretrained(str(tmp_path / "named"), spec=named)
    assert guard.token_ids == [1, 0]
    with pytest.raises(ValueError, match="expected a head over the classes"):
        Guard(model, tokenizer, replace(named, other="odd"))


def test_heads_are_told_apart() -> None:
    assert class_head(make_classifier("llama")[0]).weight.shape[0] == 4
    assert class_head(make_classifier("bert")[0]) is None
    assert is_bidirectional(make_classifier("deberta")[0])
