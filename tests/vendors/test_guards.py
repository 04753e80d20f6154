"""Each guard with the vendor's real tokenizer: the token ids before and at the verdict, and the verdict words' ids.

``make test-guards`` fetches the tokenizers. Templates are of templates.py; the ids are the vendors' own.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, Qwen3Config

from fastdss import Guard, GuardSpec
from fastdss.guards import vendors
from fastdss.guards.token_head import TokenHeadModel

from . import templates
from .fetch import CACHE

CARD = "Judge this.\nuser: {prompt}\nresponse: {response}\n"


class Pinned(NamedTuple):
    spec: GuardSpec
    tokenizer: str
    template: str | None
    before: list[int]  # the last ids before the first reading
    safe: list[int]  # ids of the verdict's words, at the last reading
    unsafe: list[int]
    readouts: int = 1


YES, NO = [7134, 9155, 10100, 10922, 19354, 24065], [1289, 1347, 2023, 2576, 3139, 4435]  # every spelling, as IBM sums
ASSISTANT = [128009, 128006, 78191, 128007]  # <|eot_id|><|start_header_id|>assistant<|end_header_id|>
NO_THINK = [46, 16462, 48, 203, 377, 16462, 48, 203, 46, 5020, 48]  # <think>\n</think>\n<score>, no tokens of their own
PINNED = {
    "Llama-Guard-3-8B": Pinned(
        vendors.LLAMA_GUARD_3, "llama3", templates.LLAMA_GUARD_8B, [*ASSISTANT, 271], [19193], [39257]),
    "Llama-Guard-3-1B": Pinned(
        vendors.LLAMA_GUARD_3_1B, "llama3", templates.LLAMA_GUARD_1B, [*ASSISTANT, 271], [19193], [39257]),
    "Llama-Guard-4": Pinned(
        vendors.LLAMA_GUARD_4, "llama4", templates.LLAMA_GUARD_4, [200008, 200005, 140680, 200006, 368], [60411],
        [72110]),
    "Llama-Guard-1": Pinned(
        vendors.LLAMA_GUARD_1_2, "llama2", templates.LLAMA_GUARD_1_2, [29914, 25580, 29962], [9109, 11177],
        [25110]),
    "Llama-Guard-2": Pinned(
        vendors.LLAMA_GUARD_1_2, "llama3", templates.LLAMA_GUARD_1_2, [66028, 65562, 60],
        [6220, 19193, 23088, 26747, 66969, 84888], [20451, 39257, 74167, 79870]),
    "MD-Judge": Pinned(
        vendors.md_judge("[INST] " + CARD + " [/INST]"), "mistral", None, [781, 29473, 4], [5791, 8016, 22915, 24860],
        [16194]),
    "Aegis": Pinned(
        vendors.aegis("[INST] " + CARD + " [/INST]"), "llama2", None, [29914, 25580, 29962], [9109, 11177],
        [25110]),
    "granite-guardian-3.0": Pinned(
        vendors.GRANITE_GUARDIAN_3, "starcoder", templates.GRANITE_3_0, [49152, 17594, 49153], NO, YES),
    "granite-guardian-3.2": Pinned(
        vendors.GRANITE_GUARDIAN_3_2, "starcoder", templates.GRANITE_3_2, [49152, 17594, 49153], NO, YES),
    "granite-guardian-3.3": Pinned(
        vendors.GRANITE_GUARDIAN_3_3, "starcoder", templates.GRANITE_3_3, [49153, *NO_THINK], NO, YES),
    "granite-guardian-4.1": Pinned(
        vendors.granite_guardian_4("Judge it."), "starcoder", templates.GRANITE_4, [17594, 49153, *NO_THINK], NO, YES),
    "Qwen3Guard-Gen": Pinned(
        vendors.QWEN3_GUARD_GEN, "qwen3", templates.QWEN_GUARD, [151667, 271, 151668, 271, 73037, 25], [22291],
        [73067, 2093]),
    "shieldgemma": Pinned(
        vendors.SHIELDGEMMA, "gemma", templates.SHIELDGEMMA, [16105, 235265, 109], [1294], [3553], 4),
    "Nemotron-Safety-Guard": Pinned(
        vendors.nemotron_guard(CARD), "llama3", templates.LLAMA_CHAT, [128007, 271, 5018, 1502, 19220, 794, 330],
        [19193], [39257], 3),
    "Nemotron-Content-Safety-Reasoning": Pinned(
        vendors.nemotron_reasoning(CARD), "gemma3", templates.GEMMA_CHAT, [236820, 36345, 236813, 108, 954, 36345,
        236813, 108, 70517, 7342, 236787], [723], [27583], 3),
    "Nemotron-3-Content-Safety": Pinned(
        vendors.NEMOTRON_3, "gemma3", templates.GEMMA_PARTS, [105, 4368, 107, 2887, 16661, 236787], [6338], [25793],
        3),
    "wildguard": Pinned(
        vendors.wildguard("<s><|user|>\n[INST] " + CARD + "Answers: [/INST]\n<|assistant|>\n"), "mistral", None,
        [29537, 2553, 1775, 2927, 29515], [1476], [5849], 9),
    "PolyGuard": Pinned(
        vendors.polyguard(CARD, "You judge."), "qwen3", templates.CHATML, [151644, 77091, 198, 39, 2178, 1262, 1681,
        25], [902], [9834], 48),
    "YuFeng-XGuard-Reason": Pinned(
        vendors.YUFENG_XGUARD, "qwen3", templates.CHATML, [151644, 77091, 198], [5024], [3992, 7628, 29406, 2493, 757,
        580, 750, 10251, 11130, 759, 51916, 325, 53827]),
    "DynaGuard": Pinned(
        vendors.dynaguard(CARD, "Rules."), "qwen3", templates.CHATML, [77091, 198, 27, 9217, 397], [49792], [36973]),
    "gpt-oss-safeguard": Pinned(
        vendors.gpt_oss_safeguard("Answer 0 or 1."), "gptoss", templates.GPT_OSS, [200006, 173781, 200005, 17196,
        200008], [15], [16]),
    "HarmBench-cls": Pinned(
        vendors.harmbench(CARD + "Answer: [/INST]"), "llama2", None, [29914, 25580, 29962],
        [694, 1217, 1939, 3782, 6632, 11698], [3582, 3869, 4874, 8241, 21143]),
}  # fmt: skip


def make_guard(name: str, **changes: Any) -> Guard:
    pinned = PINNED[name]
    folder = CACHE / pinned.tokenizer
    if not folder.is_dir():
        pytest.skip("the vendors' tokenizers are not here: make test-guards fetches them")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if pinned.tokenizer == "starcoder":
        tokenizer.add_special_tokens({"additional_special_tokens": templates.GRANITE_ROLES})
    tokenizer.chat_template = pinned.template
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **shape)).eval()
    return Guard(model, tokenizer, pinned.spec, check=False, **changes)


@pytest.fixture(scope="module", params=PINNED)
def named(request) -> tuple[str, Guard]:
    return request.param, make_guard(request.param)


CHAT = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Where is the <h1>key</h1>?"},
    {"role": "assistant", "content": "Let me look.\n"},
    {"role": "tool", "content": "under the mat"},
    {"role": "assistant", "content": "Under the mat."},
]


def test_tokens_before_and_at_the_verdict(named) -> None:
    name, guard = named
    pinned = PINNED[name]
    first = guard.encode([CHAT])[0]
    assert first[-len(pinned.before) :] == pinned.before
    assert guard.readouts == pinned.readouts
    place = guard.answers.places[-1].options
    worth = {token: value for token, value in place.items()}
    assert [token for token, value in worth.items() if value == 1] == pinned.safe
    unsafe = [token for token, value in worth.items() if value == 0]
    assert unsafe[: len(pinned.unsafe)] == pinned.unsafe


def test_the_conversation_is_seen_and_the_tools_words_are_not_the_users(named) -> None:
    _, guard = named
    text = guard.tokenizer.decode(guard.encode([CHAT])[0])
    assert text.index("key") < text.index("Let me look.") < text.index("under the mat") < text.index("Under the mat.")
    asked, _, _ = text.partition("Let me look.")
    assert "key" in asked
    assert "under the mat" not in asked


def test_the_answers_tokens_spell_the_vendors_answer(named) -> None:
    """What follows the rendering, token by token, is what the tokenizer makes of the whole answer."""
    _, guard = named
    spec = guard.spec
    chain = spec.begins
    for depth, field in enumerate(spec.fields):
        chain += field.values[0] + (spec.fields[depth + 1].prefix if depth + 1 < len(spec.fields) else "")
    chain += spec.answer_prefix if spec.fields else ""
    (base,) = guard.encoder.encode([CHAT], suffix=spec.begins)
    (whole,) = guard.encoder.encode([CHAT], suffix=chain)
    assert tuple(whole[len(base) :]) in {place.ids for place in guard.answers.places}


def test_several_token_words() -> None:
    guard = make_guard("Nemotron-Content-Safety-Reasoning")
    (first, *_), tails = guard.answers.places, guard.answers.tails
    assert guard.tokenizer.convert_ids_to_tokens(list(first.options)) == ["▁un", "▁harmful"]
    assert [guard.tokenizer.decode(tail) for tail in tails[1:]] == [
        " unharmful\nResponse harm:", " harmful\nResponse harm:"]  # fmt: skip
    guard = make_guard("PolyGuard")
    readings = [guard.tokenizer.decode(tail) for tail in guard.answers.tails]
    assert " yes\nRequest safety violations: S14\nResponse refusal: no\nHarmful response:" in readings
    assert " no\nRequest safety violations: None\nResponse refusal: yes\nHarmful response:" in readings
    guard = make_guard("wildguard")
    refusal = guard.answers.places[1]
    assert guard.tokenizer.convert_ids_to_tokens(list(refusal.options)) == ["▁no", "▁yes", "▁N"]


def test_the_date_that_gpt_oss_prints_is_fixed() -> None:
    guard = make_guard("gpt-oss-safeguard")
    assert "Current date: 2025-01-01" in guard.tokenizer.decode(guard.encode([CHAT])[0])


def test_llama_2s_blank_before_yes() -> None:
    guard = make_guard("HarmBench-cls")
    assert "▁Yes" in guard.tokenizer.convert_ids_to_tokens(guard.token_ids)


def test_tags_that_are_no_special_tokens_are_text() -> None:
    """Gemma has a token for each HTML tag, which the guard was trained on; torn up they would be three."""
    guard = make_guard("shieldgemma")
    assert "<h1>" in guard.tokenizer.convert_ids_to_tokens(guard.encode([CHAT])[0])
    assert guard.encoder.control_strings("<h1>") == []
    assert guard.encoder.control_strings("<bos>") == ["<bos>"]


def test_qwen3_guard_stream_reads_the_responses_last_token() -> None:
    """With Qwen3's own template, which the package holds: the rendering ends where the response does, with no tail."""
    folder = CACHE / "qwen3"
    if not folder.is_dir():
        pytest.skip("the vendors' tokenizers are not here: make test-guards fetches them")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=4,
    )  # fmt: skip
    config.update({"guard_inner_size": 4, "num_risk_level": 3})
    config.response_risk_level_map = {"0": "Safe", "1": "Unsafe", "2": "Controversial"}
    guard = Guard(TokenHeadModel(config).eval(), tokenizer, vendors.QWEN3_GUARD_STREAM, check=False)
    chat = [CHAT[1], CHAT[-1]]
    (ids,) = guard.encode([chat])
    assert ids[:3] == [151644, 872, 198]  # <|im_start|>user
    assert ids[-11:] == [151644, 77091, 198, 151667, 271, 151668, 271, 16250, 279, 5517, 13]
    assert guard.token_ids == [0, 1, 2]
