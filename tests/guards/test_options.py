"""From the command line everything that Python can do: options, specs in files, the list and the sample."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from fastdss import Guard, GuardSpec, StarScorer, star_scores
from fastdss.cli import main
from fastdss.corpus.store import read_scores
from fastdss.guards import vendors
from fastdss.guards.command import markdown_table
from fastdss.guards.known import KNOWN, TINY_FOLDER
from fastdss.guards.options import parse_options, with_options
from fastdss.guards.spec_file import read_spec, spec_from
from fastdss.guards.view import View
from fastdss.prefix.engine import reference_logits

from .test_choose_spec import GRANITE_3_0, make_folder
from .test_specs import CARD, JUDGED, make_tokenizer

DOCS = Path(__file__).parents[2] / "docs" / "guards.md"


def test_options_are_json_texts_of_files_or_text(tmp_path: Path) -> None:
    (tmp_path / "card.txt").write_text("Judge {prompt}: é")
    given = ["risk_name=jailbreak", 'keys=["S1"]', "weight=0.5", f"prompt=@{tmp_path}/card.txt", "x=a=b", "y="]
    assert parse_options(given) == {
        "risk_name": "jailbreak", "keys": ["S1"], "weight": 0.5, "prompt": "Judge {prompt}: é", "x": "a=b", "y": "",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (["risk"], "NAME=VALUE"),
        (["=x"], "NAME=VALUE"),
        (["p=@nowhere"], "cannot be read"),
        (["a=1", "a=2"], "given twice"),
    ],
)
def test_options_that_are_none(given: list[str], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_options(given)


@pytest.mark.parametrize(
    ("spec", "name"), [(vendors.GRANITE_GUARDIAN_3_3, "think"), (vendors.NEMOTRON_3, "enable_thinking")]
)
def test_a_guard_that_is_to_think_is_not_read_as_if_it_had_thought(spec: GuardSpec, name: str) -> None:
    """The template would ask for reasoning, and the verdict was read where the reasoning begins."""
    with pytest.raises(ValueError, match=f"{name}: expected False, got True: its verdict is read at once"):
        with_options(spec, {name: True}, "")


def test_template_variables_also_inside_of_others() -> None:
    spec = with_options(vendors.GRANITE_GUARDIAN_3, {"risk_name": "jailbreak"}, "")
    assert spec.template_kwargs == {"guardian_config": {"risk_name": "jailbreak"}}
    spec = with_options(spec, {"risk_definition": "Rude."}, "{{ guardian_config['risk_definition'] }}")
    assert spec.template_kwargs == {"guardian_config": {"risk_name": "jailbreak", "risk_definition": "Rude."}}
    spec = with_options(vendors.GRANITE_GUARDIAN_3_3, {"think": False, "guardian_config.criteria_id": "x"}, "")
    assert spec.template_kwargs == {"guardian_config": {"criteria_id": "x"}, "think": False}
    spec = with_options(vendors.LLAMA_GUARD_3, {"excluded_category_keys": ["S1"]}, "{% if excluded_category_keys %}")
    assert spec.template_kwargs == {"excluded_category_keys": ["S1"]}
    assert vendors.GRANITE_GUARDIAN_3.template_kwargs == {"guardian_config": {"risk_name": "harm"}}


def test_a_text_that_made_the_spec_is_no_option_of_it() -> None:
    spec = spec_from({"like": "wildguard", "name": "mine"}, {"prompt": "<s>" + CARD})
    assert with_options(spec, {"prompt": "<s>" + CARD}, None) == spec
    with pytest.raises(ValueError, match="mine: no option 'prompt'"):
        with_options(spec, {"prompt": "another text"}, None)


def test_questions_by_name_stated_fields_and_the_specs_own() -> None:
    spec = with_options(vendors.SHIELDGEMMA, {"questions": "harassment, hate_speech"}, "")
    assert list(spec.questions) == ["harassment", "hate_speech"]
    spec = with_options(vendors.wildguard(CARD), {"stated": "yes, n/a".replace("n/a", "N/A"), "prompt": CARD}, None)
    assert spec.begins == "Harmful request: yes\nResponse refusal: N/A\nHarmful response:"
    assert not spec.fields
    spec = with_options(vendors.wildguard(CARD), {"earlier": "likeliest"}, None)
    assert (spec.earlier, spec.fields) == ("likeliest", vendors.wildguard(CARD).fields)
    spec = with_options(vendors.QWEN3_GUARD_GEN, {"other_weight": 0.5, "date": "2024-01-01"}, "")
    assert (spec.other_weight, spec.date) == (0.5, "2024-01-01")


@pytest.mark.parametrize(
    ("spec", "options", "reason"),
    [
        (vendors.LLAMA_GUARD_3, {"risk_name": "x"}, "no option 'risk_name'; it has date, and its template's variables"),
        (vendors.GRANITE_GUARDIAN_3, {"rsk": "x"}, "no option 'rsk'; it has risk_name, date"),
        (vendors.SHIELDGEMMA, {"questions": "rudeness"}, "questions: expected some of dangerous_content, harassment"),
        (vendors.wildguard(CARD), {"stated": "no"}, "stated: expected 2 values, got 1"),
        (vendors.wildguard(CARD), {"stated": "no,perhaps"}, r"stated: expected one of \['no', 'yes', 'N/A'\]"),
        (vendors.QWEN3_GUARD_GEN, {"other_weight": "half"}, "other_weight: expected a number"),
        (vendors.wildguard(CARD), {"earlier": "stated"}, "earlier: expected one of summed, likeliest, got 'stated'"),
        (vendors.wildguard(CARD), {"earlier": "summed", "stated": "no,no"}, "stated: .* not both"),
        (vendors.LLAMA_GUARD_3, {"earlier": "likeliest"}, "no option 'earlier'"),
    ],
)
def test_unknown_options_name_the_known(spec, options: dict, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        with_options(spec, options, "{{ messages }}")


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_a_spec_in_yaml(tmp_path: Path) -> None:
    text = """
