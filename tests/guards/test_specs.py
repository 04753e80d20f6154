"""Every known guard's spec, against a template written here with the same structure, on the right architecture."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from fastdss import AnswerField, Guard, GuardSpec, star_scores
from fastdss.guards import known, vendors
from tests.support.builders import _LLAMA3, BATCH, make_model

from .test_injection import BANK

ALTERNATING = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('turns must alternate') }}{% endif %}{% endfor %}"
)
LLAMA = (
    ALTERNATING + "{{ bos_token }}<|start|>user\n\nTask: look for harm in the last Agent message.\n<BEGIN>\n\n"
    "{% for m in messages %}{{ 'User' if m['role'] == 'user' else 'Agent' }}: CONTENT\n\n{% endfor %}"
    "<END>\n\nAnswer safe or unsafe.<|end|><|start|>assistant"
)
TEXT = "{{ m['content'] | trim }}"
GRANITE = (
    "<|start|>user\nRisk: {{ guardian_config['risk_name'] or guardian_config['criteria_id'] }}\n"
    "{% for m in messages[-2:] %}{{ m['role'] | capitalize }}: {{ m['content'] }}\n{% endfor %}"
    "<turn_end>\nIs it harmful? Yes or No.<|end|>\n<|start|>assistant\n"
)
JUDGED = "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}<|start|>assistant\n"
QWEN = (
    "<|start|>user\n{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "<|end|>\n<|start|>assistant\n"
)
GRANITE_ALL = GRANITE.replace("messages[-2:]", "messages")
GEMMA = (
    "{{ bos_token }}<|start|>user\n{{ guideline }}\nHuman: {{ messages[-2]['content'] | trim }}\n"
    "Chatbot: {{ messages[-1]['content'] | trim }}\nYes or No?<|end|>\n<|start|>model\n"
)
CARD = "Judge the response.\nprompt: {prompt}\nresponse: {response}\nAnswer with the three fields.\n"

KNOWN: dict[str, tuple[GuardSpec, str | None, str]] = {
    "meta-llama/Llama-Guard-3-8B": (vendors.LLAMA_GUARD_3, LLAMA.replace("CONTENT", TEXT), "llama"),
    "meta-llama/Llama-Guard-3-1B": (
        vendors.LLAMA_GUARD_3_1B, LLAMA.replace("CONTENT", "{{ m['content'][0]['text'] | trim }}"), "llama"),
    "meta-llama/Llama-Guard-4-12B": (
        vendors.LLAMA_GUARD_4, LLAMA.replace("CONTENT", "{{ m['content'][0]['text'] | trim }}"), "llama4_text"),
    "ibm-granite/granite-guardian-3.0-2b": (vendors.GRANITE_GUARDIAN_3, GRANITE, "granite"),
    "ibm-granite/granite-guardian-3.1-8b": (vendors.GRANITE_GUARDIAN_3, GRANITE, "granite"),
    "ibm-granite/granite-guardian-3.2-5b": (vendors.GRANITE_GUARDIAN_3_2, GRANITE_ALL, "granite"),
    "ibm-granite/granite-guardian-3.3-8b": (vendors.GRANITE_GUARDIAN_3_3, GRANITE_ALL, "granite"),
    "Qwen/Qwen3Guard-Gen-0.6B": (vendors.QWEN3_GUARD_GEN, QWEN, "qwen3"),
    "google/shieldgemma-2b": (vendors.SHIELDGEMMA, GEMMA, "gemma2"),
    "meta-llama/LlamaGuard-7b": (replace(vendors.LLAMA_GUARD_1_2, safe=" no", unsafe=" yes"), JUDGED, "llama"),
    "nvidia/Nemotron-3.5-Content-Safety": (
        replace(vendors.NEMOTRON_3, fields=(AnswerField("User Safety:", (" Safe", " Unsafe")),), safe=" Safe",
        unsafe=" Unsafe"),
        JUDGED.replace("m['content']", "m['content'][0]['text']") + "{{ request_categories }}", "gemma3_text"),
    "ServiceNow-AI/AprielGuard": (vendors.APRIEL_GUARD, JUDGED, "mistral"),
    "Alibaba-AAIG/YuFeng-XGuard-Reason-0.6B": (
        replace(vendors.YUFENG_XGUARD, unsafe=("no", "yes"), safe="safe"), JUDGED, "qwen3"),
}  # fmt: skip
BY_TEXT: dict[str, tuple[GuardSpec, str | None, str]] = {
    "ibm-granite/granite-guardian-4.1-8b": (vendors.granite_guardian_4("Is the answer harmful?"), JUDGED, "granite"),
    "nvidia/Llama-3.1-Nemotron-Safety-Guard-8B-v3": (vendors.nemotron_guard(CARD), JUDGED, "llama"),
    "nvidia/Nemotron-Content-Safety-Reasoning-4B": (vendors.nemotron_reasoning(CARD), JUDGED, "gemma3_text"),
    "allenai/wildguard": (vendors.wildguard(CARD), None, "mistral"),
    "ToxicityPrompts/PolyGuard-Qwen": (vendors.polyguard(CARD, "You judge."), JUDGED, "qwen2"),
    "openai/gpt-oss-safeguard-20b": (vendors.gpt_oss_safeguard("Say 0 or 1.", " no", " yes"), JUDGED, "gpt_oss"),
    "nvidia/Aegis-AI-Content-Safety-LlamaGuard-Permissive-1.0": (
        replace(vendors.aegis(CARD), safe=" no", unsafe=" yes"),
        None,
        "llama",
    ),
    "OpenSafetyLab/MD-Judge-v0.1": (replace(vendors.md_judge(CARD), safe=" no", unsafe=" yes"), None, "mistral"),
    "mistralai/Shieldstral-1.0-3B": (
        replace(vendors.shieldstral(CARD, "You judge."), answer_prefix="\n", safe="No", unsafe="Yes"),
        JUDGED,
        "mistral",
    ),
    "tomg-group-umd/DynaGuard-8B": (vendors.dynaguard(CARD, "Rules."), JUDGED, "qwen3"),
    "cais/HarmBench-Llama-2-13b-cls": (vendors.harmbench(CARD), None, "llama"),
}
ALL = KNOWN | BY_TEXT


def make_tokenizer(template: str | None) -> PreTrainedTokenizerFast:
    """Verdict words are single tokens because the corpus is full of them; no regex joins a quote with a word."""
    words = [
        "\n\nsafe",
        "\n\nunsafe",
        "\nYes",
        "\nNo",
        "> yes",
        "> no",
        ": yes",
        ": no",
        ": Safe",
        ": Unsafe",
        ": Cont",
    ]
    corpus = [word * 2 for word in words] * 20 + ['"safe", "unsafe"'] * 20 + [CARD, LLAMA, GRANITE, GEMMA]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_LLAMA3), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(corpus, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", chat_template=template or JUDGED
    )
    fast.add_special_tokens({"additional_special_tokens": ["<|start|>", "<|end|>", "<|eot_id|>"]})
    fast.add_tokens(["<tool>"])
    return fast


def make_guard(name: str) -> Guard:
    spec, template, architecture = ALL[name]
    tokenizer = make_tokenizer(template)
    return Guard(make_model(architecture, len(tokenizer)), tokenizer, spec)


@pytest.fixture(scope="module", params=ALL)
def guard(request) -> Guard:
    return make_guard(request.param)


def test_scores_equal_one_forward_per_prefix(guard):
    conversation = [
        {"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello."}, {"role": "user", "content": "How do I reach Anna?"},
        {"role": "assistant", "content": BATCH["response"][1]},
    ]  # fmt: skip
    simple = [
        [{"role": "user", "content": p}, {"role": "assistant", "content": r}]
        for p, r in zip(*BATCH.values(), strict=True)
    ]
    batch = {"messages": [conversation, *simple]}
    tree, naive = (star_scores(guard, batch, method=method) for method in ("tree", "per_prefix"))
    for a, b in zip(tree.scores, naive.scores, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-6)
    assert torch.cat(tree.scores).std() > 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_sixteen_bit_scores_err_as_one_forward_per_prefix_does(guard, dtype):
    """Truth is fp32 on the same rounded weights. Both ways round; the tree and the stream may at most twice as far."""
    half = Guard(copy.deepcopy(guard.model).to(dtype), guard.tokenizer, guard.spec)
    wide = Guard(copy.deepcopy(half.model).float(), guard.tokenizer, guard.spec, check=False)
    every = 3 if half.readouts < 4 else 12  # one forward for each of 48 readings of a prefix takes its time
    truth, naive = (star_scores(g, BATCH, every=every, method="per_prefix").scores for g in (wide, half))
    tree = star_scores(half, BATCH, every=every).scores
    allowed = 2 * max((a - b).abs().max() for a, b in zip(naive, truth, strict=True))
    assert 0 < allowed < 0.1
    assert all((a - b).abs().max() <= allowed for a, b in zip(tree, truth, strict=True))
    stream = half.stream(BATCH["prompt"][1], every=every)
    streamed = [score for word in BATCH["response"][1].split(" ") for score in stream.append(word + " ")]
    assert (torch.tensor(streamed + stream.close()) - truth[1]).abs().max() <= allowed


def test_the_rendering_ends_with_the_answers_beginning_and_holds_the_last_exchange(guard):
    chat = [{"role": "user", "content": "Question?"}, {"role": "assistant", "content": "Answer!"}]
    texts = [guard.tokenizer.decode(ids) for ids in guard.encode([chat])]
    assert texts[0].endswith(guard.spec.begins)
    assert texts[0].index("Question?") < texts[0].index("Answer!")
    assert len(texts) == guard.readouts
    last = guard.answers.places[-1]
    safe = [guard.tokenizer.decode([token]).strip().lower() for token, worth in last.options.items() if worth == 1]
    assert all(guard.spec.words[0][0].strip().lower().startswith(word) for word in safe)
    assert safe


@pytest.mark.parametrize("text", BANK)
def test_hostile_text_yields_no_control_token(guard, text):
    """In the response, in the prompt, and in the turns that a view joins with others."""
    hostile = f"Well. {text} So."
    chats = [
        [
            {"role": "system", "content": turn},
            {"role": "user", "content": turn},
            {"role": "tool", "content": turn},
            {"role": "assistant", "content": turn},
        ]
        for turn in ("x", hostile)
    ]
    harmless, found = ([[i for i in ids if guard.encoder.is_control(i)] for ids in guard.encode([c])] for c in chats)
    assert harmless == found
    assert guard.encode_prefixes(chats[1][:3], hostile, [len(hostile)]) == guard.encode(chats[1:])


@pytest.mark.parametrize("name", KNOWN)
def test_specs_are_found_by_name(name):
    assert known.find_spec(name).name == KNOWN[name][0].name


@pytest.mark.parametrize("name", BY_TEXT)
def test_guards_prompted_by_a_text_say_which_function_takes_it(name):
    with pytest.raises(ValueError, match=r"pass spec=fastdss.guards.\w+\(\w+=.*--guard-option \w+=@FILE"):
        known.find_spec(name)


def test_unknown_guards_are_an_error():
    with pytest.raises(ValueError, match="no GuardSpec is known for 'someone/some-model'"):
        known.find_spec("someone/some-model")
    with pytest.raises(ValueError, match="prompt: expected"):
        vendors.wildguard("no places")


def test_the_third_verdict_counts_as_unsafe_unless_weighted():
    guard = make_guard("Qwen/Qwen3Guard-Gen-0.6B")
    logits = torch.tensor([[1.0, 0.0, 2.0]])
    shares = logits.softmax(-1)[0]
    assert guard.scores(logits).item() == pytest.approx(shares[0].item())
    loose = Guard(guard.model, guard.tokenizer, replace(guard.spec, other_weight=0.5), check=False)
    assert loose.scores(logits).item() == pytest.approx((shares[0] + 0.5 * shares[2]).item())
