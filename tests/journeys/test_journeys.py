"""From a file of each format over score, report and merge to two steps of training, labels checked by hand.

The independent rendering: transformers' ``apply_chat_template`` of the messages that a template should see, written
down here, whose text is searched for what the assistant says; a token is labelled where it lies in that.
"""

from __future__ import annotations

import json

import pytest
import torch

from fastdss import prepare_dss_dataset
from fastdss.cli import main
from fastdss.corpus.store import read_scores
from tests.support.policies import TEMPLATES, make_policy_tokenizer
from tests.support.tiny_models import tiny_model

from .data import RECORDS, write

datasets = pytest.importorskip("datasets", reason="needs the [score] extra")
pytest.importorskip("accelerate", reason="needs the [train] extra")
END = {
    "chatml": "<|im_end|>",
    "llama3": "<|eot_id|>",
    "gemma": "</turn>",
    "qwen3": "<|im_end|>",
    "hermes": "<|im_end|>",
}
# Formats whose conversations a template takes; the tiny guard takes all of these too.
PLAIN = ["messages", "sharegpt", "alpaca_input", "prompt_completion", "dolly", "preference", "hh", "openai_weight",
         "axolotl_train", "ultrachat"]  # fmt: skip


@pytest.fixture(scope="module")
def policies(tmp_path_factory):
    """A tiny random model with each kind of template."""
    folder = tmp_path_factory.mktemp("policies")
    for name in END:
        tokenizer = make_policy_tokenizer(name)
        model = tiny_model(vocab_size=len(tokenizer), max_position_embeddings=512, dtype=torch.float32)
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


@pytest.fixture(scope="module")
def merged(tmp_path_factory):
    """Every plain format, each a file of its own, scored together; the report and the merged file."""
    folder = tmp_path_factory.mktemp("scored")
    data = folder / "data"
    data.mkdir()
    for name in PLAIN:
        write(data / f"{name}.jsonl", [{**RECORDS[name][0], "id": name}])
    assert main(["score", str(data), "--guard", "tiny", "--out", str(folder / "scores"), "--quiet"]) == 0
    assert main(["report", str(folder / "scores")]) == 0
    for suffix in ("parquet", "jsonl"):
        assert main(["merge", str(folder / "scores"), "--out", str(folder / f"merged.{suffix}")]) == 0
    return folder


def test_every_trained_turn_was_judged(merged):
    rows = {row.id: row for row in read_scores(merged / "scores")}
    assert rows.keys() == set(PLAIN)
    for name, row in rows.items():
        assert row.error is None
        assert [turn.turn for turn in row.turns if turn.error is None] == RECORDS[name][3]
        leaks = [min(turn.scores) < 0.5 for turn in row.turns]
        texts = [RECORDS[name][2][turn.turn][1] for turn in row.turns]
        assert leaks == ["555-0147" in text for text in texts]
    assert "555-0147" in (merged / "scores" / "report.html").read_text()


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
@pytest.mark.parametrize("template", END)
def test_labels_are_what_the_template_writes_of_the_trained_turns(merged, template, suffix, tmp_path):
    kind = {"parquet": "parquet", "jsonl": "json"}[suffix]
    rows = datasets.load_dataset(
        kind, data_files=str(merged / f"merged.{suffix}"), split="train", cache_dir=str(tmp_path)
    )
    tokenizer = make_policy_tokenizer(template)
    prepared = prepare_dss_dataset(rows, tokenizer)
    assert len(prepared) == len(PLAIN)
    for row, source in zip(prepared, rows, strict=True):
        texts, trained = RECORDS[source["id"]][2:]
        said = [{"role": role, "content": text} for role, text in texts]
        assert row["input_ids"] == tokenizer.apply_chat_template(said)["input_ids"]
        empty = "<think>\n\n</think>\n\n" if template == "qwen3" else ""
        expected = [(empty if t == len(texts) - 1 else "") + texts[t][1] + END[template] for t in trained]
        labelled = [label for label in row["labels"] if label != -100]
        assert tokenizer.decode(labelled, clean_up_tokenization_spaces=False) == "".join(expected)
        for label, weight in zip(row["labels"], row["token_weights"], strict=True):
            assert label != -100 or weight == 0
    weights = {source["id"]: row for row, source in zip(prepared, rows, strict=True)}["hh"]
    low = [w for w, label in zip(weights["token_weights"], weights["labels"], strict=True) if label != -100]
    assert min(low) < 0.5 < max(low)


@pytest.mark.parametrize("template", END)
def test_two_steps_of_training_on_merged_scores(merged, policies, template, tmp_path, monkeypatch):
    """The merged file alone: nothing is scored, no guard is loaded."""
    monkeypatch.setattr("fastdss.corpus.scorer.StarScorer.score_rows", lambda *_: pytest.fail("scored again"))
    monkeypatch.setattr("fastdss.star.guard.Guard.tiny", lambda *_: pytest.fail("a guard was loaded"))
    arguments = ["--data", str(merged / "merged.parquet"), "--model", str(policies / template), "--cpu"]
    steps = ["--max-steps", "2", "--batch-size", "2", "--logging-steps", "1", "--lora-targets", "q_proj"]
    assert main(["train", *arguments, *steps, "--eval-share", "0.2", "--out", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert "merged.parquet, which came with its scores" in (tmp_path / "report.html").read_text()
    assert report["rows"] == {"read": len(PLAIN), "trained": 8, "held_out": 2}
    assert report["scores"]["responses"] == sum(len(RECORDS[name][3]) for name in PLAIN)
    assert [entry["step"] for entry in report["log"]] == [1, 2]
    assert report["log"][0]["share_below_half"] > 0


def test_one_row_that_a_template_refuses_is_one_row(policies, tmp_path):
    chats = [RECORDS["messages"][0]["messages"]] * 4
    twice = [*chats[0][:2], {"role": "assistant", "content": "Again, blue."}]
    data = write(tmp_path / "rows.jsonl", [{"messages": chat} for chat in (*chats, twice)])
    arguments = ["--data", str(data), "--model", str(policies / "gemma"), "--cpu", "--out", str(tmp_path / "out")]
    steps = ["--max-steps", "1", "--batch-size", "2", "--logging-steps", "1", "--lora-targets", "q_proj"]
    assert main(["train", *arguments, *steps, "--eval-share", "0"]) == 0
    rows = json.loads((tmp_path / "out" / "report.json").read_text())["rows"]
    assert (rows["read"], rows["trained"], rows["not taken by the policy's template"]) == (5, 4, 1)
    assert "take turns" in next(iter(rows["reasons"]))


def test_a_template_that_refuses_most_rows_ends_the_run_before_the_guard_loads(policies, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("fastdss.star.guard.Guard.tiny", lambda *_: pytest.fail("a guard was loaded"))
    chat = [{"role": "system", "content": "s"}, *RECORDS["messages"][0]["messages"]]
    data = write(tmp_path / "rows.jsonl", [{"messages": chat}] * 3)
    arguments = ["--data", str(data), "--model", str(policies / "gemma"), "--cpu", "--out", str(tmp_path / "out")]
    assert main(["train", *arguments]) == 1
    assert "3 of the first 3 conversations cannot be trained: the chat template refuses" in capsys.readouterr().err


def test_the_templates_of_the_journeys_are_known():
    assert set(END) <= set(TEMPLATES)