name: mine
view: {turns: exchange, system: true}
answer_prefix: "Verdict:"
safe: " ok"
unsafe: [" bad", " worse"]
fields:
  - {prefix: "Kind:", values: [" no", " yes"]}
earlier: likeliest
template_kwargs: {risk: harm}
date: 2024-07-26
"""
    spec = read_spec(write(tmp_path / "mine.yaml", text), {})
    assert spec.name == "mine"
    assert spec.messages == View(turns="exchange", system=True)
    assert spec.words == ((" ok",), (" bad", " worse"), ())
    assert spec.fields == (("Kind:", (" no", " yes")),)
    assert spec.earlier == "likeliest"
    assert (spec.date, spec.template_kwargs) == ("2024-07-26", {"risk": "harm"})
    like = spec_from({"like": "wildguard", "answer_prefix": "\nBad:", "view": {"system_prompt": "S"}}, {"prompt": CARD})
    assert like == replace(
        vendors.wildguard(CARD), answer_prefix="\nBad:", messages=View(prompt=CARD, system_prompt="S")
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("- a", "expected names and values, got list"),
        ("name: [", "is no YAML, line"),
        ("name: x\nsave: a\nunsafe: b", r"unknown save; expected some of .*safe"),
        ("name: x\nsafe: no\nunsafe: b", r"x\.yaml: safe: expected text, got bool; put it in quotes"),
        ("name: x\nsafe: [no]\nunsafe: b", "safe: expected text, got bool; put it in quotes"),
        ("name: x\nsafe: 1\nunsafe: b", "x: safe: expected text or a list, got int"),
        ("safe: a\nunsafe: b", "a spec needs a name"),
        ("name: x\nview: {turn: all}", "view: expected some of turns, system"),
        ("name: x\nview: {system: 'no'}", "view.system: expected True or False, got str"),
        ("name: x\nview: {turns: all}", "turns: expected one of conversation"),
        ("name: x\nfields: [{prefix: a}]", "fields: expected a prefix and a list of values each"),
        ("name: x\nfields: [{prefix: a, values: [1]}]", r"x: fields\[0\]: expected texts alone, got int"),
        ("name: x\nsafe: a\nunsafe: b\nearlier: greedy", "earlier: expected one of summed, likeliest"),
        ("name: x\nsplit_words: 1", "split_words: expected True or False, got int"),
        ("like: nobody", "no GuardSpec is known for 'nobody'"),
        ("like: wildguard", "prompted by a text on its model card.*prompt=@FILE"),
    ],
)
def test_yaml_that_is_no_spec(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        read_spec(write(tmp_path / "x.yaml", text), {})


def test_a_spec_in_python(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.py", "from fastdss import GuardSpec\nA = GuardSpec('a', safe='x', unsafe='y')\nB = 1")
    assert read_spec(f"{path}:A", {}).name == "a"
    with pytest.raises(ValueError, match=r"expected a GuardSpec called 'B' in .*mine\.py, got int"):
        read_spec(f"{path}:B", {})
    with pytest.raises(ValueError, match=r"nowhere\.py is no Python file"):
        read_spec("nowhere.py:A", {})
    with pytest.raises(ValueError, match="cannot be read"):
        read_spec("nowhere.yaml", {})


def test_every_command_line_option_reaches_the_guard(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "granite-guardian-3.1-2b", GRANITE_3_0, "granite")
    options = {"risk_name": "jailbreak"}
    guard = Guard.from_pretrained(folder, options=options)
    (ids,) = guard.encode([[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]])
    assert "Risk: jailbreak" in guard.tokenizer.decode(ids)
    other = Guard.from_pretrained(folder)
    hashes = {StarScorer(folder, guard_options=o).identity()["template_hash"] for o in ({}, options)}
    assert len(hashes) == 2
    assert other.spec is vendors.GRANITE_GUARDIAN_3


def test_a_date_that_a_template_prints_is_recorded(tmp_path: Path) -> None:
    dated = "{{ strftime_now('%d %B %Y') }} " + JUDGED
    folder = make_folder(tmp_path / "dated", dated, "llama")
    spec = GuardSpec("dated", answer_prefix="\n\n", safe="safe", unsafe="unsafe")
    identities = [StarScorer(folder, spec=replace(spec, date=day)).identity() for day in ("2025-01-01", "2024-02-29")]
    assert [identity["options"]["date"] for identity in identities] == ["2025-01-01", "2024-02-29"]
    assert identities[0]["template_hash"] != identities[1]["template_hash"]
    assert StarScorer("tiny").identity()["options"]["date"] is None


def test_a_guard_that_no_tree_takes_is_scored_prefix_by_prefix(tmp_path: Path) -> None:
    """The error at construction says how, and the command line can do it."""
    tokenizer = make_tokenizer(JUDGED)
    config = AutoConfig.for_model("bloom", vocab_size=len(tokenizer), hidden_size=32, n_layer=2, n_head=4)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "bloom")
    tokenizer.save_pretrained(tmp_path / "bloom")
    spec = write(tmp_path / "mine.yaml", 'name: mine\nanswer_prefix: "\\n\\n"\nsafe: safe\nunsafe: unsafe\n')
    folder, data = str(tmp_path / "bloom"), write(tmp_path / "rows.jsonl", '{"prompt": "Hi", "response": "Yes, now."}')
    with pytest.raises(ValueError, match=r"method='per_prefix', which check=False .* --method per_prefix"):
        Guard.from_pretrained(folder, spec=spec)
    given = ["score", data, "--guard", folder, "--spec", spec, "--out", str(tmp_path / "out"), "--quiet"]
    assert main([*given, "--method", "per_prefix"]) == 0
    guard = Guard.from_pretrained(folder, spec=spec, check=False)
    (row,) = read_scores(tmp_path / "out")
    rows = guard.encode_prefixes([{"role": "user", "content": "Hi"}], "Yes, now.", [9])
    expected = guard.scores(reference_logits(guard.model, guard.token_ids, rows))
    assert row.turns[0].scores == pytest.approx(expected.tolist(), abs=1e-6)


def test_score_takes_specs_and_options(tmp_path: Path) -> None:
    data = write(tmp_path / "rows.jsonl", json.dumps({"prompt": "Hi", "response": "Ring 555-0147 now, or later."}))
    spec = write(tmp_path / "mine.yaml", "like: fastdss-tiny-guard\nname: mine\nsafe: unsafe\nunsafe: safe\n")
    scored = {}
    for name, more in (("plain", []), ("turned", ["--spec", spec]), ("apart", ["--method", "per_prefix"])):
        out = tmp_path / name
        assert main(["score", data, "--guard", str(TINY_FOLDER), "--out", str(out), "--quiet", *more]) == 0
        (row,) = read_scores(out)
        scored[name] = row.turns[0].scores
    assert scored["turned"] == pytest.approx([1 - score for score in scored["plain"]], abs=1e-6)
    assert scored["apart"] == pytest.approx(scored["plain"], abs=1e-6)


def test_how_earlier_fields_are_read_from_the_command_line(tmp_path: Path) -> None:
    text = "Ring 555-0147 now, or later. " * 3 + "No."
    data = write(tmp_path / "rows.jsonl", json.dumps({"prompt": "Hi", "response": text}))
    lines = 'like: fastdss-tiny-guard\nname: mine\nfields: [{prefix: "\\n\\n", values: [safe, unsafe]}]\n'
    spec, scored = write(tmp_path / "mine.yaml", lines), {}
    for read in ("earlier=summed", "earlier=likeliest", "stated=unsafe"):
        out = tmp_path / read
        given = ["--guard", str(TINY_FOLDER), "--spec", spec, "--guard-option", read]
        assert main(["score", data, *given, "--out", str(out), "--quiet"]) == 0
        (row,) = read_scores(out)
        guard = Guard.from_pretrained(str(TINY_FOLDER), spec=spec, options=parse_options([read]))
        (expected,) = star_scores(guard, {"prompt": ["Hi"], "response": [text]}).scores
        assert row.turns[0].scores == pytest.approx(expected.tolist(), abs=1e-6)
        scored[read] = row.turns[0].scores
    assert len({tuple(scores) for scores in scored.values()}) == 3
    assert main(["guards", "show", str(TINY_FOLDER), "--spec", spec, "--guard-option", "earlier=likeliest"]) == 0


def test_the_list_and_the_sample(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["guards"]) == 0
    listed = capsys.readouterr().out
    assert all(known.example in listed and known.sample().judges in listed for known in KNOWN)
    assert "--guard-option prompt=@FILE" in listed
    assert main(["guards", "show", "tiny"]) == 0
    shown = capsys.readouterr().out
    assert "<|agent|>| One| moment|" in shown
    assert ">>> one of 'safe' (7923), 'unsafe' (8191)" in shown
    assert "Answer in one sentence" not in shown  # the system turn, which the note says
    folder = make_folder(tmp_path / "granite-guardian-3.1-2b", GRANITE_3_0, "granite")
    assert main(["guards", "show", folder, "--guard-option", "risk_name=violence"]) == 0
    assert "violence" in capsys.readouterr().out.replace("|", "")
    assert main(["guards", "show"]) == 1
    assert "expected a guard" in capsys.readouterr().err


def test_the_page_has_the_table_of_the_code() -> None:
    """``fastdss guards list --markdown`` writes it."""
    assert markdown_table() in DOCS.read_text()


def test_the_pages_examples_are_specs(tmp_path: Path) -> None:
    blocks = DOCS.read_text().split("```yaml\n")[1:]
    assert len(blocks) >= 5
    for number, block in enumerate(blocks):
        spec = read_spec(write(tmp_path / f"{number}.yaml", block.split("```")[0]), {"prompt": CARD})
        assert spec.words[1]
