"""A guard in a folder is known by name, config or chat template; where these leave several, nobody guesses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fastdss import Guard, GuardSpec, star_scores
from fastdss.guards import known, vendors
from fastdss.guards.known import KNOWN as TABLE
from fastdss.guards.known import TINY_FOLDER, choose_spec, find_spec
from tests.support.builders import BATCH, make_model

from .test_specs import BY_TEXT, CARD, GEMMA, GRANITE, GRANITE_ALL, JUDGED, KNOWN, LLAMA, QWEN, TEXT, make_tokenizer

# Structures of the vendors' templates, not their texts: the variables they take and the words they ask for.
CATEGORIES = "{% set categories = categories or ['S1'] %}"
LLAMA_8B = CATEGORIES + LLAMA.replace("CONTENT", TEXT)
LLAMA_1B = CATEGORIES + LLAMA.replace("CONTENT", "{{ m['content'][0]['text'] | trim }}")
GRANITE_3_2 = GRANITE_ALL.replace(" or guardian_config['criteria_id']", "")
GRANITE_3_0 = (
    "<|start|>user\nRisk: {{ guardian_config['risk_name'] }}\nUser: {{ messages[-2].content }}\n"
    "Assistant: {{ messages[-1].content }}\nYes or No?<|end|>\n<|start|>assistant\n"
)
GRANITE_3_3 = GRANITE_ALL.replace("guardian_config['risk_name'] or ", "")
QWEN_GEN = "First line: 'Safety: Safe', 'Safety: Unsafe' or 'Safety: Controversial'.\n" + QWEN
TOLD_BY_TEMPLATE = {
    "llama guard 8b": (vendors.LLAMA_GUARD_3, LLAMA_8B, "llama"),
    "llama guard 1b": (vendors.LLAMA_GUARD_3_1B, LLAMA_1B, "llama"),
    "granite 3.0": (vendors.GRANITE_GUARDIAN_3, GRANITE_3_0, "granite"),
    "granite 3.2": (vendors.GRANITE_GUARDIAN_3_2, GRANITE_3_2, "granite"),
    "granite 3.3": (vendors.GRANITE_GUARDIAN_3_3, GRANITE_3_3, "granite"),
    "qwen gen": (vendors.QWEN3_GUARD_GEN, QWEN_GEN, "qwen3"),
    "shieldgemma": (vendors.SHIELDGEMMA, GEMMA, "gemma2"),
}


def make_folder(folder: Path, template: str, architecture: str, **config) -> str:
    tokenizer = make_tokenizer(template)
    make_model(architecture, len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return str(folder)


@pytest.mark.parametrize("name", TOLD_BY_TEMPLATE)
def test_a_folder_of_any_name_is_told_by_its_template(name: str, tmp_path: Path) -> None:
    spec, template, architecture = TOLD_BY_TEMPLATE[name]
    guard = Guard.from_pretrained(make_folder(tmp_path / "checkpoint-7", template, architecture))
    assert guard.spec is spec
    again = star_scores(guard.model, BATCH, tokenizer=guard.tokenizer)  # the same evidence in memory
    assert [row.tolist() for row in again.scores] == [row.tolist() for row in star_scores(guard, BATCH).scores]


def test_a_folder_is_told_by_its_name_or_by_the_name_in_its_config(tmp_path: Path) -> None:
    """A template that says nothing; a folder inside another guard's folder; a name that only the config remembers."""
    path = make_folder(tmp_path / "Llama-Guard-3-8B" / "granite-guardian-3.1-2b", JUDGED, "granite")
    assert Guard.from_pretrained(path).spec is vendors.GRANITE_GUARDIAN_3
    path = make_folder(tmp_path / "models--google--shieldgemma-2b" / "snapshots" / "0a1b2c", GEMMA, "gemma2")
    assert Guard.from_pretrained(path).spec is vendors.SHIELDGEMMA
    remembered = {"_name_or_path": "ibm-granite/granite-guardian-3.3-8b"}
    path = make_folder(tmp_path / "mine", JUDGED, "granite", **remembered)
    assert Guard.from_pretrained(path).spec is vendors.GRANITE_GUARDIAN_3_3


@pytest.mark.parametrize("row", TABLE[1:], ids=lambda row: row.called)
def test_every_known_guard_is_found_by_its_id(row: known.Known) -> None:
    """But the built-in one, whose name is a word of its own."""
    texts = dict.fromkeys(row.texts, CARD)
    for kind in row.kinds:
        assert choose_spec([row.example], {"model_type": kind}, JUDGED, options=texts) == known.made(row, [], texts)


def test_nemotrons_are_told_apart() -> None:
    for name in ("nvidia/Nemotron-3-Content-Safety", "nvidia/Nemotron-3.5-Content-Safety"):
        assert choose_spec([name], {"model_type": "gemma3"}) is vendors.NEMOTRON_3
    named = choose_spec(
        ["nvidia/Nemotron-Content-Safety-Reasoning-4B"], {"model_type": "gemma3"}, options={"prompt": CARD}
    )
    assert named == vendors.nemotron_reasoning(CARD)
    assert choose_spec(["mine"], {"model_type": "gemma3"}, JUDGED + "{{ request_categories }}") is vendors.NEMOTRON_3


def test_the_argument_wins(tmp_path: Path) -> None:
    path = make_folder(tmp_path / "granite-guardian-3.1-2b", GRANITE, "granite")
    assert Guard.from_pretrained(path, spec="granite-guardian-3.3-8b", check=False).spec is vendors.GRANITE_GUARDIAN_3_3
    mine = GuardSpec("mine", template=JUDGED, answer_prefix="Safety:", safe=" Safe", unsafe=" Unsafe")
    assert Guard.from_pretrained(path, spec=mine).spec is mine


def test_what_the_template_gives_away_outweighs_the_name(tmp_path: Path) -> None:
    """A folder called after the 8B with the 1B's template, which drops content that is no list of parts in silence."""
    path = make_folder(tmp_path / "my-llama-guard-3-ft", LLAMA_1B, "llama")
    assert Guard.from_pretrained(path).spec is vendors.LLAMA_GUARD_3_1B
    path = make_folder(tmp_path / "granite-guardian-3.1-mine", GRANITE_3_2, "granite")
    assert Guard.from_pretrained(path).spec is vendors.GRANITE_GUARDIAN_3_2


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("yueliu1999/GuardReasoner-8B", "reasons before"),
        ("google/shieldgemma-2-4b-it", "images"),
        # Their names begin as those of guards that are known; read like these they would score something else.
        ("nvidia/llama-3.1-nemoguard-8b-topic-control", "keeps to a topic"),
        ("nvidia/NemoGuard-JailbreakDetect", "user's turn alone"),
        ("kakaocorp/kanana-safeguard-siren-8b", "user's turn alone"),
        ("ibm-granite/granite-guardian-3.2-5b-lora-harm-correction", "adapter for another task"),
        ("OpenSafetyLab/MD-Judge-v0_2-internlm2_7b", "code from its repository"),
        ("SamsungSDS-Research/SGuard-ContentFilter-2B-v1", "five verdicts"),
    ],
)
def test_out_of_reach_is_said(name: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        choose_spec([name])


def test_several_choices_are_an_error_that_names_them(tmp_path: Path) -> None:
    path = make_folder(tmp_path / "merged", "{{ guideline }}" + GRANITE_3_0, "granite", architectures=["gemma2"])
    with pytest.raises(
        ValueError, match=r"could be any of \['granite-guardian-3.0 and 3.1', 'shieldgemma'\]; pass spec"
    ):
        Guard.from_pretrained(path)
    with pytest.raises(ValueError, match=r"'granite.guardian-3.1-or-shieldgemma' could be any of"):
        choose_spec(["granite.guardian-3.1-or-shieldgemma"])


def test_the_config_speaks_against_a_misleading_name() -> None:
    assert choose_spec(["llama-guard-3-comparison"], {"model_type": "gemma2"}, GEMMA) is vendors.SHIELDGEMMA
    with pytest.raises(ValueError, match="no GuardSpec is known"):
        find_spec("meta-llama/Llama-Guard-3-11B-Vision")


@pytest.mark.parametrize("vision", ["Llama-Guard-3-11B-Vision", "meta-llama/Llama-Guard-3-11B-Vision"])
def test_a_guard_of_images_is_none_of_text(vision: str) -> None:
    with pytest.raises(ValueError, match="no GuardSpec is known"):
        choose_spec([vision], {"model_type": "mllama"})


@pytest.mark.parametrize(
    ("config", "template"),
    [
        ({"model_type": "llama"}, JUDGED),
        ({"model_type": "qwen3"}, QWEN),
        ({"model_type": "granite"}, JUDGED),
        ({"model_type": "gemma2"}, JUDGED),
        ({"model_type": "mistral"}, None),
        ({}, GRANITE_3_0),
    ],
)
def test_a_chat_model_is_no_guard(config: dict, template: str | None) -> None:
    """Nor is a template alone enough: without a config nothing says that the weights belong to it."""
    with pytest.raises(ValueError, match="no GuardSpec is known"):
        choose_spec(["some-model"], config, template)


def test_one_of_several_templates_of_a_tokenizer_may_tell() -> None:
    templates = {"default": JUDGED, "guard": GRANITE_3_3}
    assert choose_spec(["x"], {"model_type": "granite"}, templates) is vendors.GRANITE_GUARDIAN_3_3


def test_every_known_guard_is_found_by_its_id_with_its_config() -> None:
    for name, (spec, _, architecture) in KNOWN.items():
        assert choose_spec([name], {"model_type": architecture}).name == spec.name
    assert find_spec("Qwen/Qwen3Guard-Stream-0.6B") is vendors.QWEN3_GUARD_STREAM
    assert len({entry.name for entry in TABLE}) == len(TABLE)


@pytest.mark.parametrize("name", BY_TEXT)
def test_a_guard_that_needs_a_text_says_so(name: str) -> None:
    with pytest.raises(ValueError, match=r"pass spec=fastdss.guards.\w+\("):
        choose_spec([name], {"model_type": BY_TEXT[name][2]})


def test_gguf_files_are_told_by_their_name() -> None:
    assert choose_spec(["/models", "granite-guardian-3.1-2b-Q4_K_M.gguf"]) is vendors.GRANITE_GUARDIAN_3
    assert known.read_config("/models", gguf_file="granite-guardian-3.1-2b-Q4_K_M.gguf") == {}


def test_the_tiny_guard_is_known_by_its_folder() -> None:
    assert Guard.from_pretrained(str(TINY_FOLDER), check=False).spec is known.TINY
